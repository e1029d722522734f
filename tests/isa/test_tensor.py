"""TensorE's instructions: meaning against float64 and ml_dtypes, limits, cost."""

import dataclasses

import isa_cases
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from isa_cases import CORES, V2, V3, V4, bits, float64, hbm, problems, psum, sbuf, values

from jax_trn3.isa import IllegalInstruction, Tile, check
from jax_trn3.isa.tensor import nc_matmul, nc_matmul_mx, nc_transpose

FLOATS = (
    "float32",
    "tfloat32",
    "bfloat16",
    "float16",
    "float8_e4m3",
    "float8_e4m3fn",
    "float8_e5m2",
)


def matmul(k=128, m=128, n=512, dtype="bfloat16", out="float32", **params):
    return nc_matmul(
        psum(m, n, dtype=out), sbuf(k, m, dtype=dtype), sbuf(k, n, dtype=dtype), **params
    )


def run(instruction, previous=None, **arrays):
    return isa_cases.run(instruction, arrays, previous)["dst"]


# nc_matmul


@pytest.mark.parametrize("dtype", FLOATS)
def test_matmul_is_stationary_transposed_times_moving(dtype):
    instruction = matmul(96, 64, 80, dtype)
    check(instruction, V4)
    a, b = values(instruction["stationary"], 1), values(instruction["moving"], 2)
    want = float64(a).T @ float64(b)
    np.testing.assert_allclose(run(instruction, stationary=a, moving=b), want, rtol=1e-4, atol=1e-4)


def test_matmul_mixes_narrow_dtypes_and_has_several_free_dimensions():
    instruction = nc_matmul(
        psum(6, 4, 5), sbuf(32, 2, 3, dtype="float8_e5m2"), sbuf(32, 4, 5, dtype="bfloat16")
    )
    check(instruction, V3)
    a, b = values(instruction["stationary"], 1), values(instruction["moving"], 2)
    want = (float64(a).reshape(32, 6).T @ float64(b).reshape(32, 20)).reshape(6, 4, 5)
    np.testing.assert_allclose(run(instruction, stationary=a, moving=b), want, atol=1e-4)


def test_matmul_continues_a_sum_unless_told_otherwise():
    a, b = np.full((4, 2), 2, np.float32), np.full((4, 3), 3, np.float32)
    before = np.full((2, 3), 100, np.float32)
    for accumulate, previous, want in (
        (None, None, 24), (None, before, 124), (True, before, 124), (False, before, 24),
    ):  # fmt: skip
        instruction = matmul(4, 2, 3, "float32", accumulate=accumulate)
        assert (run(instruction, previous, stationary=a, moving=b) == want).all()
    with pytest.raises(ValueError, match="nothing has written"):
        run(matmul(4, 2, 3, "float32", accumulate=True), stationary=a, moving=b)


def test_matmul_adds_to_bfloat16_in_float32_and_rounds_to_even():
    instruction = matmul(8, 16, 32, out="bfloat16")
    check(instruction, V4)
    a, b = values(instruction["stationary"], 1), values(instruction["moving"], 2)
    before = values(instruction["dst"], 3, 64.0)
    product = np.asarray(run(matmul(8, 16, 32), stationary=a, moving=b))
    want = (before.astype(np.float32) + product).astype(ml_dtypes.bfloat16)
    got = run(instruction, before, stationary=a, moving=b)
    np.testing.assert_array_equal(bits(got), bits(want))
    # 256 + 1 lies between 256 and 258 in bfloat16, and so does 258 + 1 between 258 and 260.
    one, ones = np.ones((1, 1), ml_dtypes.bfloat16), np.ones((1, 2), ml_dtypes.bfloat16)
    ties = np.array([[256, 258]], ml_dtypes.bfloat16)
    got = run(matmul(1, 1, 2, out="bfloat16"), ties, stationary=one, moving=ones)
    assert got.tolist() == [[256, 260]]


