"""DMA instructions: meaning against numpy, limits, and the time that published figures give."""

import dataclasses
import math

import isa_cases
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_cases import CORES, V2, V3, V4, bits, float64, hbm, problems, psum, sbuf, tile, values

from jax_trn3.isa import Tile, execute
from jax_trn3.isa.dma import dma_compute, dma_copy, dma_transpose, sendrecv


def run(instruction, previous=None, **arrays):
    return np.asarray(isa_cases.run(instruction, arrays, previous)["dst"])


def run_with_indices(instruction, previous=None, **arrays):
    """Not compiled, so that indices have values to be checked."""
    return np.asarray(execute(instruction, arrays, previous)["dst"])


def time_us(instruction, core):
    return max(instruction.spec.cost(instruction, core).dma.engine_ps) / 1e6


# dma_copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "float8_e8m0fnu"])
def test_copy_moves_bits_where_the_dtype_stays(dtype):
    instruction = dma_copy(sbuf(16, 12, dtype=dtype), hbm(4, 48, dtype=dtype))
    assert instruction.engine == "dma:sync"
    assert problems(instruction) == ""
    element = values(instruction["src"]).dtype
    raw = np.random.default_rng(0).integers(0, 256, 192 * element.itemsize, np.uint8)
    x = raw.view(element).reshape(4, 48)
    np.testing.assert_array_equal(bits(run(instruction, src=x)), bits(x.reshape(16, 12)))


def test_copy_casts_by_way_of_float32():
    x = np.array([[2**24 + 1, -7, 300]], np.int32)
    for dtype, want in (("float32", [2**24, -7, 300]), ("uint8", [255, 0, 255])):
        instruction = dma_copy(sbuf(1, 3, dtype=dtype), hbm(1, 3, dtype="int32"))
        assert run(instruction, src=x).tolist() == [want]
    narrow = dma_copy(sbuf(8, 64, dtype="float8_e4m3fn"), hbm(8, 64))
    x = values(narrow["src"], scale=50.0)
    np.testing.assert_array_equal(bits(run(narrow, src=x)), bits(x.astype(ml_dtypes.float8_e4m3fn)))


