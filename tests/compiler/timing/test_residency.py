"""What lies in HBM at the same time, against counting by hand."""

import jax
import jax.numpy as jnp

from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.residency import Residency, residency

MIB = 2**20
X = jax.ShapeDtypeStruct((512, 512), jnp.float32)  # 1 MiB


def peak(fun, *shapes, **options) -> Residency:
    lowered = jax.jit(fun, **options).trace(*shapes).lower(lowering_platforms=("trn3",))
    return residency(device_program(lowered.compiler_ir("stablehlo")))


def test_parameters_and_results() -> None:
    assert peak(lambda x: x @ x, X).peak_bytes == 2 * MIB
    assert peak(lambda x, y: x @ y, X, X).peak_bytes == 3 * MIB


def test_what_is_fused_is_never_there() -> None:
    assert peak(lambda x: jnp.tanh(jnp.exp(x) + 1) * 2, X).peak_bytes == 2 * MIB


def test_what_is_between_products_goes_when_it_was_read() -> None:
    # x stays, a product is there while the next one is made of it.
    assert peak(lambda x: ((x @ x) @ x) @ x, X).peak_bytes == 3 * MIB


def test_donated_memory_is_used_again() -> None:
    assert peak(lambda x: x + 1, X).peak_bytes == 2 * MIB
    assert peak(lambda x: x + 1, X, donate_argnums=0).peak_bytes == MIB


def test_a_loop_keeps_what_it_carries_in_place() -> None:
    def f(x, w):
        return jax.lax.fori_loop(0, 10, lambda i, x: x @ w, x)

    # x, w, what is carried, and the product that takes its place.
    assert peak(f, X, X).peak_bytes // MIB == 4
    assert peak(f, X, X, donate_argnums=0).peak_bytes // MIB == 3


def test_scanned_weights_are_there_once() -> None:
    stacked = jax.ShapeDtypeStruct((16, 512, 512), jnp.float32)

    def f(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert 18 * MIB <= peak(f, X, stacked).peak_bytes <= 21 * MIB


def test_saved_activations_grow_with_layers_unless_recomputed() -> None:
    def loss(w, x, layer):
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0])

    def wide(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    def step(layer):
        return lambda w, x: jax.grad(lambda w: loss(w, x, layer))(w)

    stacked = jax.ShapeDtypeStruct((16, 512, 512), jnp.float32)
    saved = peak(step(wide), stacked, X).peak_bytes
    again = peak(step(jax.checkpoint(wide)), stacked, X).peak_bytes
    assert saved - again >= 8 * MIB


def test_the_largest_are_named() -> None:
    result = peak(lambda x, y: (x @ x) @ y, X, jax.ShapeDtypeStruct((512, 2048), jnp.float32))
    first = result.largest[0]
    assert (first.bytes, first.shape, first.dtype) == (4 * MIB, (512, 2048), "f32")
    assert {value.what for value in result.largest} >= {"parameter 0", "parameter 1"}
    assert any(value.source.file.endswith("test_residency.py") for value in result.largest)
