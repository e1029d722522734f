"""Programs on trn3 against the same programs on the CPU backend, or against numpy."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src import dispatch
from jax.experimental import checkify, io_callback, serialize_executable
from jax.experimental.layout import Format, Layout

F32 = np.float32
RANDOM = np.random.default_rng(0)

Function = Callable[..., Any]


def array(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(F32)


def on_cpu(function: Function, *arguments: Any) -> Any:
    """What the CPU backend gives."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        result = jax.jit(function)(*arguments)
    assert all(leaf.devices() == {cpu} for leaf in jax.tree.leaves(result))
    return jax.tree.map(np.asarray, result)


def same_as_on_cpu(function: Function, *arguments: Any) -> None:
    actual = jax.jit(function)(*arguments)
    for leaf in jax.tree.leaves(actual):
        assert leaf.devices() <= set(jax.devices("trn3"))
    expected = on_cpu(function, *arguments)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), actual, expected)


def devices(*ids: int) -> np.ndarray:
    return np.array([jax.devices()[i] for i in ids])


def auto(shape: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    kinds = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, axis_types=kinds)


# ---- Transformations and control flow ------------------------------------------------------------


def mlp(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "jit": (lambda x, y: jnp.tanh(x @ y) / (1 + x.sum()), array(5, 7), array(7, 3)),
    "grad": (jax.grad(mlp), [array(6, 8), array(8, 2)], array(4, 6)),
    "value_and_grad of grad": (jax.hessian(lambda x: jnp.sum(jnp.sin(x) * x[::-1])), array(5)),
    "vmap": (jax.vmap(mlp, in_axes=(None, 0)), [array(6, 6)], array(3, 4, 6)),
    "jvp": (lambda x, t: jax.jvp(jnp.cumprod, (x,), (t,)), array(9), array(9)),
    "scan": (lambda x: lax.scan(lambda c, a: (c * 0.5 + a, c), 0.0, x), array(20)),
    "grad of scan": (
        jax.grad(lambda x: lax.scan(lambda c, a: (jnp.sin(c + a), c), 0.0, x)[0]),
        array(20),
    ),
    "while_loop": (lambda n: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, 1)), 9),
    "fori_loop": (lambda x: lax.fori_loop(0, 10, lambda i, c: c + jnp.roll(c, i), x), array(7)),
    "cond": (lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), True, array(4)),
    "switch": (lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), 2, array(4)),
    "associative_scan": (lambda x: lax.associative_scan(jnp.maximum, x), array(33)),
    "remat": (jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x))))), array(5)),
    "gather and scatter": (lambda x, i: x[i].at[i].add(1.0), array(9), np.array([3, 3, 0])),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(x, w, (2, 2), "SAME"), array(2, 3, 9, 9), array(4, 3, 3, 3),
    ),
    "dot_general": (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), array(3, 4, 5), array(3, 6, 5)),
    "bfloat16": (lambda x: (x.astype(jnp.bfloat16) @ x.T.astype(jnp.bfloat16)), array(8, 8)),
    "reductions": (lambda x: (x.sum(0), x.max(1), x.argmin(), x.std(), jnp.median(x)), array(6, 5)),
    "special functions": (lambda x: (lax.erf(x), lax.lgamma(x), jax.nn.gelu(x)), array(30)),
    "top_k": (lambda x: lax.top_k(x, 3), array(4, 10)),
    "custom_vjp of softmax": (jax.grad(lambda x: jax.nn.softmax(x)[0]), array(8)),
    # Linear algebra, FFT, sort, random.
    "eigh": (lambda x: jnp.linalg.eigh(x @ x.T), array(6, 6)),
    "svd": (lambda x: jnp.linalg.svd(x, full_matrices=False), array(7, 4)),
    "qr": (jnp.linalg.qr, array(7, 4)),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(6)), array(6, 6)),
    "lu": (jax.scipy.linalg.lu, array(6, 6)),
    "solve": (jnp.linalg.solve, array(5, 5), array(5, 2)),
    "triangular_solve": (lambda a, b: jax.scipy.linalg.solve_triangular(a, b), array(5, 5), array(5)),
    "eig": (lambda x: jnp.linalg.eig(x), array(5, 5)),
    "schur": (jax.scipy.linalg.schur, array(4, 4)),
    "batched svd": (jax.vmap(lambda x: jnp.linalg.svd(x)[1]), array(3, 4, 4)),
    "grad of eigh": (jax.grad(lambda x: jnp.linalg.eigh(x + x.T)[0][0]), array(4, 4)),
    "fft": (jnp.fft.fft, array(3, 16)),
    "rfft2": (jnp.fft.rfft2, array(6, 10)),
    "irfft": (jnp.fft.irfft, array(9).astype(np.complex64)),
    "sort": (lambda x: jnp.sort(x, axis=0), array(50, 2)),
    "argsort, stable": (lambda x: jnp.argsort(jnp.round(x), stable=True), array(100)),
    "lexsort": (lambda x, y: jnp.lexsort((jnp.round(x), jnp.round(y))), array(60), array(60)),
    "random.normal": (lambda s: jax.random.normal(jax.random.key(s), (100,)), 3),
    "random.permutation": (lambda s: jax.random.permutation(jax.random.key(s), 50), 3),
    "random.gamma": (lambda s: jax.random.gamma(jax.random.key(s), 2.0, (20,)), 3),
    "random.categorical": (lambda s, x: jax.random.categorical(jax.random.key(s), x), 3, array(9)),
    "random, rbg": (lambda s: jax.random.bits(jax.random.key(s, impl="rbg"), (9,)), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_gives_what_it_gives_on_the_cpu(name: str) -> None:
    function, *arguments = PROGRAMS[name]
    same_as_on_cpu(function, *arguments)


def test_programs_without_jit_give_what_they_give_on_the_cpu() -> None:
    x = array(5, 5)
    actual = jnp.linalg.inv(jnp.asarray(x)) @ x + jnp.sort(x)[::-1]
    with jax.default_device(jax.devices("cpu")[0]):
        expected = jnp.linalg.inv(jnp.asarray(x)) @ x + jnp.sort(x)[::-1]
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


# ---- Outputs and donation ------------------------------------------------------------------------


def test_program_without_outputs() -> None:
    seen: list[int] = []
    jax.jit(lambda x: io_callback(lambda y: seen.append(int(y)), None, x.sum()))(np.arange(5))
    jax.effects_barrier()
    assert seen == [10]
    assert jax.jit(lambda x: None)(np.arange(5)) is None


def test_program_with_many_outputs() -> None:
    outputs = jax.jit(lambda x: [x + i for i in range(300)])(np.arange(3))
    assert len(outputs) == 300
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(np.asarray(output), np.arange(3) + i)


def test_program_with_many_arguments() -> None:
    values = [np.full(2, i) for i in range(300)]
    np.testing.assert_array_equal(np.asarray(jax.jit(sum)(values)), sum(values))


def test_output_that_is_an_argument() -> None:
    x = jnp.arange(4)
    y, z = jax.jit(lambda x: (x, x))(x)
    x.delete()
    np.testing.assert_array_equal(np.asarray(y), np.arange(4))
    y.delete()
    np.testing.assert_array_equal(np.asarray(z), np.arange(4))


def test_donated_argument_is_deleted_and_its_values_are_used() -> None:
    x, y = jnp.arange(6.0), jnp.ones(6)
    z = jax.jit(lambda x, y: x * 2 + y, donate_argnums=0)(x, y)
    assert x.is_deleted()
    assert not y.is_deleted()
    np.testing.assert_array_equal(np.asarray(z), np.arange(6.0) * 2 + 1)


def test_use_after_donation_raises_and_names_the_shape() -> None:
    x = jnp.arange(12.0).reshape(3, 4)
    program = jax.jit(lambda x: x + 1, donate_argnums=0)
    program(x)
    for use in (program, lambda x: x + 1, np.asarray):
        with pytest.raises((RuntimeError, ValueError), match=r"\[3,4\]") as error:
            use(x)
        assert "deleted" in str(error.value)


def test_donation_in_a_loop_gives_the_same_as_without() -> None:
    step = lambda x: jnp.sin(x) + 0.1  # noqa: E731
    donating, keeping = jax.jit(step, donate_argnums=0), jax.jit(step)
    x = y = jnp.arange(100.0)
    x = x + 0
    for _ in range(50):
        x, y = donating(x), keeping(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_donated_argument_that_is_used_twice_is_refused() -> None:
    x = jnp.arange(4.0)
    with pytest.raises((RuntimeError, ValueError), match="donate"):
        jax.jit(lambda x, y: x + y, donate_argnums=0)(x, x)


def test_shard_that_is_donated_by_itself_leaves_the_others() -> None:
    mesh = auto((8,), ("d",))
    x = jax.device_put(np.arange(8.0, dtype=F32), jax.NamedSharding(mesh, jax.P("d")))
    shards = [shard.data for shard in jax.jit(lambda x: x + 1)(x).addressable_shards]
    jax.jit(lambda x: x * 2, donate_argnums=0)(shards[0])
    assert [shard.is_deleted() for shard in shards] == [True] + [False] * 7
    np.testing.assert_array_equal([shard[0] for shard in shards[1:]], np.arange(2.0, 9.0))


def test_sharded_arguments_are_donated() -> None:
    mesh = auto((8,), ("d",))
    x = jax.device_put(np.arange(16.0, dtype=F32), jax.NamedSharding(mesh, jax.P("d")))
    y = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()
    np.testing.assert_array_equal(np.asarray(y), np.arange(16.0) + 1)


# ---- Several devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8])
def test_sharded_program_on_a_line_of_devices(size: int) -> None:
    mesh = jax.sharding.Mesh(devices(*range(size)), "d")
    x, w = array(8, 6), array(6, 16)
    put = lambda v, *spec: jax.device_put(v, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    y = jax.jit(lambda x, w: jnp.tanh(x @ w).sum(0))(put(x, "d"), put(w, None, "d"))
    assert len(y.sharding.device_set) == size
    np.testing.assert_allclose(np.asarray(y), np.tanh(x @ w).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8, 1)])
def test_sharded_program_on_a_grid_of_devices(shape: tuple[int, int]) -> None:
    mesh = auto(shape, ("a", "b"))
    x, w = array(8, 8), array(8, 8)
    sharded = jax.jit(
        jnp.matmul,
        in_shardings=(
            jax.NamedSharding(mesh, jax.P("a", "b")),
            jax.NamedSharding(mesh, jax.P("b")),
        ),
        out_shardings=jax.NamedSharding(mesh, jax.P("a", "b")),
    )
    y = sharded(x, w)
    assert y.addressable_shards[0].data.shape == (8 // shape[0], 8 // shape[1])
    np.testing.assert_allclose(np.asarray(y), x @ w, rtol=1e-5, atol=1e-5)


def test_sharding_constraint_inside_a_program() -> None:
    mesh = auto((4, 2), ("a", "b"))
    constraint = jax.NamedSharding(mesh, jax.P("b", "a"))
    x = array(8, 8)
    y = jax.jit(lambda x: lax.with_sharding_constraint(x * 2, constraint))(x)
    assert y.sharding.is_equivalent_to(constraint, 2)
    np.testing.assert_array_equal(np.asarray(y), x * 2)


def test_explicit_sharding_of_a_mesh_in_context() -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    x = array(8, 8)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: jnp.sin(x).T)(jax.device_put(x, jax.P("a", "b")))
    assert jax.typeof(y).sharding.spec == jax.P("b", "a")
    np.testing.assert_allclose(np.asarray(y), np.sin(x).T, rtol=1e-6)


def parts(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, 8)


# Each collective over 8 devices, and what numpy makes of the 8 parts of its argument (16, 8).
COLLECTIVES: dict[str, tuple[Function, Function]] = {
    "psum": (lambda x: lax.psum(x, "d"), lambda p: [sum(p)] * 8),
    "pmean": (lambda x: lax.pmean(x, "d"), lambda p: [sum(p) / 8] * 8),
    "pmax": (lambda x: lax.pmax(x, "d"), lambda p: [np.max(p, 0)] * 8),
    "pmin": (lambda x: lax.pmin(x, "d"), lambda p: [np.min(p, 0)] * 8),
    "all_gather": (lambda x: lax.all_gather(x, "d"), lambda p: [np.stack(p)] * 8),
    "all_gather, tiled": (
        lambda x: lax.all_gather(x, "d", axis=1, tiled=True),
        lambda p: [np.concatenate(p, 1)] * 8,
    ),
    "psum_scatter": (
        lambda x: lax.psum_scatter(x, "d", scatter_dimension=1, tiled=True),
        lambda p: np.split(sum(p), 8, axis=1),
    ),
    "ppermute": (
        lambda x: lax.ppermute(x, "d", [(i, (i + 3) % 8) for i in range(8)]),
        lambda p: [p[(i - 3) % 8] for i in range(8)],
    ),
    "ppermute, partial": (
        lambda x: lax.ppermute(x, "d", [(0, 5)]),
        lambda p: [p[0] if i == 5 else 0 * p[0] for i in range(8)],
    ),
    "all_to_all": (
        lambda x: lax.all_to_all(x, "d", split_axis=1, concat_axis=0, tiled=True),
        lambda p: [np.concatenate([np.split(q, 8, 1)[i] for q in p]) for i in range(8)],
    ),
    "axis_index": (
        lambda x: x + lax.axis_index("d"),
        lambda p: [q + i for i, q in enumerate(p)],
    ),
    "psum of groups": (
        lambda x: lax.psum(x, "d", axis_index_groups=[[0, 1, 2, 3], [4, 5, 6, 7]]),
        lambda p: [sum(p[:4])] * 4 + [sum(p[4:])] * 4,
    ),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collective_is_what_numpy_makes_of_the_parts(name: str) -> None:
    collective, expected = COLLECTIVES[name]
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    x = RANDOM.integers(-9, 9, (16, 8)).astype(F32)
    program = jax.jit(
        jax.shard_map(
            lambda x: collective(x)[None], mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
            check_vma=False,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(program(x)), np.stack(expected(parts(x))))


def test_collective_over_each_axis_of_a_grid() -> None:
    mesh = auto((2, 4), ("a", "b"))
    x = RANDOM.integers(-9, 9, (4, 8)).astype(F32)
    y = jax.jit(
        jax.shard_map(
            lambda x: (lax.psum(x, "a"), lax.psum(x, "b"), lax.psum(x, ("a", "b"))), mesh=mesh,
            in_specs=jax.P("a", "b"), out_specs=(jax.P(None, "b"), jax.P("a"), jax.P()),
        )
    )(x)  # fmt: skip
    blocks = x.reshape(2, 2, 4, 2)
    np.testing.assert_array_equal(np.asarray(y[0]), blocks.sum(0).reshape(2, 8))
    np.testing.assert_array_equal(np.asarray(y[1]), blocks.sum(2).reshape(4, 2))
    np.testing.assert_array_equal(np.asarray(y[2]), blocks.sum((0, 2)))


def test_shards_of_one_array_become_arguments_of_another_mesh() -> None:
    x = np.arange(16.0, dtype=F32)
    forward = jax.sharding.Mesh(devices(*range(8)), "d")
    backward = jax.sharding.Mesh(devices(*reversed(range(8))), "d")
    on_forward = jax.device_put(x, jax.NamedSharding(forward, jax.P("d")))
    pieces = {s.device: s.data for s in on_forward.addressable_shards}
    assembled = jax.make_array_from_single_device_arrays(
        (16,), jax.NamedSharding(backward, jax.P("d")), [pieces[d] for d in backward.devices]
    )
    y = jax.jit(lambda x: x * 2)(assembled)
    np.testing.assert_array_equal(np.asarray(y), x.reshape(8, 2)[::-1].ravel() * 2)
    np.testing.assert_array_equal(np.asarray(on_forward), x)  # untouched


def test_array_that_was_put_together_for_one_program_serves_others() -> None:
    x = array(16)
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    singles = [jax.device_put(part, d) for part, d in zip(parts(x), jax.devices(), strict=True)]
    whole = jax.make_array_from_single_device_arrays(
        (16,), jax.NamedSharding(mesh, jax.P("d")), singles
    )
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x + 1)(whole)), x + 1)
        for single, part in zip(singles, parts(x), strict=True):
            np.testing.assert_array_equal(np.asarray(single), part)
            np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x - 1)(single)), part - 1)