def test_packed_elements_are_copied_whole():
    instruction = dma_copy(hbm(32, 8, dtype="float8_e5m2_x4"), sbuf(32, 8, dtype="float8_e5m2_x4"))
    assert problems(instruction) == ""
    x = values(instruction["src"])
    assert x.shape == (32, 8, 4)
    np.testing.assert_array_equal(bits(run(instruction, src=x)), bits(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copy_adds_in_float32(dtype):
    instruction = dma_copy(sbuf(8, 64, dtype=dtype), hbm(8, 64, dtype=dtype), accumulate=True)
    assert problems(instruction) == ""
    x, before = values(instruction["src"], 1), values(instruction["dst"], 2)
    want = (before.astype(np.float32) + x.astype(np.float32)).astype(x.dtype)
    np.testing.assert_array_equal(bits(run(instruction, before, src=x)), bits(want))
    with pytest.raises(ValueError, match="previous"):
        run(instruction, src=x)


def test_rows_are_gathered_by_index():
    table, index = hbm(50, 6), sbuf(8, 1, dtype="uint32")
    instruction = dma_copy(sbuf(8, 6, dtype="bfloat16"), table, index)
    assert instruction.engine == "dma:gpsimd"
    assert problems(instruction) == ""
    x, rows = values(table), np.uint32([[3], [49], [0], [3], [7], [8], [9], [10]])
    want = x[rows[:, 0]].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits(run(instruction, src=x, src_index=rows)), bits(want))
    rows[2] = 50
    with pytest.raises(ValueError, match="index 50 is outside the 50 rows"):
        run_with_indices(instruction, src=x, src_index=rows)
    skipping = dma_copy(sbuf(8, 6), table, index, oob_mode="skip")
    before = np.full((8, 6), 5, np.float32)
    got = run(skipping, before, src=x, src_index=rows)
    assert (got[2] == 5).all()
    np.testing.assert_array_equal(got[[0, 1, 3]], x[[3, 49, 3]])


@pytest.mark.parametrize("accumulate", [False, True])
def test_rows_are_scattered_by_index(accumulate):
    table = hbm(50, 6)
    instruction = dma_copy(
        table,
        sbuf(4, 6),
        dst_index=sbuf(4, 1, dtype="int32"),
        oob_mode="skip",
        accumulate=accumulate,
    )
    assert problems(instruction) == ""
    x, before = values(sbuf(4, 6), 1), values(table, 2)
    want = before.copy()
    want[[7, 0, 49]] = x[[0, 1, 3]] + accumulate * before[[7, 0, 49]]
    got = run(instruction, before, src=x, dst_index=np.int32([[7], [0], [-1], [49]]))
    np.testing.assert_array_equal(got, want)


F32 = {"dtype": "float32"}


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V4, dma_copy(psum(8, 8), hbm(8, 8)), "lies in psum; it must lie in sbuf or hbm"),
        (V4, dma_copy(sbuf(8, 8), hbm(8, 9)), "src has 72 elements and dst 64"),
        (
            V4,
            dma_copy(sbuf(8, 8, dtype="float8_e5m2_x4"), hbm(8, 8)),
            "packed types are copied, not cast",
        ),
        (V2, dma_copy(sbuf(8, 8), hbm(8, 8), dge_mode="hwdge"), "NeuronCore-v3 is the first"),
        (
            V4,
            dma_copy(sbuf(8, 8), hbm(8, 8), dge_mode="hwdge", engine="dma:vector"),
            "issued by sync or scalar, not on dma:vector",
        ),
        (
            V4,
            dma_copy(sbuf(8, 8, dtype="bfloat16"), hbm(8, 8), dge_mode="hwdge"),
            "hwdge does not cast: src and dst are bfloat16 and float32",
        ),
        (
            V4,
            dma_copy(sbuf(8, 8), hbm(8, 8), dge_mode="swdge", engine="dma:sync"),
            "swdge is issued by gpsimd, not on dma:sync",
        ),
        (
            V4,
            dma_copy(sbuf(8, 8), hbm(9, 8), sbuf(8, 1, dtype="uint32"), dge_mode="hwdge"),
            "src_index needs dge_mode swdge, not hwdge",
        ),
        (V4, dma_copy(sbuf(8, 8), hbm(8, 8), dge_mode="fast"), "dge_mode is 'fast'; allowed"),
        (V3, dma_copy(sbuf(8, 8), hbm(8, 8), priority=0), "v4 is the first to have priorities"),
        (V4, dma_copy(sbuf(8, 8), hbm(8, 8), priority=4), "priority is 4; allowed: 0 to 3"),
        (
            V4,
            dma_copy(sbuf(8, 8), hbm(8, 8), priority=1, dge_mode="none"),
            "priority needs descriptors written at run time",
        ),
        (
            V4,
            dma_copy(sbuf(8, 8), sbuf(9, 8), sbuf(8, 1, dtype="uint32")),
            "src lies in sbuf; rows are chosen in hbm only",
        ),
        (V4, dma_copy(sbuf(8, 8), hbm(8, 8), oob_mode="wrap"), "oob_mode is 'wrap'"),
        (
            V4,
            dma_copy(sbuf(8, 8), hbm(8, 8, dtype="bfloat16"), accumulate=True),
            "not bfloat16 to float32; dma_compute casts",
        ),
        (V4, dma_copy(sbuf(8, 8), hbm(8, 8), engine="sync"), "engine sync does not run it"),
    ],
)
def test_copy_limits(core, instruction, words):
    assert words in problems(instruction, core)


# Time


@pytest.mark.parametrize(("core", "rate"), [(V2, 17.0), (V3, 23.0), (V4, 33.0)])
def test_full_packets_reach_the_practical_bandwidth(core, rate):
    """17, 23, 33 bytes/ns an engine (nki-dma-overview.rst)."""
    copy = dma_copy(sbuf(128, 8192, dtype="bfloat16"), hbm(128, 8192, dtype="bfloat16"))
    work = dma_copy.cost(copy, core).dma
    assert len(work.engine_ps) == 16
    assert len(set(work.engine_ps)) == 1
    assert work.bytes / 16 / (work.engine_ps[0] / 1e3) == pytest.approx(rate, rel=1e-6)
    assert work.packets == 128 * 4
    assert (work.bytes_read_hbm, work.bytes_written_hbm) == (2 << 20, 0)


