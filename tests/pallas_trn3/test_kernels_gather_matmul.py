"""all_gather_matmul: as all_gather and a product, under shard_map, with derivatives."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_trn3.kernels import all_gather_matmul, all_gather_matmul_reference

DEVICES = 4


def sharded(function: Any, check_vma: bool) -> Any:
    mesh = Mesh(np.array(jax.devices("trn3")[:DEVICES]), ("t",))
    return jax.jit(
        jax.shard_map(
            partial(function, axis_name="t"),
            mesh=mesh,
            in_specs=(P("t"), P(None, "t")),
            out_specs=P(None, "t"),
            check_vma=check_vma,
        )
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_values_and_derivatives(check_vma: bool) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(DEVICES * 30, 50)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(50, DEVICES * 20)), jnp.float32)
    found = sharded(all_gather_matmul, check_vma)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    np.testing.assert_allclose(found(x, y), exact, atol=1e-4)
    wanted = sharded(all_gather_matmul_reference, check_vma)
    np.testing.assert_allclose(found(x, y), wanted(x, y), atol=1e-4)

    def slopes(product: Any) -> Any:
        return jax.grad(lambda x, y: jnp.sum(jnp.sin(product(x, y))), argnums=(0, 1))(x, y)

    for one, other in zip(slopes(found), slopes(wanted)):
        np.testing.assert_allclose(one, other, atol=1e-3)
