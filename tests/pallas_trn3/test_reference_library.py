"""The library's kernels: compiled values are the reference executor's, bit for bit, and no check
finds anything in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_trn3 import kernels
from pallas_trn3.kernel import kernel_of
from pallas_trn3.reference import run
from pallas_trn3.rewrite import programs

RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RANDOM.normal(size=shape).astype(dtype)


def narrow(*shape):
    return normal(*shape, dtype=jnp.bfloat16)


def attended(query, key, value):
    return kernels.flash_attention(query, key, value, causal=True)


CASES = {
    "softmax": (kernels.softmax, normal(128, 256)),
    "softmax, derivative": (jax.grad(lambda x: (kernels.softmax(x) ** 2).sum()), normal(128, 256)),
    "layernorm": (kernels.layernorm, narrow(128, 256), normal(256), normal(256)),
    "rmsnorm, quantized": (kernels.rmsnorm_mx, narrow(128, 512), normal(512)),
    "matmul": (kernels.matmul, narrow(128, 256), narrow(256, 512)),
    "swiglu": (kernels.swiglu, narrow(128, 128), narrow(128, 256), narrow(128, 256), narrow(256, 128)),
    "flash attention": (attended, *(narrow(1, 128, 1, 64) for _ in range(3))),
    "top 8": (lambda x: kernels.top_k(x, 8), normal(128, 256)),
    "transpose": (kernels.transpose, narrow(128, 256)),
}  # fmt: skip


def kernels_in(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in programs(equation):
                yield from kernels_in(inner)


def numbers(aval):
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return normal(*aval.shape, dtype=aval.dtype)
    return RANDOM.integers(0, 3, size=aval.shape).astype(aval.dtype)


@pytest.mark.parametrize("name", CASES)
def test_bits_of_the_library(name):
    function, *operands = CASES[name]
    found = list(kernels_in(jax.make_jaxpr(function)(*operands).jaxpr))
    assert found
    for equation in found:
        inputs = [numbers(v.aval) for v in equation.invars]
        compiled = jax.jit(lambda *xs, e=equation: e.primitive.bind(*xs, **e.params))(*inputs)
        executed = run(kernel_of(**equation.params), inputs, check=True)
        for theirs, ours in zip(compiled, executed, strict=True):
            np.testing.assert_array_equal(
                np.asarray(theirs).astype(np.float64), ours.astype(np.float64)
            )
