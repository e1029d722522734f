"""The smallest program: which devices there are, and a matmul on one of them."""

import jax
import jax.numpy as jnp

print(jax.devices())

matmul = jax.jit(jnp.matmul)
x = jnp.arange(6.0).reshape(2, 3)
print(matmul(x, x.T))
