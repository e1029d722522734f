"""Rules that hold for every instruction: memories, partitions, patterns, dtypes by generation."""

import dataclasses

import pytest
from isa_cases import CORES, V2, V3, V4, hbm, problems, psum, sbuf

from jax_trn3.isa import IllegalInstruction, Origin, Tile, check, execute
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.random import rng
from jax_trn3.isa.scalar import activation


def copy(dst, data, **params):
    return activation(dst, data, op="copy", **params)


def test_an_error_names_instruction_origin_numbers_and_core():
    instruction = activation(
        sbuf(8, 4), sbuf(8, 5), op="exp", origin=Origin("model.py", 12, "jax.nn.softmax")
    )
    with pytest.raises(IllegalInstruction) as error:
        check(instruction, V3)
    assert str(error.value) == (
        "activation from jax.nn.softmax at model.py:12 cannot run on NeuronCore-v3: dst has 8 "
        "partitions of 4 elements, data has 8 of 5; they must agree"
    )


def test_origin_is_the_line_that_made_it():
    origin = copy(sbuf(8, 4), sbuf(8, 4)).origin
    assert origin.file == __file__
    assert origin.line > 0


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
@pytest.mark.parametrize("memory", ["sbuf", "psum"])
def test_partitions_start_where_the_hardware_can(core, memory):
    """65-128 at 0; 33-64 at 0, 64; up to 32 at 0, 32, 64, 96 (trainium_inferentia2_arch.rst)."""
    allowed = {
        1: (0, 32, 64, 96),
        32: (0, 32, 64, 96),
        33: (0, 64),
        64: (0, 64),
        65: (0,),
        128: (0,),
    }
    for count, starts in allowed.items():
        for start in (0, 1, 16, 32, 64, 96):
            access = Tile("x", memory, (count, 4), "float32", address=(start, 0)).all
            found = problems(copy(sbuf(count, 4), access), core)
            if start in starts:
                assert found == ""
            else:
                listed = ", ".join(map(str, starts))
                assert f"{count} partitions may start at {listed}" in found
    part = sbuf(128, 4)[32:64]
    assert problems(copy(sbuf(32, 4), part), core) == ""
    assert "starts at partition 40" in problems(copy(sbuf(24, 4), sbuf(128, 4)[40:64]), core)


def test_partitions_have_no_stride_and_no_more_than_128():
    assert "takes every 2th partition" in problems(copy(sbuf(32, 4), sbuf(64, 4)[::2]))
    assert "has 129 partitions; at most 128" in problems(copy(sbuf(129, 4), sbuf(129, 4)))


def test_patterns_have_four_free_dimensions_that_are_apart():
    x = Tile("x", "sbuf", (8, 4, 4, 4, 4, 4), "float32").all
    y = sbuf(8, 2**5)
    assert problems(copy(sbuf(8, 4**5), x)) == ""  # neighbours are one dimension
    assert problems(copy(sbuf(8, 2 * 4**4), x[:, ::2])) == ""
    apart = x[:, ::2, ::2, ::2, ::2, ::2]
    assert (
        "has 5 free dimensions that are not next to each other; an access pattern has at most 4"
        in (problems(copy(y, apart)))
    )
    assert problems(copy(sbuf(8, 2**4), x[:, 0, ::2, ::2, ::2, ::2])) == ""
    slots = Tile("x", "sbuf", (8, 5, 4, 4, 4), "float32", slots=3)
    assert "5 free dim" in problems(copy(sbuf(8, 72), slots.all[:, ::2, ::2, ::2, ::2]))
    far = Tile("x", "sbuf", (8, 2, 40000), "uint8").all[:, :, 0:1]
    assert "2 elements lie 40000 elements apart; a stride is at most 32767" in (
        problems(copy(sbuf(8, 2), far))
    )


def test_one_instruction_reaches_so_many_elements():
    """64K in SBUF, 4K in PSUM (trainium_inferentia2_arch.rst)."""
    big = sbuf(8, 2**16 + 1, dtype="uint8")
    assert "65537 elements a partition; one instruction reaches 65536 in sbuf" in (
        problems(copy(big, big))
    )
    wide = psum(8, 4097, dtype="bfloat16")
    assert "reaches 4096 in psum" in problems(copy(sbuf(8, 4097), wide))
    larger = dataclasses.replace(V4, max_free_elements={"sbuf": 65536, "psum": 8192})
    assert problems(copy(sbuf(8, 4097), wide), larger) == ""