@pytest.mark.parametrize("ids", [(3,), (5, 1), (7, 0, 3, 2), (1, 3, 5, 7)], ids=str)
def test_program_runs_on_the_devices_of_its_arguments_in_their_order(ids: tuple[int, ...]) -> None:
    mesh = jax.sharding.Mesh(devices(*ids), "d")
    x = jax.device_put(np.arange(8), jax.NamedSharding(mesh, jax.P("d")))
    program = jax.shard_map(
        lambda x: x * 0 + lax.axis_index("d"), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")
    )
    y = jax.jit(program)(x)
    assert [s.device.id for s in sorted(y.addressable_shards, key=lambda s: s.index[0].start or 0)] == list(ids)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(y), np.repeat(np.arange(len(ids)), 8 // len(ids)))


def test_replicated_arrays_need_not_be_equal() -> None:
    mesh = jax.sharding.Mesh(devices(0, 1), "d")
    singles = [jax.device_put(np.full(2, i), d) for i, d in enumerate(mesh.devices)]
    x = jax.make_array_from_single_device_arrays((2,), jax.NamedSharding(mesh, jax.P()), singles)
    y = jax.jit(lambda x: x + 10)(x)
    np.testing.assert_array_equal([np.asarray(s.data) for s in y.addressable_shards], [[10] * 2, [11] * 2])  # fmt: skip


# ---- Layouts and precision -----------------------------------------------------------------------

ORDERS = [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)]