def test_double_row_contracts_two_values_a_partition():
    stationary, moving = (sbuf(128, 2, f, dtype="float8_e5m2") for f in (64, 96))
    instruction = nc_matmul(psum(64, 96), stationary, moving, perf_mode="double_row")
    check(instruction, V3)
    assert "double_row: NeuronCore-v3 is the first" in problems(instruction, V2)
    a, b = values(stationary, 1), values(moving, 2)
    want = np.einsum("pim,pin->mn", float64(a), float64(b))
    np.testing.assert_allclose(run(instruction, stationary=a, moving=b), want, rtol=1e-4, atol=1e-2)
    work = nc_matmul.cost(instruction, V3)
    assert (work.cycles, work.flops) == (96, 2 * 256 * 64 * 96)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transpose_mode_moves_bits(dtype):
    data, identity = sbuf(96, 32, dtype=dtype), sbuf(96, 96, dtype=dtype)
    instruction = nc_matmul(psum(32, 96, dtype=dtype), data, identity, is_transpose=True)
    check(instruction, V3)
    width = np.dtype(values(data).dtype).itemsize
    a = (
        np.random.default_rng(0)
        .integers(0, 256, (96, 32 * width), np.uint8)
        .view(values(data).dtype)
    )
    a[0, :4] = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(a.dtype)
    eye = np.eye(96).astype(a.dtype)
    got = run(instruction, stationary=a, moving=eye)
    np.testing.assert_array_equal(bits(got), bits(np.ascontiguousarray(a.T)))


def test_transpose_of_float8_has_16_bits():
    dtype = "float8_e4m3"
    data, identity = sbuf(64, 32, dtype=dtype), sbuf(64, 64, dtype=dtype)
    instruction = nc_matmul(psum(32, 64, dtype="uint16"), data, identity, is_transpose=True)
    check(instruction, V3)
    a = (
        np.arange(2048, dtype=np.uint16)
        .astype(np.uint8)
        .view(ml_dtypes.float8_e4m3)
        .reshape(64, 32)
    )
    got = run(instruction, stationary=a, moving=np.eye(64).astype(ml_dtypes.float8_e4m3))
    assert got.dtype == jnp.uint16
    np.testing.assert_array_equal(got, a.view(np.uint8).T)


def test_gathered_and_scattered_operands():
    """Offset i of a group of 32 partitions is index[i % 32, i // 32]."""
    stationary, index = sbuf(64, 40, dtype="bfloat16"), sbuf(64, 1, dtype="uint16")
    moving = sbuf(64, 8, dtype="bfloat16")
    instruction = nc_matmul(psum(32, 8), stationary, moving, stationary_index=index)
    check(instruction, V4)
    assert "NeuronCore-v4 is the first" in problems(instruction, V3)
    a, b = values(stationary, 1), values(moving, 2)
    where = np.random.default_rng(3).integers(0, 40, (64, 1)).astype(np.uint16)
    gathered = np.stack([a[p, where[p // 32 * 32 : p // 32 * 32 + 32, 0]] for p in range(64)])
    want = float64(gathered).T @ float64(b)
    got = run(instruction, stationary=a, moving=b, stationary_index=where)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)

    dst, index = psum(32, 100, dtype="bfloat16"), sbuf(32, 1, dtype="uint16")
    moving = sbuf(64, 32, dtype="bfloat16")
    instruction = nc_matmul(
        dst, sbuf(64, 32, dtype="bfloat16"), moving, accumulate=True, dst_index=index
    )
    check(instruction, V4)
    a, b, before = values(instruction["stationary"], 1), values(moving, 2), values(dst, 3)
    where = np.random.default_rng(4).permutation(100)[:32].astype(np.uint16).reshape(32, 1)
    want = float64(before)
    want[:, where[:, 0]] += float64(a).T @ float64(b)
    got = run(instruction, before, stationary=a, moving=b, dst_index=where)
    np.testing.assert_allclose(float64(got), want, rtol=1e-2, atol=1e-1)
    untouched = np.setdiff1d(np.arange(100), where)
    np.testing.assert_array_equal(bits(got)[:, untouched], bits(before)[:, untouched])


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V4, matmul(128, 129, 8), "129 exceeds 128"),
        (V3, matmul(n=513), "513 exceeds 512"),
        (V4, matmul(n=4097), "4097 exceeds 4096"),
        (V4, matmul(n=8193, out="bfloat16"), "8193 exceeds 8192"),
        (V3, matmul(out="bfloat16"), "dst is bfloat16; a matmul on NeuronCore-v3 gives float32"),
        (V4, matmul(out="float16"), "gives float32 or bfloat16"),
        (V3, matmul(dtype="float8_e4m3fn"), "NeuronCore-v4 is the first to know float8_e4m3fn"),
        (V4, matmul(dtype="int8"), "has dtype int8; allowed: float32"),
        (V4, nc_matmul(psum(8, 8), sbuf(64, 8), sbuf(32, 8)), "64 partitions and moving 32"),
        (V4, nc_matmul(psum(8, 9), sbuf(64, 8), sbuf(64, 8)), r"dst is \[8, 9\]"),
        (V4, nc_matmul(sbuf(8, 8), sbuf(64, 8), sbuf(64, 8)), "lies in sbuf; it must lie in psum"),
        (V4, nc_matmul(psum(8, 8), psum(64, 8), sbuf(64, 8)), "lies in psum; it must lie in sbuf"),
        (V4, nc_matmul(psum(8, 8), sbuf(64, 8, dtype="float16"), sbuf(64, 8)), "both must be"),
        (
            V4,
            nc_matmul(
                psum(8, 8), sbuf(64, 8, dtype="float8_e4m3"), sbuf(64, 8, dtype="float8_e4m3fn")
            ),
            "cannot meet",
        ),
        (V4, matmul(perf_mode="fast"), "allowed: 'none', 'double_row'"),
        (V4, matmul(perf_mode="double_row"), "takes float8; stationary is bfloat16"),
        (V4, matmul(dtype="float8_e5m2", perf_mode="double_row"), "which must be 2"),
        (V3, matmul(is_transpose=True), "a transpose of bfloat16 gives bfloat16"),
        (V4, matmul(tile_size=(64, 128)), "both are given or neither"),
        (V2, matmul(32, tile_position=(0, 0), tile_size=(32, 128)), "row size 32; allowed: 128, 64"),
        (V3, matmul(64, tile_position=(32, 0), tile_size=(64, 128)), "no multiple of the row size 64"),
        (V3, matmul(128, tile_position=(0, 0), tile_size=(64, 128)), "exceeds tile_size"),
    ],
)  # fmt: skip
def test_matmul_limits(core, instruction, words):
    with pytest.raises(IllegalInstruction, match=words):
        check(instruction, core)


