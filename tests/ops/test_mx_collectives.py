"""Collectives with a wire format against JAX's own, against float64, and against their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from jax_trn3 import collectives
from jax_trn3.numerics import ELEMENT_FORMATS
from jax_trn3.ops import wire

ALL, ROW = ("y", "x"), "x"
Body = Callable[[jax.Array], Any]


def mesh() -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 4), ALL, devices=jax.devices("trn3")[:8], axis_types=auto)


def on_devices(body: Body, check_vma: bool = True, out: P | None = None) -> Callable[..., Any]:
    """jit of body, which maps arrays of one device; a leading axis of 8 stands for the devices."""

    def local(*arrays: jax.Array) -> Any:
        return jax.tree.map(lambda r: r[None], body(*(a[0] for a in arrays)))

    mapped = jax.shard_map(
        local,
        mesh=mesh(),
        in_specs=P(ALL),
        out_specs=P(ALL) if out is None else out,
        check_vma=check_vma,
    )
    return jax.jit(mapped)


def integers(seed: int, *shape: int) -> np.ndarray:
    """Whole numbers whose sums over 8 devices mxfp8 holds exactly, whatever the block's scale."""
    return np.random.default_rng(seed).integers(-1, 2, (8, *shape)).astype(np.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(8, *shape)).astype(np.float32)


# name: (call of a module's function, the devices' axes that the result does not vary over)
CASES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "psum": (lambda m, x, **k: m.psum(x, ROW, **k), (ROW,)),
    "psum over both": (lambda m, x, **k: m.psum(x, ALL, **k), ALL),
    "all_gather": (lambda m, x, **k: m.all_gather(x, ROW, axis=1, **k), ()),
    "all_gather tiled": (lambda m, x, **k: m.all_gather(x, ALL, axis=-1, tiled=True, **k), ()),
    "all_gather invarying": (lambda m, x, **k: m.all_gather(x, ROW, to="invarying", **k), (ROW,)),
    "psum_scatter": (lambda m, x, **k: m.psum_scatter(x[:4], ROW, **k), ()),
    "psum_scatter tiled": (
        lambda m, x, **k: m.psum_scatter(x, ALL, scatter_dimension=1, tiled=True, **k),
        (),
    ),
    "all_to_all": (lambda m, x, **k: m.all_to_all(x[:4], ROW, 0, 0, **k), ()),
    "all_to_all tiled": (lambda m, x, **k: m.all_to_all(x, ROW, 1, 0, tiled=True, **k), ()),
    "ppermute": (lambda m, x, **k: m.ppermute(x, ROW, [(0, 1), (1, 2), (2, 0)], **k), ()),
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_exact_where_values_are_representable(case: str, check_vma: bool) -> None:
    """Results, forward and reverse derivatives equal JAX's; bytes move; the operation is whole."""
    call, invariant = CASES[case]
    if "invarying" in case and not check_vma:
        pytest.skip("a type that there is only with check_vma")
    out = P(tuple(axis for axis in ALL if axis not in invariant))
    x, tangent = integers(0, 8, 24), integers(1, 8, 24)

    def everything(module: Any, **options: Any) -> Callable[..., Any]:
        mapped = on_devices(lambda x: call(module, x, **options), check_vma, out)

        def results(x: jax.Array, tangent: jax.Array) -> Any:
            primal, moved = jax.jvp(mapped, (x,), (tangent,))
            # Cotangents of -1, 0 and 1, other ones for every element.
            cotangent = (jnp.arange(primal.size).reshape(primal.shape) * 7 % 3 - 1.0).astype(
                x.dtype
            )
            return primal, moved, jax.vjp(mapped, x)[1](cotangent)[0]

        return jax.jit(results)

    mine = everything(collectives, wire_format="mxfp8").lower(x, tangent)
    program = mine.compile()
    expected = everything(lax)(x, tangent)
    jax.tree.map(np.testing.assert_array_equal, program(x, tangent), expected)
    assert f'stablehlo.composite "trn3.{case.split()[0]}"' in mine.as_text()
    moving = re.findall(
        r" = (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(",
        program.as_text(),
    )
    assert moving
    assert all(set(re.findall(r"\b([a-z]+\d+)\[", types)) == {"u8"} for types in moving), moving


