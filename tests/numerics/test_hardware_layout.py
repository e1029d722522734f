"""The layout in SBUF, against loops written from the SDK's description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_trn3 import numerics
from jax_trn3.numerics import hardware_layout as hw


def values(k, f):
    return np.arange(k * f, dtype=np.float32).reshape(k, f)


@pytest.mark.parametrize("partitions", [32, 64, 96, 128])
def test_quads(partitions):
    x, f = values(4 * partitions, 6), 6
    tile = np.asarray(jax.jit(hw.to_quads)(x))
    assert tile.shape == (partitions, 4 * f)
    for q in range(4):
        for p in range(0, partitions, 7):
            np.testing.assert_array_equal(tile[p, q::4], x[q * partitions + p])
    np.testing.assert_array_equal(hw.from_quads(tile), x)
    np.testing.assert_array_equal(hw.blocks_to_quads(hw.quads_to_blocks(tile)), tile)


@pytest.mark.parametrize("partitions", [32, 128])
def test_a_block_is_8_partitions_of_4_slots(partitions):
    k = 4 * partitions
    tile = hw.to_quads(values(k, 1))  # the value is its own index along K
    blocks = np.asarray(hw.quads_to_blocks(tile))[:, 0].reshape(-1, 32).astype(int)
    for g, block in enumerate(blocks):
        assert set(block) == {q * partitions + 8 * g + i for q in range(4) for i in range(8)}


def test_quantizing_blocks_gives_one_scale_to_8_partitions_and_4_slots():
    x = np.random.default_rng(0).standard_normal((256, 5)).astype(np.float32)
    tile = np.asarray(hw.to_quads(x))
    data, scale = jax.jit(lambda t: numerics.quantize(hw.quads_to_blocks(t), axis=0))(tile)
    assert scale.shape == (8, 5)
    for g in range(8):
        for f in range(5):
            amax = np.abs(tile[8 * g : 8 * g + 8, 4 * f : 4 * f + 4]).max()
            assert float(scale[g, f]) == 2.0 ** (np.floor(np.log2(amax)) - 8)
    quads = hw.blocks_to_quads(data)
    words = hw.pack_x4(quads)
    assert (words.shape, words.dtype) == ((64, 5), jnp.uint32)
    first = np.asarray(quads).view(np.uint8)[3, 4:8]
    assert int(words[3, 1]) == sum(int(byte) << (8 * q) for q, byte in enumerate(first))
    back = hw.unpack_x4(words, data.dtype)
    np.testing.assert_array_equal(np.asarray(back).view(np.uint8), np.asarray(quads).view(np.uint8))


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
@pytest.mark.parametrize("partitions", [32, 64, 128])
def test_scales_scattered_over_quadrants(partitions, offset):
    scales = np.arange(partitions // 8 * 3, dtype=np.uint8).reshape(-1, 3) + 1
    tile = np.asarray(jax.jit(hw.scatter_scales, static_argnums=1)(scales, offset))
    wanted = np.zeros((partitions, 3), np.uint8)
    for row in range(partitions // 8):  # mx_cpu_utils of AWS's nki-samples
        wanted[row // 4 * 32 + row % 4 + offset] = scales[row]
    np.testing.assert_array_equal(tile, wanted)
    np.testing.assert_array_equal(hw.gather_scales(tile, offset), scales)


def test_four_tensors_share_a_scale_tile():
    parts = [jnp.full((16, 2), 127 + i, jnp.uint8).view(jnp.float8_e8m0fnu) for i in range(4)]
    tile = None
    for part, offset in zip(parts, hw.SCALE_OFFSETS):
        tile = hw.scatter_scales(part, offset, tile)
    for i, offset in enumerate(hw.SCALE_OFFSETS):
        assert (np.asarray(hw.gather_scales(tile, offset)).astype(np.float32) == 2.0**i).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hw.to_quads(values(130, 2)), ValueError, "a fraction"),
        (lambda: hw.to_quads(values(64, 2)), ValueError, "16 partitions; allowed are multiples of 32"),
        (lambda: hw.to_quads(values(1024, 2)), ValueError, "256 partitions"),
        (lambda: hw.to_quads(np.zeros(128)), ValueError, "two dimensions"),
        (lambda: hw.from_quads(values(32, 6)), ValueError, "multiple of 4"),
        (lambda: hw.pack_x4(values(32, 4)), TypeError, "8 bits"),
        (lambda: hw.unpack_x4(values(32, 4), jnp.int8), TypeError, "uint32"),
        (lambda: hw.scatter_scales(np.zeros((4, 2), np.uint8), 3), ValueError, "offset 3"),
        (lambda: hw.scatter_scales(values(4, 2)), TypeError, "float8_e8m0fnu and uint8"),
        (lambda: hw.gather_scales(values(32, 2), 16), ValueError, "offset 16"),
        (lambda: hw.scatter_scales(np.zeros((4, 2), np.uint8), 0, values(64, 2)), ValueError, "need uint8"),
    ],
)  # fmt: skip
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
