"""Random numbers against Marsaglia's XORWOW written in Python, and their distribution."""

import numpy as np
import pytest
from isa_cases import CORES, V2, V3, V4, problems, psum, run, sbuf

from jax_trn3.isa.random import rand2, rand_get_state, rand_set_state, rng, set_rng_seed

MASK = 0xFFFFFFFF


def xorwow(state):
    """One step of "Xorshift RNGs" (2003), page 5, on a list of six."""
    x, y, z, w, v, d = state
    t = x ^ (x >> 2)
    v, state[:4] = (v ^ (v << 4) ^ t ^ (t << 1)) & MASK, [y, z, w, v]
    state[4:] = [v, (d + 362437) & MASK]
    return (state[5] + v) & MASK


def test_the_oracle_gives_marsaglias_first_number():
    state = [123456789, 362436069, 521288629, 88675123, 5783321, 6615241]
    assert xorwow(state) == 246875399  # as every implementation of XORWOW with his seed


@pytest.mark.parametrize(("engine", "generators"), [("vector", 4), ("gpsimd", 1)])
@pytest.mark.parametrize("count", [1, 8, 10])
def test_numbers_and_states_are_those_of_xorwow(engine, generators, count):
    seeds = np.random.default_rng(0).integers(0, 2**32, (32, 6 * generators), np.uint32)
    tile = sbuf(32, 6 * generators, dtype="uint32", start=64)
    seeding = rand_set_state(tile, engine=engine)
    drawing = rng(sbuf(32, count, dtype="uint32", start=64), engine=engine)
    reading = rand_get_state(tile, engine=engine)
    for instruction in (seeding, drawing, reading):
        assert problems(instruction) == ""
    arrays = run(seeding, {"src_seeds": seeds})
    drawn = run(drawing, arrays)
    states = [
        [[int(w) for w in row[6 * g : 6 * g + 6]] for g in range(generators)] for row in seeds
    ]
    steps = -(-count // generators)
    want = [[xorwow(s) for _ in range(steps) for s in lane][:count] for lane in states]
    np.testing.assert_array_equal(drawn["dst"], np.array(want, np.uint32))
    state = run(reading, drawn)["dst"]
    np.testing.assert_array_equal(state, np.array(states, np.uint32).reshape(32, -1))
    whole = drawn[f"{engine}.prng"]
    assert whole.shape == (128, 6 * generators)
    assert (whole[:64] == 0).all()


def test_dst_keeps_the_low_bits():
    seeds = np.random.default_rng(1).integers(0, 2**32, (4, 24), np.uint32)
    arrays = run(rand_set_state(sbuf(4, 24, dtype="uint32"), engine="vector"), {"src_seeds": seeds})
    wide = np.asarray(run(rng(sbuf(4, 12, dtype="uint32")), arrays)["dst"])
    for dtype in ("int8", "uint8", "int16", "uint16", "int32"):
        narrow = run(rng(sbuf(4, 12, dtype=dtype)), arrays)["dst"]
        np.testing.assert_array_equal(narrow, wide.astype(dtype))


def test_a_seed_gives_every_lane_its_own_numbers_and_always_the_same():
    def draw(seed):
        state = run(set_rng_seed(sbuf(1, 1, dtype="uint32")), {"src_seeds": np.uint32([[seed]])})
        return np.asarray(run(rng(sbuf(128, 64, dtype="uint32")), state)["dst"])

    first = draw(7)
    np.testing.assert_array_equal(first, draw(7))
    assert len(np.unique(first)) > 8180
    assert (first != draw(8)).mean() > 0.99


def test_rand2_is_uniform_between_its_bounds():
    state = run(set_rng_seed(sbuf(1, 1, dtype="uint32")), {"src_seeds": np.uint32([[1]])})
    instruction = rand2(sbuf(128, 512), sbuf(128, 1), 4.0)
    assert problems(instruction) == ""
    low = np.linspace(-2, 2, 128, dtype=np.float32).reshape(128, 1)
    drawn = np.asarray(run(instruction, state | {"min": low})["dst"], np.float64)
    u = (drawn - low) / (4 - low)
    assert u.min() >= 0
    assert u.max() <= 1
    counts = np.histogram(u, 64, (0, 1))[0]
    chi2 = ((counts - u.size / 64) ** 2 / (u.size / 64)).sum()
    assert chi2 < 120  # 63 degrees of freedom: one in 10^5 exceeds it
    whole = run(rand2(sbuf(4, 100, dtype="int8"), -3.0, 3.0), state)["dst"]
    assert set(np.unique(whole)) <= set(range(-3, 4))


def test_nothing_comes_out_of_a_generator_without_a_state():
    for instruction in (rng(sbuf(4, 4, dtype="int32")), rand2(sbuf(4, 4), 0.0, 1.0)):
        with pytest.raises(ValueError, match="begin with set_rng_seed"):
            run(instruction, {})
    with pytest.raises(ValueError, match="begin with set_rng_seed"):
        run(rand_get_state(sbuf(4, 6, dtype="uint32")), {})


@pytest.mark.parametrize(
    ("core", "instruction", "words"),
    [
        (V2, rng(sbuf(4, 4, dtype="int32"), engine="gpsimd"), "gpsimd runs it from NeuronCore-v3 on"),
        (V4, rng(psum(4, 4, dtype="int32"), engine="gpsimd"), "gpsimd cannot access psum"),
        (V4, rng(sbuf(4, 4)), "has dtype float32; allowed: int8"),
        (V3, rand2(sbuf(4, 4), 0.0, 1.0), "NeuronCore-v4 is the first to have it"),
        (V4, rand2(sbuf(4, 4), 1.0, 1.0), "min 1.0 is not below max 1.0"),
        (V4, rand2(sbuf(4, 4), sbuf(4, 2), 1.0), "allowed: 4 of 1"),
        (V4, rand2(sbuf(4, 4, dtype="float8_e4m3fn"), 0.0, 1.0), "has dtype float8_e4m3fn"),
        (V2, rand_get_state(sbuf(4, 6, dtype="uint32")), "NeuronCore-v3 is the first"),
        (V3, rand_get_state(sbuf(4, 24, dtype="uint32"), engine="vector"), "from NeuronCore-v4 on"),
        (V4, rand_get_state(sbuf(4, 24, dtype="uint32")), "the state of gpsimd has 6"),
        (V4, rand_set_state(sbuf(4, 6, dtype="uint32"), engine="vector"), "of vector has 24"),
        (V4, rand_set_state(psum(4, 6, dtype="uint32")), "must lie in sbuf"),
        (V4, set_rng_seed(sbuf(1, 2, dtype="uint32")), "src_seeds is [1, 2]; allowed: [1, 1]"),
    ],
)  # fmt: skip
def test_limits(core, instruction, words):
    assert words in problems(instruction, core)


def test_v4_makes_four_numbers_a_cycle():
    draw = rng(sbuf(128, 1024, dtype="uint32"))
    assert [rng.cost(draw, core).cycles for core in CORES] == [1024, 1024, 256]
    assert rand2.cost(rand2(sbuf(128, 1024), 0.0, 1.0), V4).cycles == 256
    slow = rng(sbuf(128, 1024, dtype="uint32"), engine="gpsimd")
    assert rng.cost(slow, V4).cycles == 1024 + V4.gpsimd.start_cycles