def formatted(order: tuple[int, ...], device: int = 0) -> Format:
    return Format(Layout(order), jax.sharding.SingleDeviceSharding(jax.devices()[device]))


def readings(x: jax.Array) -> list[np.ndarray]:
    """The values in every way they can be looked at."""
    elsewhere = [jax.device_put(x, d) for d in (jax.devices()[3], jax.devices("cpu")[0])]
    results = [x, x.addressable_shards[0].data, jax.jit(lambda x: x + 0)(x), *elsewhere]
    return [np.asarray(result) for result in results] + [np.array(x[1, :, 1:])]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_result_in_any_layout_has_its_values(order: tuple[int, ...]) -> None:
    x = array(2, 3, 4)
    y = jax.jit(lambda x: x * 2, out_shardings=formatted(order))(x)
    assert y.format.layout.major_to_minor == order
    *same, part = readings(y)
    for values in same:
        np.testing.assert_array_equal(values, x * 2)
    np.testing.assert_array_equal(part, x[1, :, 1:] * 2)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_transfer_into_any_layout_keeps_the_values(order: tuple[int, ...]) -> None:
    x = array(2, 3, 4)
    *same, part = readings(jax.device_put(x, formatted(order)))
    for values in same:
        np.testing.assert_array_equal(values, x)
    np.testing.assert_array_equal(part, x[1, :, 1:])