def test_before_v4_a_result_lies_in_one_bank():
    whole = Tile("p", "psum", (128, 8, 512), "float32", address=(0, 0))
    a, b = sbuf(128, 128, dtype="bfloat16"), sbuf(128, 512, dtype="bfloat16")
    for bank in range(8):
        check(nc_matmul(whole[:, bank], a, b), V3)
    two = nc_matmul(whole[:, 0:2, 256:512], a, b)
    assert "covers bytes 1024 to 4095 of a partition" in problems(two, V3)
    assert problems(two, V4) == ""
    shifted = Tile("q", "psum", (128, 512), "float32", address=(0, 1024)).all
    assert "one PSUM bank of 2048 bytes" in problems(nc_matmul(shifted, a, b), V3)


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
@pytest.mark.parametrize(
    ("dtype", "passes"), [("bfloat16", 1), ("float16", 1), ("tfloat32", 1), ("float32", 4)]
)
def test_matmul_cost_is_the_moving_rows(core, dtype, passes):
    for n in (1, 64, 65, 512):
        work = nc_matmul.cost(matmul(128, 96, n, dtype), core)
        assert work.cycles == max(n, 64) * passes
        assert work.load_cycles == 96 / 4
        assert work.flops == 2 * 128 * 96 * n
        assert work.hardware_flops == work.flops * passes


def test_hints_and_transposes_cost_less():
    plain = matmul(dtype="float32")
    hinted = matmul(dtype="float32", is_moving_onezero=True)
    assert [nc_matmul.cost(x, V2).cycles for x in (plain, hinted)] == [2048, 1024]
    stationary = matmul(dtype="float32", is_stationary_onezero=True)
    assert nc_matmul.cost(stationary, V2).cycles == 1024
    transpose = matmul(128, 128, 128, "float32", is_transpose=True)
    works = [nc_matmul.cost(transpose, core) for core in CORES]
    assert [work.cycles for work in works] == [512, 256, 256]
    assert [work.background for work in works] == [False, False, True]
    assert {work.flops for work in works} == {0}
    assert {work.hardware_flops for work in works} == {2 * 128**3}


def test_a_tile_of_the_array_is_named_in_the_work():
    instruction = matmul(32, 64, 128, tile_position=(96, 64), tile_size=(32, 64))
    check(instruction, V3)
    assert nc_matmul.cost(instruction, V3).array_tile == (96, 64, 32, 64)
    assert nc_matmul.cost(matmul(), V3).array_tile == ()


# nc_matmul_mx


def mx(
    p=128, m=128, n=512, dtypes=("float8_e4m3fn_x4", "float8_e4m3fn_x4"), out="float32", **params
):
    rows = p if p > 32 else 4
    return nc_matmul_mx(
        psum(m, n, dtype=out),
        sbuf(p, m, dtype=dtypes[0]),
        sbuf(p, n, dtype=dtypes[1]),
        sbuf(rows, m, dtype="float8_e8m0fnu"),
        sbuf(rows, n, dtype="uint8"),
        **params,
    )


