"""Registers, barriers and nothing."""

import ml_dtypes
import numpy as np
import pytest
from isa_cases import CORES, V2, V3, V4, hbm, problems, psum, run, sbuf

from jax_trn3.isa import Register
from jax_trn3.isa.sync import (
    core_barrier,
    nop,
    register_alloc,
    register_load,
    register_move,
    register_store,
)

FIRST, SECOND = Register("i"), Register("j")


def test_registers_hold_move_load_and_store():
    state = run(register_alloc(register=FIRST, value=2**32 - 5), {})
    assert state["registers"]["i"] == -5
    state = run(register_move(dst=SECOND, src=FIRST), state)
    state = run(register_move(dst=FIRST, src=12), state)
    assert {k: int(v) for k, v in state["registers"].items()} == {"i": 12, "j": -5}
    stored = run(register_store(sbuf(1, 1, dtype="int16"), src=SECOND), state)
    assert stored["dst"].tolist() == [[-5]]
    load = register_load(hbm(1, dtype="int32"), dst=FIRST)
    state = run(load, state | {"src": np.int32([77])})
    assert state["registers"]["i"] == 77
    assert state["registers"]["j"] == -5


@pytest.mark.parametrize(
    ("dtype", "value", "word"),
    [
        ("float32", np.float32(1.0), 0x3F800000),
        ("uint32", np.uint32(2**32 - 1), -1),
        ("int8", np.int8(-3), -3),
        ("uint16", np.uint16(65535), 65535),
        ("bfloat16", ml_dtypes.bfloat16(1.0), 0x3F80),
        ("float8_e5m2", ml_dtypes.float8_e5m2(1.0), 0x3C),
        ("bool_", np.bool_(True), 1),
    ],
)
def test_a_register_gives_back_what_it_loaded(dtype, value, word):
    tile = sbuf(1, 1, dtype=dtype)
    state = run(register_load(tile, dst=FIRST), {"src": np.full((1, 1), value)})
    assert state["registers"]["i"] == word
    assert run(register_store(tile, src=FIRST), state)["dst"] == np.full((1, 1), value)


def test_a_register_without_a_value_is_not_read():
    state = run(register_alloc(register=FIRST), {"registers": {"i": 3}})
    for instruction in (
        register_move(dst=SECOND, src=FIRST),
        register_store(sbuf(1, 1), src=FIRST),
    ):
        with pytest.raises(ValueError, match="register i is read before"):
            run(instruction, state)


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V4, register_alloc(register="i"), "register is 'i'; it must be a Register"),
        (V4, register_alloc(register=FIRST, value=2**32), "a register has 32 bits"),
        (V4, register_move(dst=FIRST, src=1.5), "allowed: an integer or a Register"),
        (V4, register_load(sbuf(2, 1), dst=FIRST), "src is [2, 1]; a register takes one element"),
        (V4, register_load(psum(1, 1), dst=FIRST), "must lie in sbuf or hbm"),
        (V4, register_store(sbuf(1, 3), src=FIRST), "dst is [1, 3]"),
        (
            V4,
            register_store(sbuf(1, 1, dtype="float8_e5m2_x4"), src=FIRST),
            "has dtype float8_e5m2_x4",
        ),
        (V2, core_barrier(hbm(4)), "NeuronCore-v3 is the first"),
        (V3, core_barrier(hbm(4), cores=(0, 2)), "cores is (0, 2); allowed: (0, 1)"),
        (V3, core_barrier(sbuf(4, 4)), "must lie in hbm"),
    ],
)
def test_limits(core, instruction, words):
    assert words in problems(instruction, core)


@pytest.mark.parametrize("engine", ["sync", "tensor", "vector", "scalar", "gpsimd"])
def test_a_sequencer_takes_as_long_on_every_engine(engine):
    for core in CORES:
        for instruction in (nop(engine=engine), register_alloc(register=FIRST, engine=engine)):
            assert problems(instruction, core) == ""
            cycles = instruction.spec.cost(instruction, core).cycles
            seconds = cycles / getattr(core, engine).clock_hz
            assert seconds == pytest.approx(core.sync.min_issue_cycles / core.sync.clock_hz)


def test_barriers_and_nothing_write_nothing():
    assert run(nop(), {}) == {}
    barrier = core_barrier(hbm(2, dtype="int32"))
    assert barrier.engine == "gpsimd"
    assert run(barrier, {"data": np.int32([1, 2])}) == {}
