"""Attention as programs write it, run on trn3 and on the CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.interpreters import mlir

from jax_trn3.compiler import Program
from jax_trn3.compiler.attention_rewrite import NAME, rewrite_attention

Function = Callable[..., Any]

QUERIES = (1, 320, 2, 16)  # batch, length, heads, size; 320 is five blocks of rows


def randoms(*shapes: tuple[int, ...], dtype: Any = jnp.float32) -> list[Any]:
    draw = np.random.default_rng(0).standard_normal
    return [jnp.asarray(draw(shape), dtype) for shape in shapes]


def run(function: Function, arguments: list[Any], platform: str) -> list[np.ndarray]:
    there = jax.device_put(arguments, jax.devices(platform)[0])
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(jax.jit(function)(*there))]


def assert_as_on_cpu(function: Function, arguments: list[Any], tolerance: float = 1e-5) -> None:
    expected, got = run(function, arguments, "cpu"), run(function, arguments, "trn3")
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance * max(np.nanmax(np.abs(e)), 1e-6))


def gradients(function: Function) -> Function:
    """value_and_grad by every argument of a loss that depends on all of the output."""

    def loss(*arguments: Any) -> Any:
        return (function(*arguments).astype(jnp.float32) ** 2).sum()

    def both(*arguments: Any) -> Any:
        return jax.value_and_grad(loss, tuple(range(len(arguments))))(*arguments)

    return both


def program(function: Function, arguments: list[Any]) -> Program:
    lowered = jax.jit(function).lower(*arguments)
    return Program(mlir.module_to_bytecode(lowered.compiler_ir("stablehlo")))


def count(function: Function, arguments: list[Any]) -> int:
    """How many operations of a function's program become attention."""
    text = str(rewrite_attention(program(function, arguments)).module())
    return text.count(f'stablehlo.composite "{NAME}"')


def nn(**options: Any) -> Function:
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options)


def chain(q: Any, k: Any, v: Any) -> Any:
    """The textbook's, with a mask of -inf."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)