def test_program_takes_an_argument_in_its_layout() -> None:
    x, order = array(2, 3, 4), formatted((2, 0, 1))
    y = jax.jit(lambda x: x + 1, out_shardings=order)(x)
    z = jax.jit(lambda y: y * 2, in_shardings=order)(y)
    np.testing.assert_array_equal(np.asarray(z), (x + 1) * 2)


def test_layout_that_the_compiler_chooses_keeps_the_values() -> None:
    x, y = array(3, 4, 5), array(3, 5, 6)
    auto = Format(Layout.AUTO, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    program = jax.jit(lambda x, y: jnp.einsum("bij,bjk->kib", x, y), out_shardings=auto)
    z = program.lower(x, y).compile()(x, y)
    np.testing.assert_allclose(np.asarray(z), np.einsum("bij,bjk->kib", x, y), 1e-5, 1e-5)


@pytest.mark.parametrize(
    "precision",
    ["F32_F32_F32", "BF16_BF16_F32", "BF16_BF16_F32_X9", "TF32_TF32_F32", "TF32_TF32_F32_X3"],
)
def test_dot_algorithm_is_not_limited_to_those_of_the_cpu(precision: str) -> None:
    x = jnp.ones((4, 8))
    y = lax.dot(x, x.T, precision=lax.DotAlgorithmPreset[precision])
    np.testing.assert_array_equal(np.asarray(y), np.full((4, 4), 8))


# ---- Ahead of time -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((64, 64), F32)
    return jax.jit(lambda x, y: jnp.sin(x @ y)).lower(shape, shape).compile()


def test_program_compiled_ahead_of_time_runs(compiled: jax.stages.Compiled) -> None:
    x, y = array(64, 64), array(64, 64)
    expected = on_cpu(lambda x, y: jnp.sin(x @ y), x, y)
    np.testing.assert_array_equal(np.asarray(compiled(x, y)), expected)


def test_cost_analysis_counts_the_flops(compiled: jax.stages.Compiled) -> None:
    assert compiled.cost_analysis()["flops"] == 2 * 64**3


def test_memory_analysis_knows_arguments_and_outputs(compiled: jax.stages.Compiled) -> None:
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == 2 * 64 * 64 * 4
    assert memory.output_size_in_bytes == 64 * 64 * 4
    assert memory.alias_size_in_bytes == 0


def test_memory_analysis_knows_donated_bytes() -> None:
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((64,), F32))
    assert program.compile().memory_analysis().alias_size_in_bytes == 256


