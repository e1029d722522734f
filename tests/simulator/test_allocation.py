"""Tiles in SBUF and PSUM: where they lie, that none overlap, and what does not fit."""

import dataclasses
import itertools

import pytest
from drawn_programs import programs
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_trn3.hardware import NEURON_CORE_V3, NEURON_CORE_V4, TRAINIUM3
from jax_trn3.isa import Tile
from jax_trn3.isa.dma import dma_copy
from jax_trn3.isa.tensor import nc_matmul
from jax_trn3.isa.vector_move import tensor_copy
from jax_trn3.simulator import DoesNotFit, IllegalProgram, allocate, loop, program, simulate, spill
from jax_trn3.simulator.allocation import extent, pitch
from jax_trn3.simulator.liveness import lifetimes

USABLE = NEURON_CORE_V4.sbuf_usable_partition_bytes
SOURCE = Tile("source", "hbm", (128, 64), "float32", given=True)


def sbuf(name: str, share: float, slots: int = 1) -> Tile:
    """A tile that takes that share of SBUF."""
    return Tile(name, "sbuf", (128, int(USABLE * share / slots) // 4 // 64 * 64), "float32", slots)


def use(tile: Tile) -> object:
    """Reads a little of a tile."""
    result = Tile(f"of {tile.name}", "hbm", (128, 64), "float32")
    return dma_copy(result, tile[:, 0:64])


def fill(tile: Tile) -> object:
    """Writes a little of a tile."""
    return dma_copy(tile[:, 0:64], SOURCE)


def overlapping(placed: list[Tile]) -> list[tuple[str, str]]:
    """Names of tiles that have a byte in common."""
    pairs = []
    for one, other in itertools.combinations(placed, 2):
        if (one.memory, one.core) != (other.memory, other.core):
            continue
        a, b = one.address[1], other.address[1]
        if a < b + extent(other, NEURON_CORE_V4) and b < a + extent(one, NEURON_CORE_V4):
            pairs.append((one.name, other.name))
    return pairs


@settings(max_examples=40)
@given(programs(), st.integers(1, 20))
def test_no_two_live_tiles_overlap(drawn, shrink) -> None:
    # A machine so small that tiles have to share their places.
    core = dataclasses.replace(
        NEURON_CORE_V4, sbuf_partition_bytes=16384 + 1024 * shrink, psum_banks=4
    )
    try:
        placed = allocate(drawn, core)
    except DoesNotFit:
        return
    needed = lifetimes(placed)
    for one, other in overlapping(list(needed)):
        lives = {tile.name: life for tile, life in needed.items()}
        assert not lives[one].meets(lives[other])
    for tile in needed:
        limit = core.psum_partition_bytes if tile.memory == "psum" else 1024 * shrink
        assert tile.address[1] + extent(tile, core) <= limit


def test_tiles_lie_side_by_side_while_there_is_room() -> None:
    tiles = [sbuf(f"t{k}", 0.2) for k in range(4)]
    placed = allocate(program("p", [n for t in tiles for n in (fill(t), use(t))]), NEURON_CORE_V4)
    assert overlapping([t for t in placed.tiles() if t.memory == "sbuf"]) == []


def test_tiles_share_a_place_when_they_must() -> None:
    tiles = [sbuf(f"t{k}", 0.6) for k in range(3)]
    text = program("p", [n for t in tiles for n in (fill(t), use(t))])
    placed = allocate(text, NEURON_CORE_V4)
    assert len(overlapping([t for t in placed.tiles() if t.memory == "sbuf"])) == 3
    # Whoever comes second waits until the first has been read.
    rows = simulate(text, TRAINIUM3).expand()
    assert rows[2, 1] >= rows[1, 2]
    assert rows[4, 1] >= rows[3, 2]


def test_what_a_loop_carries_is_kept_while_it_runs() -> None:
    carried, local = sbuf("carried", 0.6), sbuf("local", 0.6)
    body = [use(carried), fill(local), use(local), fill(carried)]
    text = program("p", [fill(carried), loop(4, lambda i: body)])
    with pytest.raises(DoesNotFit, match=r"carried \d+, local \d+"):
        allocate(text, NEURON_CORE_V4)


def test_a_program_that_does_not_fit_is_an_error_with_names_sizes_and_the_limit() -> None:
    tiles = [sbuf("weights", 0.7), sbuf("activations", 0.5, slots=2)]
    text = program("layer", [*map(fill, tiles[:1]), dma_copy(tiles[1][0][:, 0:64], SOURCE),
                             use(tiles[0]), tensor_copy(tiles[0][:, 0:64], tiles[1][0][:, 0:64])])  # fmt: skip
    with pytest.raises(DoesNotFit) as caught:
        simulate(text)
    message = str(caught.value)
    assert "layer needs" in message
    assert f"weights {tiles[0].partition_bytes}" in message
    assert "activations" in message
    assert "2 slots" in message
    assert f"has {USABLE}" in message


def test_psum_slots_stay_inside_banks() -> None:
    core = NEURON_CORE_V4
    assert pitch(Tile("p", "psum", (128, 512), "float32", 4), core) == 2048
    assert pitch(Tile("p", "psum", (128, 100), "float32", 4), core) == 512
    assert pitch(Tile("p", "psum", (128, 600), "float32", 4), core) == 4096
    tiles = [Tile(f"p{k}", "psum", (128, 512), "float32") for k in range(9)]
    weights = Tile("w", "sbuf", (128, 128), "bfloat16", given=True)
    moving = Tile("x", "sbuf", (128, 512), "bfloat16", given=True)
    matmuls = [nc_matmul(t, weights, moving) for t in tiles]
    out = Tile("out", "sbuf", (128, 512), "float32", slots=9)
    copies = [tensor_copy(out[k], t) for k, t in enumerate(tiles)]
    with pytest.raises(DoesNotFit, match=r"of psum at once, NeuronCore-v4 has 16384"):
        allocate(program("nine banks", [*matmuls, *copies]), core)


def at(tile: Tile, byte: int, partition: int = 0) -> Tile:
    return dataclasses.replace(tile, address=(partition, byte))


def test_own_addresses_are_kept_and_checked() -> None:
    one, other = at(sbuf("one", 0.1), 4096), at(sbuf("other", 0.1), 8192)
    with pytest.raises(IllegalProgram, match=r"tiles one .* and other .* overlap in sbuf"):
        allocate(program("p", [fill(one), fill(other), use(one), use(other)]), NEURON_CORE_V4)
    placed = allocate(program("p", [fill(one), use(one), fill(other), use(other)]), NEURON_CORE_V4)
    assert {t.name: t.address for t in placed.tiles() if t.memory == "sbuf"} == {
        "one": (0, 4096),
        "other": (0, 8192),
    }
    beyond = at(sbuf("beyond", 0.1), USABLE - 1024)
    with pytest.raises(DoesNotFit, match=r"tile beyond at partition 0, byte"):
        allocate(program("p", [fill(beyond)]), NEURON_CORE_V4)


def test_tiles_in_other_partitions_do_not_overlap() -> None:
    one = at(Tile("one", "sbuf", (64, 64), "float32"), 0)
    other = at(Tile("other", "sbuf", (64, 64), "float32"), 0, partition=64)
    lines = [
        dma_copy(one, SOURCE[0:64, :]),
        dma_copy(other, SOURCE[64:128, :], engine="dma:scalar"),
        dma_copy(Tile("a", "hbm", (64, 64), "float32"), one),
        dma_copy(Tile("b", "hbm", (64, 64), "float32"), other, engine="dma:scalar"),
    ]  # fmt: skip
    rows = simulate(program("p", lines), TRAINIUM3).expand()
    assert rows[3, 4] == 1  # it waited for its own load alone


def test_spilling_makes_room() -> None:
    early, big = sbuf("early", 0.5), sbuf("big", 0.7)
    text = program("p", [fill(early), fill(big), use(big), use(early)])
    with pytest.raises(DoesNotFit):
        simulate(text)
    spilled = spill(text, NEURON_CORE_V4)
    operations = [i.origin.operation for i in spilled.instructions()]
    assert operations == ["", "spill save", "", "", "spill reload", ""]
    timeline = simulate(spilled)
    assert (
        timeline.dma_bytes == 6 * SOURCE.bytes
    )  # a load, a save, a reload and a store of "early"; two more
    assert simulate(spill(text, NEURON_CORE_V4)).time_ps == timeline.time_ps


def test_what_is_needed_at_once_cannot_be_spilled() -> None:
    one, other = sbuf("one", 0.6), sbuf("other", 0.6)
    text = program("p", [fill(one), fill(other), tensor_copy(one, other)])
    with pytest.raises(DoesNotFit, match=r"no tile is left that is not needed"):
        spill(text, NEURON_CORE_V3)