@pytest.mark.parametrize("format", [f.name for f in ELEMENT_FORMATS])
def test_wire_bytes_of_every_format(format: str) -> None:
    """What goes through the wire is dequantize(quantize(x)), in as few bytes as there can be."""
    from jax_trn3.numerics import element_format, quantize_dequantize

    bits = element_format(format).bits
    for n in (1, 5, 32, 77):
        x = normal(n, n)
        message = jax.jit(lambda x: wire.encode(x, format, "ocp"))(x)
        assert message.dtype == np.uint8
        per_word = {8: 1, 6: 4, 4: 2}[bits]
        assert message.shape == (8, -(-n // per_word) * per_word * bits // 8 + -(-n // 32))
        decoded = jax.jit(lambda m, n=n: wire.decode(m, n, format))(message)
        np.testing.assert_array_equal(decoded, quantize_dequantize(x, -1, format))


@settings(max_examples=8)
@given(
    shape=st.lists(st.integers(1, 7), max_size=3),
    axes=st.sampled_from([ROW, "y", ALL]),
    format=st.sampled_from(["mxfp8", "mxfp8_e5m2", "mxfp4", "mxint8", jnp.float6_e2m3fn]),
    scale_rule=st.sampled_from(["rceil", "ceil"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_psum_within_its_bound(
    shape: list[int], axes: Any, format: Any, scale_rule: str, dtype: str
) -> None:
    """Any shape; rules that do not saturate: each rounding is off by half a step of amax."""
    x = normal(sum(shape), *shape).astype(jnp.dtype(dtype))
    body = lambda x: collectives.psum(x, axes, wire_format=format, scale_rule=scale_rule)  # noqa: E731
    result = on_devices(body, out=P(tuple(a for a in ALL if a not in axes)))(x)
    assert result.dtype == x.dtype
    devices = x.astype(np.float64).reshape(2, 4, *shape)
    over = {ROW: 1, "y": 0, ALL: (0, 1)}[axes]
    exact = devices.sum(over).reshape(result.shape)
    fmt = wire.element_format(format)
    step = 2.0**-fmt.mantissa_bits  # of 2^emax, which is at most amax; half of it, twice at most
    biggest = np.abs(devices).sum(over).max() * 2
    bound = step * biggest + (2.0**-8 if dtype == "bfloat16" else 0) * biggest
    assert np.max(np.abs(np.asarray(result, np.float64) - exact), initial=0) <= bound


@pytest.mark.parametrize("axis_name", [ROW, ALL])
def test_error_feedback_conserves(axis_name: Any) -> None:
    """Results and what residuals still hold add up to the exact sum: the mean is unbiased."""
    x = normal(0, 45)
    steps = 24

    def body(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(carry: Any, _: Any) -> Any:
            total, residual = carry
            result, residual = collectives.psum(
                x, axis_name, wire_format="mxfp4", residual=residual
            )
            return (total + lax.pcast(result, axis_name, to="varying"), residual), None

        (total, residual), _ = lax.scan(step, (x * 0, x * 0), length=steps)
        once = collectives.psum(x, axis_name, wire_format="mxfp4")
        return total, residual, lax.pcast(once, axis_name, to="varying")

    total, residual, once = on_devices(body)(x)
    group = (2, 4) if axis_name == ROW else (1, 8)
    exact, held = (np.asarray(a, np.float64).reshape(*group, -1).sum(1) for a in (x, residual))
    total, once = (np.asarray(a, np.float64).reshape(*group, -1)[:, 0] for a in (total, once))
    np.testing.assert_allclose(total + held, steps * exact, rtol=1e-4, atol=1e-3)
    # Without feedback the error stays, with it the mean's goes to zero as 1 / steps.
    assert np.abs(total / steps - exact).max() < np.abs(once - exact).max() / 4


@pytest.mark.parametrize("case", [c for c in CASES if "psum" not in c])
def test_residual_is_what_the_format_lost(case: str) -> None:
    call, _ = CASES[case]
    x, old = normal(0, 8, 24), normal(1, 8, 24) / 8
    options = {"wire_format": "mxfp8_e5m2", "scale_rule": "neuron"}
    whole = "[:4]" if case == "all_to_all" else ""

    def body(x: jax.Array, old: jax.Array) -> Any:
        residual = old[:4] if whole else old
        result, new = call(collectives, x, residual=residual, **options)
        same = call(collectives, x + old, **options)
        varying = lambda a: lax.pcast(a, ROW, to="varying") if "invarying" in case else a  # noqa: E731
        gradient = jax.grad(lambda o: jnp.sum(call(collectives, x, residual=o, **options)[1]))(
            residual
        )
        return varying(result), varying(same), new, gradient

    result, same, new, gradient = on_devices(body)(x, old)
    np.testing.assert_array_equal(result, same)
    np.testing.assert_array_equal(gradient, 0)
    sent = (x + old)[:, :4] if whole else x + old
    assert 0 < np.abs(new).max() <= np.abs(sent).max() / 8


def test_infinities_are_seen_and_leave_no_residual() -> None:
    x = normal(0, 64)
    x[3, 5] = np.inf
    body = lambda x: collectives.psum(x, ALL, wire_format="mxfp8", residual=x * 0)  # noqa: E731
    result, residual = on_devices(lambda x: (body(x)[0] * jnp.ones_like(x), body(x)[1]))(x)
    assert np.isnan(result).any(1).all()
    assert np.isfinite(residual).all()


def test_trees_and_without_a_wire_format() -> None:
    x = {"a": integers(0, 5), "b": [integers(1, 2, 3)]}

    def body(module: Any, **options: Any) -> Any:
        return on_devices(lambda a, b: module.psum({"a": a, "b": [b]}, ROW, **options), out=P("y"))

    expected = body(lax)(x["a"], x["b"][0])
    for options in ({}, {"wire_format": "mxfp8"}):
        result = body(collectives, **options)(x["a"], x["b"][0])
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    assert collectives.reduce_scatter is collectives.psum_scatter


def test_one_device_rounds_nothing() -> None:
    one = jax.make_mesh(
        (1,), (ROW,), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,)
    )
    body = lambda x: collectives.psum(x, ROW, wire_format="mxfp4")  # noqa: E731
    x = normal(0, 7)
    result = jax.jit(jax.shard_map(body, mesh=one, in_specs=P(ROW), out_specs=P()))(x)
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("name", ["psum", "all_gather", "psum_scatter", "all_to_all"])
def test_axis_index_groups(name: str) -> None:
    groups = [[0, 3], [2, 1]]
    arguments = (0, 1) if name == "all_to_all" else ()
    options = {} if name == "psum" else {"tiled": True}

    def body(module: Any, **wire: Any) -> Callable[..., Any]:
        function = getattr(module, name)
        return on_devices(
            lambda x: function(x, ROW, *arguments, axis_index_groups=groups, **options, **wire),
            check_vma=False,
        )

    x = integers(0, 6, 10)
    np.testing.assert_array_equal(body(collectives, wire_format="mxfp8")(x), body(lax)(x))


def test_vmap_blocks_are_those_of_each_example() -> None:
    x = normal(0, 3, 50) * np.array([1, 1e-3, 1e3])[:, None].astype(np.float32)
    body = lambda x: collectives.psum(x, ALL, wire_format="mxfp8")  # noqa: E731
    mapped = on_devices(jax.vmap(body, in_axes=1, out_axes=1), out=P())
    one_by_one = on_devices(lambda x: jnp.stack([body(x[:, i]) for i in range(3)], 1), out=P())
    x = x.swapaxes(1, 2)
    np.testing.assert_array_equal(mapped(x), one_by_one(x))
    assert "trn3.psum" in mapped.lower(x).as_text()


@pytest.mark.parametrize("name", ["psum", "all_gather", "ppermute", "psum_scatter", "all_to_all"])
def test_over_an_axis_of_vmap(name: str) -> None:
    arguments = {"ppermute": ([(i, (i + 3) % 8) for i in range(8)],), "all_to_all": (0, 0)}.get(
        name, ()
    )

    def results(module: Any, **wire: Any) -> Any:
        function = lambda x: getattr(module, name)(x, "i", *arguments, **wire)  # noqa: E731
        return jax.jit(jax.vmap(function, axis_name="i"))(integers(0, 8, 3))

    np.testing.assert_array_equal(results(collectives, wire_format="mxfp8"), results(lax))


def test_pmap_scan_and_remat() -> None:
    x = integers(0, 40)

    def loss(x: jax.Array) -> jax.Array:
        reduce = jax.checkpoint(lambda x: collectives.psum(x, "i", wire_format="mxfp8"))
        return lax.scan(lambda carry, x: (carry + jnp.sum(reduce(x)), None), 0.0, x[None])[0]

    value, gradient = jax.pmap(jax.value_and_grad(loss), axis_name="i")(x)
    np.testing.assert_array_equal(value, np.full(8, x.sum()))
    assert gradient.shape == x.shape


def test_ragged_all_to_all() -> None:
    """Device i sends one row to each device of its row of the mesh, and keeps one place free."""
    operand, output = integers(0, 4, 6), normal(1, 6, 6)
    device = np.arange(8) % 4
    starts = np.tile(np.arange(4), (8, 1))
    sizes = np.ones((8, 4), int)
    places = np.tile(device[:, None] + 1, (1, 4))

    def body(module: Any, **options: Any) -> Callable[..., Any]:
        def local(operand: jax.Array, output: jax.Array, *numbers: jax.Array) -> Any:
            def function(operand: jax.Array, output: jax.Array) -> jax.Array:
                return module.ragged_all_to_all(operand, output, *numbers, axis_name=ROW, **options)

            result, pull = jax.vjp(function, operand, output)
            tangent = jax.jvp(function, (operand, output), (operand * 2, output))[1]
            return result, tangent, pull(jnp.round(result))

        return on_devices(local, check_vma=False)

    arrays = operand, output, starts, sizes, places, sizes
    mine = body(collectives, wire_format="mxfp8")
    assert "trn3.ragged_all_to_all" in mine.lower(*arrays).as_text()
    result, tangent, (to_operand, to_output) = mine(*arrays)
    plain_result, plain_tangent, (plain_operand, _) = body(lax)(*arrays)
    np.testing.assert_array_equal(result, plain_result)
    np.testing.assert_array_equal(tangent, plain_tangent)
    np.testing.assert_array_equal(to_operand, plain_operand)
    kept = np.round(output)
    kept[:, 1:5] = 0
    np.testing.assert_array_equal(to_output, kept)


def test_bad_arguments() -> None:
    x = normal(0, 6, 4)
    c = collectives
    for body, error, message in [
        (
            lambda x: c.psum(x, ROW, wire_format="fp8"),
            ValueError,
            "unknown MX format 'fp8'.*mxfp8",
        ),
        (
            lambda x: c.psum(x, ROW, wire_format="mxfp8", scale_rule="up"),
            ValueError,
            "scale_rule 'up'",
        ),
        (
            lambda x: c.psum(x, ROW, scale_rule="ocp"),
            ValueError,
            "scale_rule is given, but no wire",
        ),
        (lambda x: c.psum(x, ROW, residual=x), ValueError, "residual is given, but no wire_format"),
        (
            lambda x: c.psum(x.astype(int), ROW, wire_format="mxfp8"),
            TypeError,
            "float32, .*got int32",
        ),
        (lambda x: c.psum(x, 0, wire_format="mxfp8"), NotImplementedError, "positional axes"),
        (
            lambda x: c.psum(x, ROW, wire_format="mxfp8", residual=x[1:]),
            ValueError,
            r"\[6, 4\].*\[5, 4\]",
        ),
        (
            lambda x: c.psum_scatter(x, ROW, wire_format="mxfp8"),
            ValueError,
            r"equal to the 4 .*tiled",
        ),
        (
            lambda x: c.all_to_all(x, ROW, 0, 1, tiled=True, wire_format="mxfp8"),
            ValueError,
            "divisible by",
        ),
        (lambda x: c.all_to_all(x, ROW, 2, 1, wire_format="mxfp8"), ValueError, "split_axis 2"),
        (
            lambda x: c.all_gather(x, ROW, to="reduced", wire_format="mxfp8"),
            ValueError,
            "'varying' or",
        ),
        (
            lambda x: c.psum(x, ROW, axis_index_groups=[[0, 1], [2, 3]], wire_format="mxfp8"),
            NotImplementedError,
            "check_vma=False",
        ),
        (
            lambda x: c.all_gather(x, ROW, axis_index_groups=[[0, 1, 2], [3]], wire_format="mxfp8"),
            ValueError,
            "equal size",
        ),
        (
            lambda x: c.ragged_all_to_all(
                x, x[:, 1:], *[jnp.arange(4)] * 4, axis_name=ROW, wire_format="mxfp8"
            ),
            ValueError,
            "differ only in their rows",
        ),
    ]:
        with pytest.raises(error, match=message):
            jax.eval_shape(on_devices(body), x)