def test_optimized_program_can_be_read(compiled: jax.stages.Compiled) -> None:
    text = compiled.as_text()
    assert text.startswith("HloModule")
    assert "f32[64,64]" in text
    assert "dot" in text


def test_shardings_of_a_compiled_program() -> None:
    sharding = jax.NamedSharding(auto((8,), ("d",)), jax.P("d"))
    x = jax.ShapeDtypeStruct((16,), F32, sharding=sharding)
    program = jax.jit(lambda x: x + 1).lower(x).compile()
    (ins, _), outs = program.input_shardings, program.output_shardings
    assert ins[0].is_equivalent_to(sharding, 1)
    assert outs.is_equivalent_to(sharding, 1)
    assert "num_partitions=8" in program.as_text()


def test_exported_program_runs() -> None:
    x = array(5)
    exported = jax.export.export(jax.jit(jnp.cumsum))(x)
    assert exported.platforms == ("trn3",)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(np.asarray(again.call(x)), on_cpu(jnp.cumsum, x))


# ---- Callbacks -----------------------------------------------------------------------------------


def test_debug_print_prints_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    @jax.jit
    def program(x: jax.Array) -> None:
        for i in range(5):
            jax.debug.print("{} {}", i, x.sum(), ordered=True)

    program(np.arange(3))
    jax.effects_barrier()
    assert capfd.readouterr().out.split("\n")[:5] == [f"{i} 3" for i in range(5)]


