"""The rates that trainium2_arch.rst and trainium3_arch.rst promise, condition by condition."""

import pytest
from isa_tiles import CORES, cycles, tile

from jax_trn3.isa import Access
from jax_trn3.isa.performance_modes import one_source
from jax_trn3.isa.vector import reciprocal
from jax_trn3.isa.vector_move import tensor_copy

N = 1024


def row(dtype: str = "bfloat16", memory: str = "sbuf", step: int = 1) -> Access:
    return tile(128, N * step, dtype=dtype, memory=memory)[:, ::step]


@pytest.mark.parametrize(
    ("src", "dst", "vector", "scalar"),
    [
        (row(), row(), ("1x", "4x", "4x"), ("1x", "1x", "2x")),
        (row("float16"), row(), ("1x", "4x", "4x"), ("1x", "1x", "2x")),
        (row(step=2), row(), ("1x", "2x", "2x"), ("1x", "1x", "2x")),
        (row(), row(step=2), ("1x", "2x", "2x"), ("1x", "1x", "2x")),
        (row(memory="psum"), row(), ("1x", "2x", "2x"), ("1x", "1x", "2x")),
        (row(), row(memory="psum"), ("1x", "2x", "2x"), ("1x", "1x", "2x")),
        (row(memory="psum", step=2), row(), ("1x", "1x", "1x"), ("1x", "1x", "1x")),
        (row(memory="psum"), row(memory="psum"), ("1x", "1x", "1x"), ("1x", "1x", "1x")),
        (row("float32"), row(), ("1x", "1x", "1x"), ("1x", "1x", "1x")),
        (row(), row("float32"), ("1x", "1x", "1x"), ("1x", "1x", "1x")),
        (row("int16"), row("int16"), ("1x", "1x", "1x"), ("1x", "1x", "1x")),
        (row("float8_e4m3"), row(), ("1x", "1x", "4x"), ("1x", "1x", "2x")),
        (row("float8_e5m2"), row("float8_e5m2"), ("1x", "1x", "4x"), ("1x", "1x", "2x")),
    ],
)
def test_copies(src: Access, dst: Access, vector: tuple[str, ...], scalar: tuple[str, ...]) -> None:
    mode = one_source("src")
    for generation, on_vector, on_scalar in zip(CORES, vector, scalar):
        core = CORES[generation]
        assert mode(tensor_copy(dst, src), core) == on_vector
        assert mode(tensor_copy(dst, src, engine="scalar"), core) == on_scalar
        assert mode(tensor_copy(dst, src, engine="gpsimd"), core) == "1x"
        for engine, rate in (("vector", on_vector), ("scalar", on_scalar)):
            work = tensor_copy.cost(tensor_copy(dst, src, engine=engine), core)
            assert work.cycles == N / int(rate[0])


def test_an_innermost_dimension_of_one_element_is_not_contiguous() -> None:
    column = tile(128, N, 2, dtype="bfloat16")[:, :, 0:1]
    assert one_source("src")(tensor_copy(row(), column), CORES[3]) == "2x"


def test_what_is_gathered_is_not_contiguous() -> None:
    index = tile(128, N // 16, dtype="uint16")
    made = tensor_copy(row(), row(), src_index=index)
    assert one_source("src")(made, CORES[4]) == "2x"


@pytest.mark.parametrize(("step", "slow"), [(4, 1), (5, 2), (8, 2)])
def test_neighbours_beyond_16_bytes_take_twice_as_long(step: int, slow: int) -> None:
    """trainium_inferentia2_arch.rst: "If the most-minor F dimension stride exceeds 16 bytes, the
    achievable bandwidth of each tensor read/write interface will be half of the peak"."""
    strided, plain = tile(128, N * step)[:, ::step], tile(128, N)
    for generation in CORES:
        assert cycles(tensor_copy(plain, strided), generation) == slow * N
        assert cycles(tensor_copy(strided, plain), generation) == slow * N
        unhindered = cycles(reciprocal(plain, plain), generation)  # 2 cycles each at least
        assert cycles(reciprocal(plain, strided), generation) == unhindered
    wide = row(step=2 * step)
    assert cycles(tensor_copy(row(), wide), 3) == slow * N / 2
