"""Kernels are told apart by all that their time and their lines depend on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import pallas_trn3 as pltrn
from pallas_trn3.kernel import Kernel
from pallas_trn3.registry import KERNELS, remember
from pallas_trn3.timing import kernel_of_function

X = jax.ShapeDtypeStruct((128, 64), jnp.float32)


def made(scratch: Any, **params: Any) -> Kernel:
    def kernel(x_ref: Any, o_ref: Any, tile: Any) -> None:
        tile[...] = x_ref[...]
        o_ref[...] = tile[...]

    call = pl.pallas_call(
        kernel,
        out_shape=X,
        scratch_shapes=[scratch],
        compiler_params=pltrn.CompilerParams(**params),
    )
    return kernel_of_function(call, X)


def in_a_scope(address: tuple[int, int] | None) -> Kernel:
    def kernel(x_ref: Any, o_ref: Any) -> None:
        def inner(tile: Any) -> None:
            tile[...] = x_ref[...]
            o_ref[...] = tile[...]

        pl.run_scoped(inner, pltrn.SBUF((128, 64), jnp.float32, address=address))

    return kernel_of_function(pl.pallas_call(kernel, out_shape=X), X)


def on_another_line() -> Kernel:
    def kernel(x_ref: Any, o_ref: Any, tile: Any) -> None:
        tile[...] = x_ref[...]
        o_ref[...] = tile[...]

    params = pltrn.CompilerParams()
    scratch = [pltrn.SBUF((128, 64), jnp.float32)]
    call = pl.pallas_call(kernel, out_shape=X, scratch_shapes=scratch, compiler_params=params)
    return kernel_of_function(call, X)


def test_keys() -> None:
    plain = pltrn.SBUF((128, 64), jnp.float32)
    at = [pltrn.SBUF((128, 64), jnp.float32, address=(0, byte)) for byte in (0, 1024)]
    psum = pltrn.PSUM((128, 64), jnp.float32)
    kernels = [
        made(plain),
        made(plain, synchronization="explicit"),
        *map(made, at),
        made(psum),
        in_a_scope(None),
        in_a_scope((0, 0)),
        in_a_scope((0, 1024)),
        on_another_line(),
    ]
    keys = [remember(kernel) for kernel in kernels]
    assert len(set(keys)) == len(kernels)
    assert all(KERNELS[key] is kernel for key, kernel in zip(keys, kernels))
    assert remember(made(plain)) == keys[0]