def test_pure_callback_sees_and_gives_values() -> None:
    x = array(3, 4)
    shape = jax.ShapeDtypeStruct((4, 3), F32)
    y = jax.jit(lambda x: jax.pure_callback(lambda x: np.asarray(x).T * 2, shape, x) + 1)(x)
    np.testing.assert_array_equal(np.asarray(y), x.T * 2 + 1)


def test_pure_callback_under_vmap_and_in_a_loop() -> None:
    def double(x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x * 2, shape, x, vmap_method="sequential")

    x = np.arange(4.0, dtype=F32)
    np.testing.assert_array_equal(np.asarray(jax.vmap(double)(x)), x * 2)
    looped = jax.jit(lambda x: lax.fori_loop(0, 5, lambda i, x: double(x), x))
    np.testing.assert_array_equal(np.asarray(looped(x)), x * 2**5)


def test_pure_callback_on_each_device_sees_its_part() -> None:
    mesh = jax.sharding.Mesh(devices(*range(4)), "d")
    shape = jax.ShapeDtypeStruct((2,), F32)
    program = jax.shard_map(
        lambda x: jax.pure_callback(lambda x: np.asarray(x) - np.asarray(x).min(), shape, x),
        mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
    )  # fmt: skip
    y = jax.jit(program)(np.array([5, 9, 1, 2, 7, 7, 8, 0], F32))
    np.testing.assert_array_equal(np.asarray(y), [0, 4, 0, 1, 0, 0, 8, 0])


def test_ordered_io_callbacks_come_in_order() -> None:
    seen: list[int] = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        def body(i: int, x: jax.Array) -> jax.Array:
            io_callback(lambda i: seen.append(int(i)), None, i, ordered=True)
            return x + i

        return lax.fori_loop(0, 20, body, x)

    results = [program(np.int32(k)) for k in range(3)]
    jax.effects_barrier()
    assert [int(r) for r in results] == [190, 191, 192]
    assert seen == list(range(20)) * 3


def test_io_callback_gives_values() -> None:
    shape = jax.ShapeDtypeStruct((), np.int32)
    counter = iter(range(100, 200))
    program = jax.jit(lambda: io_callback(lambda: np.int32(next(counter)), shape, ordered=True))
    assert [int(program()) for _ in range(3)] == [100, 101, 102]


@pytest.fixture
def forget_effects() -> Iterator[None]:
    """JAX keeps the error of a failed callback and raises it at every later effects_barrier()."""
    yield
    dispatch.runtime_tokens.clear()