def test_published_transfers():
    one = dma_copy(sbuf(4, 4096, dtype="bfloat16"), hbm(4, 4096, dtype="bfloat16"))
    work = dma_copy.cost(one, V3).dma
    assert [k for k, busy in enumerate(work.engine_ps) if busy] == [0]
    assert work.engine_ps[0] / 1e3 == pytest.approx(1416, rel=0.02)  # nki-dma-overview.rst, ns
    rows = Tile("x", "hbm", (128, 16, 1024), "bfloat16").all
    for width, rate in ((512, 259), (2048, 354)):  # 1-KiB and 4-KiB rows, skills/dma_efficiency.md
        narrow = Tile("x", "hbm", (128, 8192 // width, 2 * width), "bfloat16").all[:, :, :width]
        copy = dma_copy(sbuf(128, 8192 // width, width, dtype="bfloat16"), narrow)
        assert narrow.bytes / time_us(copy, V3) / 1e3 == pytest.approx(rate, rel=0.06)
    assert rows.run_bytes == rows.bytes


def test_partitions_choose_their_engines():
    for start, count, engines in ((0, 8, [0]), (64, 32, [8, 9, 10, 11]), (32, 20, [4, 5, 6])):
        work = dma_copy.cost(dma_copy(sbuf(count, 64, start=start), hbm(count, 64)), V4).dma
        assert [k for k, busy in enumerate(work.engine_ps) if busy] == engines
        # Neighbours in HBM: the 8 rows of an engine are one packet.
        ns = count / len(engines) * 256 / 38.4 + V4.dma.packet_overhead_ns
        assert sum(work.engine_ps) / len(engines) == pytest.approx(ns * 1e3, abs=1)


def test_what_stays_in_hbm_is_spread_evenly():
    copy = dma_copy(hbm(40, 1024), hbm(40, 1024))
    work = dma_copy.cost(copy, V4).dma
    packet = 4096 / 38.4 + V4.dma.packet_overhead_ns
    assert work.packets == 40
    assert work.engine_ps == (math.ceil(2.5 * packet * 1e3),) * 16
    assert (work.bytes_read_hbm, work.bytes_written_hbm) == (163840, 163840)


def test_small_rows_that_are_neighbours_share_a_packet():
    """One packet for the 8 partitions of an engine."""
    for partitions, packets in ((1, 1), (8, 1), (9, 2), (16, 2), (128, 16)):
        work = dma_copy.cost(dma_copy(sbuf(partitions, 1), hbm(partitions, 1)), V4).dma
        assert work.packets == packets
        one = V4.dma.packet_overhead_ns + min(partitions, 8) * 4 / 38.4
        assert work.engine_ps[0] == math.ceil(one * 1e3)


def test_single_elements_are_a_packet_each():
    spread = Tile("x", "hbm", (128, 64, 2), "float32").all[:, :, 0:1]
    work = dma_copy.cost(dma_copy(sbuf(128, 64), spread), V4).dma
    assert work.packets == 128 * 64


def test_accumulating_halves_the_rate_before_v4():
    """trainium3_arch.rst: 50 % before, 100 % into SBUF on v4."""
    plain, adding = (dma_copy(sbuf(128, 4096), hbm(128, 4096), accumulate=a) for a in (False, True))
    for core, factor in ((V2, 2), (V3, 2), (V4, 1)):
        assert time_us(adding, core) == pytest.approx(factor * time_us(plain, core), rel=1e-5)
    outward = dma_copy(hbm(128, 4096), sbuf(128, 4096), accumulate=True)
    work = dma_copy.cost(outward, V4).dma
    assert time_us(outward, V4) == pytest.approx(2 * time_us(plain, V4), rel=1e-5)
    assert work.bytes_read_hbm == work.bytes_written_hbm == 2 << 20


def test_descriptors_and_latency():
    def issue(core, **params):
        work = dma_copy.cost(dma_copy(sbuf(8, 8), hbm(8, 8), **params), core).dma
        assert work.latency_ns == core.dma.latency_ns == 1300
        return work.mode, work.issue_ns

    assert issue(V4) == ("none", V4.dma.issue_ns["none"])
    assert issue(V4, priority=2) == ("hwdge", 600)
    assert issue(V3, dge_mode="hwdge", engine="dma:scalar.weights") == ("hwdge", 600)
    assert issue(V2, dge_mode="swdge") == ("swdge", V2.dma.issue_ns["swdge"])


def test_time_follows_the_machine():
    copy = dma_copy(sbuf(128, 4096), hbm(128, 4096))
    fast = dataclasses.replace(V4.dma, engine_bytes_per_s=76_800_000_000, packet_overhead_ns=0.0)
    assert time_us(copy, dataclasses.replace(V4, dma=fast)) == pytest.approx(
        2**17 / 76.8e3, rel=1e-5
    )


SHAPES = st.tuples(st.integers(1, 128), st.integers(1, 3), st.integers(1, 5000))


@settings(max_examples=60)
@given(
    SHAPES,
    st.sampled_from(["uint8", "bfloat16", "float32"]),
    st.sampled_from(["sbuf", "hbm"]),
    st.booleans(),
)
def test_no_transfer_beats_its_bandwidth_and_more_takes_longer(shape, dtype, memory, apart):
    """Laws 1 and 2 of the simulator; `apart` leaves room between the rows in HBM."""

    def copy(rows, middle, last):
        source = Tile("x", "hbm", (rows, middle + apart, last), dtype).all[:, :middle]
        return dma_copy(tile(memory, (rows, middle, last), dtype), source)

    rows, middle, last = shape
    made = copy(*shape)
    work, moved = dma_copy.cost(made, V4).dma, made["src"].bytes
    assert len(work.engine_ps) == V4.dma.count
    assert sum(work.engine_ps) >= moved / V4.dma.engine_bytes_per_s * 1e12
    assert work.packets >= moved / V4.dma.packet_bytes
    for longer in (copy(rows, middle, last + 1), copy(min(rows + 7, 128), middle, last)):
        assert all(a <= b for a, b in zip(work.engine_ps, dma_copy.cost(longer, V4).dma.engine_ps))
    fast = dataclasses.replace(V4, dma=dataclasses.replace(V4.dma, engine_bytes_per_s=10**11))
    assert all(a >= b for a, b in zip(work.engine_ps, dma_copy.cost(made, fast).dma.engine_ps))


# dma_transpose


@pytest.mark.parametrize(
    ("shape", "axes"), [((16, 100), (1, 0)), ((4, 8, 24), (2, 1, 0)), ((2, 3, 8, 20), (3, 1, 2, 0))]
)
def test_transpose_permutes(shape, axes):
    permuted = tuple(shape[axis] for axis in axes)
    instruction = dma_transpose(
        sbuf(*permuted, dtype="bfloat16"), hbm(*shape, dtype="bfloat16"), dge_mode="hwdge"
    )
    assert problems(instruction) == ""
    x = values(instruction["src"])
    np.testing.assert_array_equal(bits(run(instruction, src=x)), bits(np.transpose(x, axes).copy()))


def test_transpose_of_chosen_rows():
    """flat = indices.T.flatten()[:n]; dst = src[flat].T (nki.isa dma_transpose)."""
    table, index = hbm(500, 64, dtype="float16"), sbuf(128, 2, dtype="uint32")
    instruction = dma_transpose(sbuf(64, 240, dtype="float16"), table, index)
    assert instruction.engine == "dma:gpsimd"
    assert problems(instruction) == ""
    x, rows = values(table), np.random.default_rng(1).integers(0, 500, (128, 2), np.uint32)
    want = x[rows.T.flatten()[:240]].T
    np.testing.assert_array_equal(run(instruction, src=x, src_index=rows), want)
    rows[5, 0] = 999
    with pytest.raises(ValueError, match="index 999"):
        run_with_indices(instruction, src=x, src_index=rows)
    skipping = dma_transpose(sbuf(64, 240, dtype="float16"), table, index, oob_mode="skip")
    got = run(skipping, np.zeros((64, 240), np.float16), src=x, src_index=rows)
    assert (got[:, 5] == 0).all()
    assert (got[:, 6] == want[:, 6]).all()


B16 = {"dtype": "bfloat16"}
U32 = {"dtype": "uint32"}


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V4, dma_transpose(hbm(8, 16), hbm(16, 8)), "lies in hbm; it must lie in sbuf"),
        (V4, dma_transpose(sbuf(8, 16, **B16), hbm(16, 8)), "must have the same dtype"),
        (V4, dma_transpose(sbuf(16, 8), hbm(16, 8)), "src [16, 8] transposed is [8, 16]"),
        (V4, dma_transpose(sbuf(8, 16), hbm(16, 8), axes=(0, 1)), "2 dimensions allow (1, 0)"),
        (V4, dma_transpose(sbuf(8), hbm(8)), "src has 1 dimensions; allowed: 2 to 4"),
        (
            V4,
            dma_transpose(sbuf(8, 16), hbm(16, 8), dge_mode="none"),
            "allowed here: unknown or hwdge",
        ),
        (V4, dma_transpose(sbuf(8, 16), hbm(16, 8), dge_mode="hwdge"), "moves elements of 2 bytes"),
        (
            V4,
            dma_transpose(sbuf(8, 32, **B16), hbm(32, 8, **B16), dge_mode="hwdge"),
            "transposes 16 rows; src is [32, 8]",
        ),
        (
            V4,
            dma_transpose(sbuf(128, 2, 16, **B16), hbm(16, 2, 130, **B16), dge_mode="hwdge"),
            "last dimension of 130; at most 128",
        ),
        (
            V4,
            dma_transpose(sbuf(8, 3, 4, **B16), hbm(4, 3, 8, **B16), dge_mode="hwdge"),
            "a multiple of 16, not 12",
        ),
        (
            V2,
            dma_transpose(sbuf(64, 32, **B16), hbm(99, 64, **B16), sbuf(32, 1, **U32)),
            "NeuronCore-v3 is the first to transpose chosen rows",
        ),
        (
            V4,
            dma_transpose(sbuf(64, 20, **B16), hbm(99, 64, **B16), sbuf(32, 1, **U32)),
            "20 rows are chosen; allowed: multiples of 16",
        ),
        (
            V4,
            dma_transpose(sbuf(64, 32, **B16), hbm(99, 64, **B16), sbuf(24, 2, **U32)),
            "src_index is [24, 2]; allowed: [16 to 128 by 16, n]",
        ),
        (
            V4,
            dma_transpose(sbuf(64, 32, **B16), hbm(99, 64, **B16), sbuf(32, 2, **U32)),
            "of several columns 128 partitions are needed",
        ),
        (V4, dma_transpose(sbuf(8, 16), hbm(16, 8), oob_mode="skip"), "is for chosen rows"),
    ],
)
def test_transpose_limits(core, instruction, words):
    assert words in problems(instruction, core)


def test_transpose_takes_its_share_of_the_bandwidth():
    """Up to 90 % from HBM, about 50 % from SBUF (trainium2_arch.rst)."""
    copy = dma_copy(sbuf(128, 2048, **B16), hbm(128, 2048, **B16))
    turn = dma_transpose(sbuf(128, 2048, **B16), hbm(2048, 128, **B16))
    inside = dma_transpose(sbuf(128, 128, **B16), sbuf(128, 128, **B16))
    assert time_us(turn, V3) == pytest.approx(time_us(copy, V3) / 0.9, rel=1e-4)
    # 2 KiB of each engine's 8 partitions are one packet.
    packet = (2048 / 27.2 + V3.dma.packet_overhead_ns) / 1e3
    assert time_us(inside, V3) == pytest.approx(packet / 0.5, rel=1e-4)


# dma_compute


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_compute_adds_in_float32(count):
    dtypes = ["float32", "bfloat16", "int32", "float8_e5m2"]
    tiles = [hbm(8, 6, dtype=dtypes[k % 4]) for k in range(count)]
    instruction = dma_compute(sbuf(8, 6), *tiles, reduce_op="add", scales=(1.0,) * count)
    assert problems(instruction) == ""
    arrays = {f"src{k}": values(t, k) if k % 4 != 2 else np.full((8, 6), k, np.int32)
              for k, t in enumerate(tiles)}  # fmt: skip
    want = sum(float64(x) for x in arrays.values())
    np.testing.assert_allclose(run(instruction, **arrays), want, rtol=1e-5, atol=1e-5)


def test_compute_adds_to_rows_and_of_rows():
    table, index = hbm(50, 6), sbuf(4, 1, dtype="int32")
    part = sbuf(4, 6, dtype="bfloat16")
    x, y, rows = values(table, 1), values(part, 2), np.int32([[9], [0], [49], [3]])
    scatter = dma_compute(table, table, part, dst_index=index, reduce_op="add")
    assert scatter.engine == "dma:gpsimd"
    assert problems(scatter) == ""
    want = x.copy()
    want[rows[:, 0]] += y.astype(np.float32)
    np.testing.assert_array_equal(run(scatter, src0=x, src1=y, dst_index=rows), want)
    gather = dma_compute(part, part, table, src1_index=index, reduce_op="add")
    assert problems(gather) == ""
    want = (y.astype(np.float32) + x[rows[:, 0]]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits(run(gather, src0=y, src1=x, src1_index=rows)), bits(want))
    skipping = dma_compute(part, part, table, src1_index=index, reduce_op="add", oob_mode="skip")
    got = run(skipping, src0=y, src1=x, src1_index=np.int32([[9], [50], [-1], [3]]))
    np.testing.assert_array_equal(bits(got[1:3]), bits(y[1:3]))


TABLE = hbm(50, 6)
PART = sbuf(4, 6)
ROWS = sbuf(4, 1, dtype="int32")


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (dma_compute(PART, hbm(4, 5), reduce_op="add"), "src0 has 20 elements, dst 24"),
        (dma_compute(PART, PART, reduce_op="maximum"), "allowed: 'add'"),
        (
            dma_compute(PART, PART, PART, reduce_op="add", scales=(1.0, 2.0)),
            "1.0 for each of the 2",
        ),
        (dma_compute(PART, PART, reduce_op="add", scales=(1.0, 1.0)), "1.0 for each of the 1"),
        (dma_compute(psum(4, 6), PART, reduce_op="add"), "must lie in sbuf or hbm"),
        (dma_compute(TABLE, TABLE, dst_index=ROWS, reduce_op="add"), "needs exactly two sources"),
        (
            dma_compute(TABLE, hbm(50, 6), PART, dst_index=ROWS, reduce_op="add"),
            "with dst_index src0 is dst itself",
        ),
        (
            dma_compute(TABLE, TABLE, hbm(4, 6), dst_index=ROWS, reduce_op="add"),
            "src1 in sbuf, not in hbm and hbm",
        ),
        (
            dma_compute(TABLE, TABLE, sbuf(3, 6), dst_index=ROWS, reduce_op="add"),
            "makes 24 elements of dst, 18 of src1",
        ),
        (
            dma_compute(TABLE, TABLE, PART, dst_index=ROWS, reduce_op="add", unique_indices=False),
            "indices that occur twice are not supported",
        ),
        (
            dma_compute(TABLE, TABLE, PART, dst_index=ROWS, reduce_op="add", engine="dma:sync"),
            "an index is read by gpsimd",
        ),
    ],
)
def test_compute_limits(instruction, words):
    assert words in problems(instruction)
    assert "at most 1" in problems(
        dma_compute(PART, PART, PART, reduce_op="add"),
        dataclasses.replace(V4, dma=dataclasses.replace(V4.dma, max_compute_sources=1)),
    )


