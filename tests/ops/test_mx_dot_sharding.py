"""mx_dot_general over several devices: the partitioner, explicit mesh axes, shard_map."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from mx_dot_oracle import MATMUL, normal

from jax_trn3 import mx_dot_general, sparse_dot_general


def make_mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("x",), devices=jax.devices("trn3")[:4], axis_types=(kind,))


def gradients(x: jax.Array, w: jax.Array, **options: Any) -> Any:
    loss = lambda x, w: (mx_dot_general(x, w, MATMUL, **options) ** 2).sum()  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(x, w)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(None, "x"), P("x")), (P("x"), P(None, "x"))])
def test_sharded_jit(specs: tuple[P, P]) -> None:
    """The partitioner's axes; that of the contraction in shards of full blocks, and that not."""
    mesh = make_mesh(AxisType.Auto)
    for contraction in (128, 40) if specs[0] == P(None, "x") else (128,):
        x, w = normal(64, contraction), normal(contraction, 32)
        sharded = [jax.device_put(a, jax.NamedSharding(mesh, s)) for a, s in zip((x, w), specs)]
        out = jax.jit(lambda x, w: mx_dot_general(x, w, MATMUL))(*sharded)
        np.testing.assert_allclose(out, mx_dot_general(x, w, MATMUL), atol=1e-4)
        chex.assert_trees_all_close(
            jax.jit(gradients)(*sharded), jax.jit(gradients)(x, w), rtol=1e-4, atol=2e-2
        )


@pytest.mark.parametrize(
    ("specs", "out_spec"),
    [
        ((P("x", None), P(None, None)), None),
        ((P(None, "x"), P("x", None)), P(None, None)),
        ((P(None, None), P(None, "x")), None),
    ],
)
def test_explicit_mesh_axes(specs: tuple[P, P], out_spec: P | None) -> None:
    mesh = make_mesh(AxisType.Explicit)
    x, w = normal(128, 128), normal(128, 128)
    expected = jax.jit(gradients)(x, w)
    with jax.set_mesh(mesh):
        sharded = [jax.device_put(a, s) for a, s in zip((x, w), specs)]
        out = mx_dot_general(*sharded, MATMUL, out_sharding=out_spec)
        plain = lax.dot_general(*sharded, MATMUL, out_sharding=out_spec)
        assert jax.typeof(out) == jax.typeof(plain)
        actual = jax.jit(lambda x, w: gradients(x, w, out_sharding=out_spec))(*sharded)
        batched = jax.vmap(lambda x: mx_dot_general(x, sharded[1], MATMUL, out_sharding=out_spec))
        assert batched(jnp.stack([sharded[0]] * 2)).shape == (2, 128, 128)
    assert [jax.typeof(a).sharding.spec for a in actual[1]] == list(specs)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "product", [mx_dot_general, functools.partial(sparse_dot_general, pattern="2:4")]
)
def test_explicit_axis_of_what_is_mapped_beside_a_spec_that_ends_early(
    product: Callable[..., jax.Array],
) -> None:
    mesh = jax.make_mesh(
        (2, 2), ("x", "y"), devices=jax.devices("trn3")[:4], axis_types=(AxisType.Explicit,) * 2
    )
    with jax.set_mesh(mesh):
        x = jax.device_put(normal(64, 32), P("x"))
        ws = jax.device_put(normal(32, 16, 4), P(None, None, "y"))
        dot = lambda x, w: product(x, w, MATMUL, out_sharding=P("x"))  # noqa: E731
        mapped = jax.vmap(dot, (None, 2), 2)(x, ws)
        assert jax.typeof(mapped).sharding.spec == P("x", None, "y")
    expected = [product(np.asarray(x), np.asarray(ws)[..., i], MATMUL) for i in range(4)]
    np.testing.assert_allclose(mapped, np.stack(expected, 2), atol=1e-4)


def test_explicit_axis_across_a_block_boundary_is_an_error() -> None:
    with jax.set_mesh(make_mesh(AxisType.Explicit)):
        x = jax.device_put(normal(8, 96), P(None, "x"))
        w = jax.device_put(normal(96, 8), P("x", None))
        with pytest.raises(ValueError, match="across the boundary of a block of 32"):
            mx_dot_general(x, w, MATMUL, out_sharding=P(None, None))


def test_shard_map() -> None:
    mesh = make_mesh(AxisType.Auto)
    x, w = normal(128, 128), normal(128, 32)

    def body(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(mx_dot_general(x, w, MATMUL), "x")

    contracted = jax.shard_map(body, mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P())
    np.testing.assert_allclose(
        jax.jit(contracted)(x, w), mx_dot_general(x, w, MATMUL), rtol=1e-4, atol=1e-4
    )

    def data_parallel(x: jax.Array, w: jax.Array) -> jax.Array:
        loss = lambda x, w: lax.psum((mx_dot_general(x, w, MATMUL) ** 2).sum(), "x")  # noqa: E731
        return jax.shard_map(loss, mesh=mesh, in_specs=(P("x"), P()), out_specs=P())(x, w)

    # the shards are full blocks of what the gradients contract
    actual = jax.jit(jax.value_and_grad(data_parallel, (0, 1)))(x, w)
    chex.assert_trees_all_close(actual, jax.jit(gradients)(x, w), rtol=1e-4, atol=5e-2)