@pytest.mark.usefixtures("forget_effects")
@pytest.mark.parametrize("size", [1, 2])
def test_exception_in_a_callback_reaches_the_user_with_its_text(size: int) -> None:
    def fail(x: Any) -> Any:
        raise ZeroDivisionError("the reason of the callback")

    mesh = jax.sharding.Mesh(devices(*range(size)), "d")
    program = jax.shard_map(
        lambda x: jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"),
    )  # fmt: skip
    with pytest.raises(jax.errors.JaxRuntimeError, match="the reason of the callback"):
        jax.block_until_ready(jax.jit(program)(np.arange(4.0)))
    assert int(jnp.add(1, 2)) == 3


def test_callback_may_use_the_platform() -> None:
    inner = jax.jit(lambda x: x * 3)
    shape = jax.ShapeDtypeStruct((2,), F32)
    y = jax.jit(lambda x: jax.pure_callback(lambda x: np.asarray(inner(np.asarray(x))), shape, x))(
        np.ones(2, F32)
    )
    np.testing.assert_array_equal(np.asarray(y), [3, 3])


def test_checkify_reports_the_failed_check() -> None:
    def program(x: jax.Array) -> jax.Array:
        checkify.check(x.min() > 0, "not positive: {x}", x=x.min())
        return jnp.log(x)

    error, _ = jax.jit(checkify.checkify(program))(np.array([1.0, -2.0], F32))
    assert "not positive: -2" in error.get()
    error, y = jax.jit(checkify.checkify(program))(np.ones(2, F32))
    assert error.get() is None
    np.testing.assert_array_equal(np.asarray(y), [0, 0])


# ---- The user's settings -------------------------------------------------------------------------


def test_x64_of_the_user_reaches_the_program_and_not_the_engine() -> None:
    x = np.array([1, 2**40])
    with jax.enable_x64(True):
        y = jax.jit(lambda x: x + 1)(x)
        assert y.dtype == np.int64
        np.testing.assert_array_equal(np.asarray(y), x + 1)
        z = jax.device_put(y, jax.devices()[3])
    assert z.dtype == np.int64  # 64 bits stay 64 bits outside
    np.testing.assert_array_equal(np.asarray(z), x + 1)
    assert jax.jit(lambda x: x + 1)(np.arange(3)).dtype == np.int32


def test_transfer_guard_of_the_user_does_not_stop_the_engine() -> None:
    mesh = jax.sharding.Mesh(devices(*range(8)), "d")
    x = array(16)
    with jax.transfer_guard("disallow"):
        one = jax.device_put(x, jax.devices()[1])
        two = jax.device_put(one, jax.devices()[2])
        many = jax.device_put(x, jax.NamedSharding(mesh, jax.P("d")))
        sums = [jax.jit(lambda x: x + x)(v) for v in (one, two, many)]
        donated = jax.jit(lambda x: x * 2, donate_argnums=0)(one)
        results = [jax.device_get(v) for v in (*sums, donated)]
    for result in results:
        np.testing.assert_array_equal(result, x + x)


def test_transfer_guard_of_the_user_stops_the_user() -> None:
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="isallow"):
        jnp.sin(np.ones(3)).block_until_ready()


def test_default_device_of_the_user_is_where_programs_run() -> None:
    with jax.default_device(jax.devices()[4]):
        assert jax.jit(lambda: jnp.ones(3) + 1)().devices() == {jax.devices()[4]}
    with jax.default_device(jax.devices("cpu")[0]):
        y = jax.device_put(np.ones(3), jax.devices("trn3")[2])
        assert (y + 1).devices() == {jax.devices("trn3")[2]}


def test_debug_nans_of_the_user_works() -> None:
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        jax.jit(jnp.log)(np.float32(-1)).block_until_ready()


def test_executable_that_was_loaded_is_serialized_and_loaded_again() -> None:
    program = jax.jit(lambda x: jnp.sin(x) * x + 1).lower(jnp.arange(4.0)).compile()
    for _ in range(3):
        parts = serialize_executable.serialize(program)
        program = serialize_executable.deserialize_and_load(
            *parts, execution_devices=jax.devices()[:1]
        )
        x = np.arange(4, dtype=F32)
        np.testing.assert_allclose(np.asarray(program(x)), np.sin(x) * x + 1, rtol=1e-6)