def dequantized(data, scale_bytes):
    """[P, F, 4] times 2^(byte - 127) of its group of 8 partitions, in float64."""
    partitions = np.arange(data.shape[0])
    rows = partitions // 32 * 32 + partitions % 32 // 8
    factors = np.exp2(scale_bytes[rows].astype(np.float64) - 127)
    return float64(data) * factors[:, :, None]


@pytest.mark.parametrize("p", [32, 64, 128])
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float8_e4m3fn_x4", "float8_e5m2_x4"),
        ("float4_e2m1fn_x4", "float8_e4m3fn_x4"),
        ("float4_e2m1fn_x4", "float4_e2m1fn_x4"),
    ],
)
def test_mx_matmul_contracts_partitions_and_slots(p, dtypes):
    instruction = mx(p, 10, 12, dtypes)
    check(instruction, V4)
    a, b = values(instruction["stationary"], 1), values(instruction["moving"], 2)
    random = np.random.default_rng(3)
    rows = instruction["stationary_scale"].partitions
    sa, sb = (random.integers(120, 134, (rows, f)).astype(np.uint8) for f in (10, 12))
    want = np.einsum("kiq,kjq->ij", dequantized(a, sa), dequantized(b, sb))
    got = run(
        instruction,
        stationary=a,
        moving=b,
        stationary_scale=sa.view(ml_dtypes.float8_e8m0fnu),
        moving_scale=sb,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_mx_accumulates_and_reads_scales_beside_others():
    scales = Tile("s", "sbuf", (128, 16), "uint8", address=(0, 0)).all
    a, b = (sbuf(128, f, dtype="float8_e4m3fn_x4") for f in (8, 16))
    instruction = nc_matmul_mx(
        psum(8, 16, dtype="bfloat16"), a, b, scales[4:104, 0:8], scales[8:108]
    )
    check(instruction, V4)
    x, y, s = values(a, 1), values(b, 2), np.full((128, 16), 128, np.uint8)
    before = values(instruction["dst"], 3, 100.0)
    both = np.full((128, 16), 128, np.uint8)
    want = float64(before) + np.einsum(
        "kiq,kjq->ij", dequantized(x, both[:, :8]), dequantized(y, both)
    )
    got = run(
        instruction, before, stationary=x, moving=y, stationary_scale=s[4:104, :8],
        moving_scale=s[8:108],
    )  # fmt: skip
    np.testing.assert_allclose(float64(got), want, rtol=1e-2)
    wrong = nc_matmul_mx(psum(8, 16), a, b, scales[2:102, 0:8], scales)
    assert "starts at partition 2 of a quadrant; it may start at 0, 4, 8, 12" in problems(wrong)


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (mx(48), "48 partitions; allowed: multiples of 32"),
        (mx(m=127), "127 is odd"),
        (mx(m=130), "130 exceeds 128"),
        (mx(n=4098), "4098 exceeds 4096"),
        (mx(n=8194, out="bfloat16"), "8194 exceeds 8192"),
        (mx(dtypes=("bfloat16", "bfloat16")), "dtype bfloat16; allowed: float8_e4m3fn_x4"),
        (mx(64, tile_position=(64, 0), tile_size=(64, 64)), "column size 64; allowed: 128"),
        (
            nc_matmul_mx(psum(8, 8), *(sbuf(32, 8, dtype="float8_e5m2_x4") for _ in range(2)),
                         sbuf(4, 6, dtype="uint8"), sbuf(3, 8, dtype="uint8")),
            "stationary_scale has 6 columns and stationary 8; moving_scale has 3 partitions",
        ),
    ],
)  # fmt: skip
def test_mx_limits(instruction, words):
    assert words in problems(instruction)
    assert "NeuronCore-v4 is the first to have it" in problems(instruction, V3)


