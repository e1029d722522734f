"""Kernels for rows: how rows are cut into blocks, and the kernels under shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pallas_trn3 import kernels
from pallas_trn3.kernels.rows import Cut, cut


@pytest.mark.parametrize(
    ("rows", "loaded", "wanted"),
    [
        (16_384, 8_192, Cut(4, 3)),  # 32 KiB of each partition loaded at a time
        (16_384, 1_024, Cut(16, 3)),
        (1_024, 1_024, Cut(2, 3)),  # four blocks at least
        (300, 1_024, Cut(1, 3)),
        (128 * 5 * 7, 1_024, Cut(7, 3)),  # whole blocks, so that none goes over the edge
        (16_384, 56_000, Cut(1, 2)),  # no room for a third buffer
    ],
)
def test_blocks_are_long_and_fit(rows, loaded, wanted):
    assert cut("kernel", rows, loaded, loaded // 4) == wanted


def test_scratch_takes_room_of_blocks():
    assert cut("kernel", 16_384, 4_096, 4_096, held=20_000) == Cut(4, 3)
    assert cut("kernel", 16_384, 4_096, 4_096, fixed=150_000) == Cut(2, 3)
    with pytest.raises(ValueError, match="kernel: a row takes 217000 bytes"):
        cut("kernel", 16_384, 5_000, 1_000, fixed=210_000)


def _mapped(function, *operands, specs):
    mesh = Mesh(np.array(jax.devices("trn3")[:4]), ("d",))
    over = PartitionSpec("d")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=over))(*operands)


def test_under_shard_map():
    x = jax.random.normal(jax.random.key(0), (40, 16))
    over = PartitionSpec("d")
    found = _mapped(kernels.softmax, x, specs=over)
    np.testing.assert_allclose(found, kernels.softmax_reference(x), rtol=1e-6)
    cos, sin = kernels.rope_angles(jnp.arange(5), 8)
    q = x.reshape(8, 5, 2, 8)
    found = _mapped(lambda q: kernels.rope(q, cos, sin), q, specs=over)
    np.testing.assert_allclose(found, kernels.rope_reference(q, cos, sin), rtol=1e-6, atol=1e-6)


def test_derivatives_by_what_all_devices_share_are_added_up():
    x = jax.random.normal(jax.random.key(0), (40, 16))
    weight = jnp.linspace(0.5, 2, 16)
    specs = PartitionSpec("d"), PartitionSpec()

    def loss(weight):
        return (_mapped(kernels.rmsnorm, x, weight, specs=specs) ** 2).sum()

    found = jax.grad(loss)(weight)
    wanted = jax.grad(lambda w: (kernels.rmsnorm_reference(x, w) ** 2).sum())(weight)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