def test_compute_passes_every_source_through_the_engines():
    one = dma_copy(sbuf(128, 4096), hbm(128, 4096))
    two = dma_compute(sbuf(128, 4096), hbm(128, 4096), hbm(128, 4096), reduce_op="add")
    for core in CORES:
        assert time_us(two, core) == pytest.approx(2 * time_us(one, core), rel=1e-5)
    assert dma_compute.cost(two, V4).dma.bytes_read_hbm == 4 << 20


# sendrecv

RANKS = {"send_to_rank": 1, "recv_from_rank": 1, "pipe_id": 0}


def test_sendrecv_brings_what_the_other_core_has():
    instruction = sendrecv(sbuf(8, 6), sbuf(8, 6), **RANKS)
    assert instruction.engine == "dma:sync"
    assert problems(instruction, V3) == ""
    theirs = values(sbuf(8, 6), 3)
    np.testing.assert_array_equal(run(instruction, src=theirs), theirs)
    with pytest.raises(TypeError, match="sendrecv needs pipe_id"):
        sendrecv(sbuf(8, 6), sbuf(8, 6), send_to_rank=0, recv_from_rank=1)


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V2, sendrecv(PART, PART, **RANKS), "NeuronCore-v3 is the first"),
        (V4, sendrecv(PART, sbuf(4, 5), **RANKS), "they must agree"),
        (V4, sendrecv(PART, sbuf(4, 6, dtype="int32"), **RANKS), "the same dtype"),
        (V4, sendrecv(PART, hbm(4, 6), **RANKS), "must lie in sbuf"),
        (V4, sendrecv(PART, PART, **RANKS | {"recv_from_rank": 2}), "recv_from_rank is 2; allowed: 0 or 1"),
        (V4, sendrecv(PART, PART, dma_engine="cc", **RANKS), "dma_engine is 'cc'"),
        (V4, sendrecv(PART, PART, engine="gpsimd", **RANKS), "'dma' on a queue of the DMA engines"),
        (
            V4,
            sendrecv(*(sbuf(4, 257, dtype="bfloat16"),) * 2, dma_engine="gpsimd_dma", **RANKS),
            "514 bytes a partition; gpsimd_dma moves at most 512 of bfloat16",
        ),
    ],
)  # fmt: skip
def test_sendrecv_limits(core, instruction, words):
    assert words in problems(instruction, core)


