"""Loops over tiles: every element once, in order, loaded before it is used."""

from typing import Any

import pytest

from pallas_trn3.kernels import loops


@pytest.fixture
def unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loops, "repeated", lambda first, last, body: [body(i) for i in range(first, last)]
    )


@pytest.mark.usefixtures("unrolled")
@pytest.mark.parametrize("total", [1, 3, 4, 5, 8, 9])
def test_tiles_cover(total: int) -> None:
    seen: list[tuple[Any, ...]] = []
    loops.tiled(total, 4, lambda *tile: seen.append(tile))
    assert [e for _, start, size in seen for e in range(start, start + size)] == [*range(total)]
    assert [i for i, *_ in seen] == [*range(len(seen))]
    assert loops.pieces(total, 4) == [tile[1:] for tile in seen]


@pytest.mark.usefixtures("unrolled")
@pytest.mark.parametrize("total", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("loaded", [False, True])
def test_loads_are_one_ahead(total: int, loaded: bool) -> None:
    calls: list[tuple[Any, ...]] = []
    loops.loaded_ahead(
        total,
        4,
        lambda *tile: calls.append(("load", *tile)),
        lambda *tile: calls.append(("use", *tile)),
        lambda *tile: calls.append(("last", *tile)),
        loaded=loaded,
    )
    tiles = [(i, *piece) for i, piece in enumerate(loops.pieces(total, 4))]
    used = [call[1:] for call in calls if call[0] != "load"]
    assert used == tiles
    assert [call[1:] for call in calls if call[0] == "load"] == tiles[loaded:]
    assert [call[0] for call in calls if call[0] != "load"] == ["use"] * (len(tiles) - 1) + ["last"]
    for place, call in enumerate(calls):
        if call[0] != "load" and call[1] + 1 < len(tiles):
            assert ("load", *tiles[call[1] + 1]) in calls[:place]


def test_turn() -> None:
    assert [loops.turn(i, 3) for i in range(4)] == [0, 1, 2, 0]