def test_mx_gathers_data_and_scales_by_one_index():
    stationary, moving = (sbuf(64, f, dtype="float8_e4m3fn_x4") for f in (50, 8))
    scale, index = sbuf(36, 50, dtype="uint8"), sbuf(64, 1, dtype="uint16")
    instruction = nc_matmul_mx(
        psum(32, 8), stationary, moving, scale, sbuf(64, 8, dtype="uint8"),
        stationary_index=index, stationary_scale_index=index,
    )  # fmt: skip
    check(instruction, V4)
    a, b, random = values(stationary, 1), values(moving, 2), np.random.default_rng(3)
    sa, sb = (random.integers(120, 134, shape).astype(np.uint8) for shape in ((36, 50), (64, 8)))
    where = random.integers(0, 50, (64, 1)).astype(np.uint16)
    of_partition = np.repeat(where.reshape(2, 32), 32, axis=0)  # offsets of its group
    left = np.take_along_axis(
        dequantized(a, np.pad(sa, ((0, 28), (0, 0)))), of_partition[..., None], 1
    )
    want = np.einsum("kiq,kjq->ij", left, dequantized(b, sb))
    got = run(
        instruction, stationary=a, moving=b, stationary_scale=sa, moving_scale=sb,
        stationary_index=where, stationary_scale_index=where,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    alone = nc_matmul_mx(
        psum(32, 8), stationary, moving, scale, sbuf(64, 8, dtype="uint8"), stationary_index=index
    )
    assert "they must be the same" in problems(alone)


def test_mx_costs_what_bfloat16_does_at_four_times_the_work():
    work, plain = nc_matmul_mx.cost(mx(), V4), nc_matmul.cost(matmul(), V4)
    assert work.cycles == plain.cycles == 512
    assert work.flops == 4 * plain.flops == 2 * 512 * 128 * 512
    peak = work.flops * V4.tensor.clock_hz / work.cycles
    assert peak == pytest.approx(315e12, rel=0.01)  # neuron-core-v4.rst


# nc_transpose


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "int16"])
def test_vector_transposes_blocks(dtype):
    instruction = nc_transpose(sbuf(24, 32, dtype=dtype), sbuf(32, 24, dtype=dtype))
    assert instruction.engine == "vector"
    for core in CORES:
        check(instruction, core)
    x = values(instruction["data"])
    np.testing.assert_array_equal(run(instruction, data=x), x.T)


def test_tensor_transposes_into_psum_and_flattens_free_axes():
    instruction = nc_transpose(psum(120, 50), sbuf(50, 12, 10))
    assert instruction.engine == "tensor"
    x = values(instruction["data"])
    np.testing.assert_array_equal(run(instruction, data=x), x.reshape(50, 120).T)
    narrow = nc_transpose(psum(8, 16, dtype="uint16"), sbuf(16, 8, dtype="float8_e5m2"))
    check(narrow, V4)
    x = values(narrow["data"])
    np.testing.assert_array_equal(run(narrow, data=x), x.view(np.uint8).T)


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (nc_transpose(psum(8, 129), sbuf(129, 8)), "at most 128"),
        (nc_transpose(sbuf(33, 8), sbuf(8, 33)), "vector transposes up to [32, 32]"),
        (nc_transpose(psum(8, 8, dtype="bfloat16"), sbuf(8, 8)), "transposes float32 into float32"),
        (nc_transpose(psum(8, 9), sbuf(8, 8)), "the transpose of [8, 8] is [8, 8]"),
        (nc_transpose(sbuf(8, 8), sbuf(8, 8), engine="tensor"), "not from sbuf into sbuf"),
        (
            nc_transpose(psum(8, 8, dtype="int32"), sbuf(8, 8, dtype="int32"), engine="tensor"),
            "data is int32: use vector",
        ),
        (nc_transpose(hbm(8, 8), sbuf(8, 8)), "lies in hbm"),
    ],
)
def test_transpose_limits(instruction, words):
    assert words in problems(instruction)


def test_transpose_costs():
    """max(P, min(64, F)) on TensorE, max(64, N) on VectorE (SDK 2.26)."""
    tensor = nc_transpose(psum(128, 100, dtype="bfloat16"), sbuf(100, 128, dtype="bfloat16"))
    vector = nc_transpose(sbuf(32, 32), sbuf(32, 32))
    for core in CORES:
        assert nc_transpose.cost(tensor, core).cycles == 100
        assert nc_transpose.cost(vector, core).cycles == 64
    slow = dataclasses.replace(V4, tensor=dataclasses.replace(V4.tensor, min_moving_cycles=200))
    assert nc_transpose.cost(tensor, slow).cycles == 200


@pytest.mark.parametrize("dtype", ["float8_e4m3", "float8_e5m2", "bfloat16"])
def test_vector_transpose_keeps_the_bits_of_nan(dtype):
    instruction = nc_transpose(sbuf(32, 16, dtype=dtype), sbuf(16, 32, dtype=dtype))
    element = values(instruction["data"]).dtype
    every = np.arange(256, dtype=np.uint8)
    x = np.tile(every, 2 * element.itemsize).view(element).reshape(16, 32)
    got = run(instruction, data=x)
    np.testing.assert_array_equal(bits(got), bits(np.ascontiguousarray(x.T)))