def test_sendrecv_over_gpsimds_own_dma():
    """307 GB/s, 153 a direction (trainium2_arch.rst)."""
    tile = sbuf(128, 256)
    instruction = sendrecv(tile, tile, dma_engine="gpsimd_dma", **RANKS)
    assert instruction.engine == "gpsimd"
    assert problems(instruction, V3) == ""
    work = sendrecv.cost(instruction, V3)
    fixed = V3.gpsimd.start_cycles + V3.gpsimd.min_issue_cycles
    assert work.dma is None
    assert (work.cycles - fixed) / V3.gpsimd.clock_hz == pytest.approx(tile.bytes / 153.5e9)


ALL_BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_whatever_moves_keeps_the_bits_of_nan(dtype):
    """Also where XLA moves narrow floats by way of wider ones."""
    element = values(hbm(1, 1, dtype=dtype)).dtype
    x = np.tile(ALL_BYTES, 2 * element.itemsize).view(element).reshape(16, 32)
    rows = np.random.default_rng(0).permutation(16).astype(np.int32).reshape(16, 1)
    table, tile = hbm(16, 32, dtype=dtype), sbuf(16, 32, dtype=dtype)
    index = sbuf(16, 1, dtype="int32")
    zeros = np.zeros((16, 32), element)
    gather = dma_copy(tile, table, index, oob_mode="skip")
    np.testing.assert_array_equal(
        bits(run(gather, zeros, src=x, src_index=rows)), bits(x[rows[:, 0]])
    )
    scatter = dma_copy(table, tile, dst_index=index, oob_mode="skip")
    got = run(scatter, zeros, src=x, dst_index=rows)
    np.testing.assert_array_equal(bits(got[rows[:, 0]]), bits(x))
    turn = dma_transpose(sbuf(32, 16, dtype=dtype), table)
    np.testing.assert_array_equal(bits(run(turn, src=x)), bits(np.ascontiguousarray(x.T)))
