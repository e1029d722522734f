"""Programs on trn3 against the same programs on the CPU backend, or against numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_cpu import F32, array, auto, same_as_on_cpu
from jax import lax
from jax.experimental import io_callback
from jax.experimental.layout import Format, Layout

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
