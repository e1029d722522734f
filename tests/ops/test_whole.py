"""Operations that stay whole in the program: a primitive defined for these tests, in every use."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import ad, batching
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_trn3.ops import whole


def _waves(x: Any, y: Any, *, power: int, note: Any = None) -> tuple[jax.Array, jax.Array]:
    del note
    return jnp.sin(x) ** power + y, (x * y).sum(-1)


waves_p = whole.define("test_waves", _waves)
batching.primitive_batchers[waves_p] = lambda operands, dims, **parameters: (
    waves_p.bind(*(jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims)), **parameters),
    [0, 0],
)
ad.primitive_jvps[waves_p] = lambda primals, tangents, **parameters: jax.jvp(
    lambda x, y: _waves(x, y, **parameters), primals, tuple(map(ad.instantiate_zeros, tangents))
)

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(2, 8, 4)).astype(np.float32)


def waves(x: Any, y: Any, power: int = 2, **parameters: Any) -> Any:
    return waves_p.bind(x, y, power=power, **parameters)


def expected(x: Any, y: Any, power: int = 2) -> list[np.ndarray]:
    x, y = np.float64(x), np.float64(y)
    return [np.sin(x) ** power + y, (x * y).sum(-1)]


def assert_waves(actual: Any, x: Any, y: Any, power: int = 2) -> None:
    for a, e in zip(actual, expected(x, y, power), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


class TestVariants(chex.TestCase):
    variant: Callable[..., Any]

    @chex.all_variants
    def test_values(self) -> None:
        assert_waves(self.variant(waves)(X, Y), X, Y)


@pytest.mark.parametrize("platform", ["trn3", "cpu"])
def test_eager_and_jit_stay_where_the_operands_are(platform: str) -> None:
    device = jax.devices(platform)[0]
    x, y = jax.device_put((X, Y), device)
    for f in (waves, jax.jit(waves)):
        out = f(x, y)
        assert_waves(out, X, Y)
        assert {d for leaf in out for d in leaf.devices()} == {device}


def test_program_holds_the_operation_and_its_attributes() -> None:
    f = jax.jit(lambda x, y: waves(x, y, 3, note=(1, "two")))
    text = f.lower(X, Y).as_text()
    (line,) = [line for line in text.splitlines() if "stablehlo.composite" in line]
    assert '"trn3.test_waves"' in line
    assert "power = 3 : i64" in line
    assert """note = "(1, 'two')\"""" in line
    assert "stablehlo.sine" in text  # the decomposition is attached
    none = jax.jit(lambda x, y: waves(x, y, note=None)).lower(X, Y).as_text()
    assert "note" not in none
    assert_waves(f(X, Y), X, Y, 3)


def test_parameters_make_programs_of_their_own() -> None:
    for power in (1, 2, 3):
        assert_waves(jax.jit(waves, static_argnums=2)(X, Y, power), X, Y, power)
        assert_waves(waves(X, Y, power), X, Y, power)


def test_shapes_are_the_functions() -> None:
    shapes = jax.eval_shape(waves, jax.ShapeDtypeStruct((3, 5), jnp.bfloat16), X[:3, :1])
    assert [(s.shape, s.dtype) for s in shapes] == [((3, 5), np.float32), ((3,), np.float32)]
    with pytest.raises(TypeError, match=r"incompatible shapes.*\(8, 4\).*\(3, 4\)"):
        waves(X, Y[:3])


def test_scan_vmap_and_remat() -> None:
    def step(carry: jax.Array, x: jax.Array) -> Any:
        first, second = waves(x, carry)
        return first, second

    carry, seconds = jax.jit(lambda x, y: lax.scan(step, y, x))(X, Y[0])
    y = np.float64(Y[0])
    for x, second in zip(X, seconds):
        first, total = expected(x, y)
        np.testing.assert_allclose(second, total, rtol=1e-4, atol=1e-4)
        y = first
    np.testing.assert_allclose(carry, y, rtol=1e-4)

    out = jax.jit(jax.vmap(waves))(X, Y)
    assert_waves(out, X, Y)
    assert "trn3.test_waves" in str(jax.make_jaxpr(jax.vmap(waves))(X, Y))

    loss = lambda x: sum(leaf.sum() for leaf in waves(x, Y))  # noqa: E731
    gradient = np.sin(2 * np.float64(X)) + Y
    for f in (loss, jax.checkpoint(loss)):
        np.testing.assert_allclose(jax.jit(jax.grad(f))(X), gradient, rtol=1e-4, atol=1e-5)


def mesh_of(kind: AxisType, platform: str = "trn3") -> jax.sharding.Mesh:
    devices = jax.devices(platform)
    count = min(4, len(devices))
    return jax.make_mesh((count,), ("x",), devices=devices[:count], axis_types=(kind,))


@pytest.mark.parametrize(
    ("platform", "spec"), list(itertools.product(["trn3", "cpu"], [P("x"), P(None, "x")]))
)
def test_sharded_jit(platform: str, spec: P) -> None:
    mesh = mesh_of(AxisType.Auto, platform)
    x, y = (jax.device_put(a, jax.NamedSharding(mesh, spec)) for a in (X, Y))
    out = jax.jit(waves)(x, y)
    assert_waves(out, X, Y)
    assert out[0].sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), 2)


def test_explicit_axes_are_those_of_the_function() -> None:
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        x, y = (jax.device_put(a, P("x", None)) for a in (X, Y))
        for f in (waves, jax.jit(waves)):
            out = f(x, y)
            assert [jax.typeof(o).sharding.spec for o in out] == [P("x", None), P("x")]
            assert_waves(out, X, Y)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma: bool) -> None:
    mesh = mesh_of(AxisType.Auto)

    def body(x: jax.Array, y: jax.Array) -> Any:
        first, second = waves(x, y)
        return first, lax.psum(second, "x")

    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P("x"), P("x")), out_specs=(P("x"), P()), check_vma=check_vma
    )
    first, total = jax.jit(mapped)(X, Y)
    np.testing.assert_allclose(first, expected(X, Y)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        total, expected(X, Y)[1].reshape(mesh.size, -1).sum(0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("platforms", [["trn3"], ["cpu"], ["trn3", "cpu", "cuda"]])
@pytest.mark.parametrize("symbolic", [False, True])
def test_export(platforms: list[str], symbolic: bool) -> None:
    rows = jax.export.symbolic_shape("rows")[0] if symbolic else 8
    shape = jax.ShapeDtypeStruct((rows, 4), np.float32)
    exported = jax.export.export(jax.jit(waves), platforms=platforms)(shape, shape)
    is_whole = '"trn3.test_waves"' in exported.mlir_module()
    assert is_whole == (len(platforms) == 1 and not symbolic)
    again = jax.export.deserialize(exported.serialize())
    for platform in set(platforms) & {"trn3", "cpu"}:
        x, y = jax.device_put((X, Y), jax.devices(platform)[0])
        assert_waves(jax.jit(again.call)(x, y), X, Y)
        if symbolic:
            assert_waves(again.call(x[:3], y[:3]), X[:3], Y[:3])


def test_operation_within_an_operation() -> None:
    outer = whole.define("test_outer", lambda x, y: (waves(x, y)[0] * 2,))
    (out,) = jax.jit(outer.bind)(X, Y)
    np.testing.assert_allclose(out, 2 * expected(X, Y)[0], rtol=1e-5, atol=1e-5)
    text = jax.jit(outer.bind).lower(X, Y).as_text()
    assert text.count("stablehlo.composite ") == 2