def test_dtypes_come_with_their_generation():
    x = sbuf(8, 4, dtype="float8_e4m3fn")
    assert problems(copy(sbuf(8, 4), x), V4) == ""
    for core in (V2, V3):
        assert "NeuronCore-v4 is the first to know float8_e4m3fn" in problems(
            copy(sbuf(8, 4), x), core
        )
    packed = sbuf(8, 4, dtype="float8_e4m3fn_x4")
    assert "has dtype float8_e4m3fn_x4; allowed: " in problems(copy(sbuf(8, 4), packed))


def test_gpsimd_and_dma_stay_out_of_psum():
    assert "gpsimd cannot access psum" in problems(rng(psum(8, 4, dtype="int32"), engine="gpsimd"))
    assert "must lie in sbuf or hbm" in problems(dma_copy(hbm(8, 4), psum(8, 4)))


def test_indices_of_gathered_operands_have_their_places():
    def gather(data_start=0, index_start=0, partitions=32, core=V4):
        index = sbuf(partitions, 1, dtype="uint16", start=index_start)
        return problems(copy(sbuf(32, 16), sbuf(32, 64, start=data_start), data_index=index), core)

    assert gather() == ""
    assert gather(32, 32) == ""
    assert "NeuronCore-v4 is the first to gather and scatter" in gather(core=V3)
    assert "data_index starts at partition 16; it must start at a quadrant" in gather(16, 16)
    assert "data starts at partition 32 and data_index at 0" in gather(32, 0)
    assert "data_index has 16 partitions and data 32" in gather(partitions=16)
    odd = sbuf(20, 1, dtype="uint16")
    assert "data_index has 20 partitions; allowed: up to 16, or multiples" in problems(
        copy(sbuf(20, 16), sbuf(20, 64), data_index=odd)
    )


def test_indices_of_scattered_operands_start_with_the_source():
    index, source = sbuf(32, 1, dtype="uint16", start=32), sbuf(32, 16)
    assert "dst_index starts at partition 32 and data at 0" in problems(
        copy(sbuf(32, 64, start=32), source, dst_index=index)
    )
    from_psum = copy(sbuf(32, 64, start=32), psum(32, 16), dst_index=index)
    assert problems(from_psum) == ""
    both = copy(
        sbuf(32, 64, start=32), psum(32, 16), dst_index=index,
        data_index=sbuf(32, 1, dtype="uint16"),
    )  # fmt: skip
    assert "dst_index starts at partition 32 and data_index at 0" in problems(both)


def test_what_the_table_does_not_know_is_refused_at_once():
    with pytest.raises(TypeError, match="'opp' is given twice or unknown; it has dst, data"):
        activation(sbuf(8, 4), sbuf(8, 4), opp="exp")
    with pytest.raises(TypeError, match="operand data cannot be 3.0"):
        activation(sbuf(8, 4), 3.0, op="exp")
    with pytest.raises(TypeError, match="activation needs op"):
        activation(sbuf(8, 4), sbuf(8, 4))
    with pytest.raises(TypeError, match="takes 7 operands, not 8"):
        activation(*[sbuf(8, 4)] * 8, op="exp")


def test_the_executor_asks_for_values_of_the_right_shape():
    instruction = copy(sbuf(8, 4), sbuf(8, 4))
    with pytest.raises(KeyError, match="reads data = .*, but no values are given"):
        execute(instruction, {})
    with pytest.raises(ValueError, match=r"needs float32\[8, 4\], not float32\[4, 8\]"):
        execute(instruction, {"data": sbuf_values()})


def sbuf_values():
    import numpy as np

    return np.zeros((4, 8), np.float32)


def test_an_instruction_knows_what_it_updates():
    index = sbuf(32, 1, dtype="uint16")

    def updates(instruction):
        return [o.name for o in instruction.spec.operands if instruction.updates(o)]

    assert updates(copy(sbuf(32, 4), sbuf(32, 4))) == []
    assert updates(copy(sbuf(32, 64), sbuf(32, 16), dst_index=index)) == ["dst"]
    assert updates(dma_copy(sbuf(8, 8), hbm(8, 8), accumulate=True)) == ["dst"]
    assert updates(dma_copy(sbuf(8, 8), hbm(8, 8))) == []
