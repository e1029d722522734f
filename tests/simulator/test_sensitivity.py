"""What uncertain numbers move: that docs/sensitivity.md is about the machine as it is now."""

import functools
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sensitivity
from sensitivity import PAGE, PROGRAMS, Report, as_json, machine, page, report, table, uncertain

from jax_trn3.hardware.datasheet import Row, extrapolated_figures, with_figure

# Without those that take half of the time.
QUICK = {
    name: measure for name, measure in PROGRAMS.items() if name not in ("matmul bf16", "vector add")
}


def figures() -> dict[str, Row]:
    return {row.path: row for row in uncertain(machine())}


def lines() -> list[list[str]]:
    """Cells of the page's table, without its head."""
    drawn = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in drawn[2:]]


def moved() -> list[list[str]]:
    return [cells for cells in lines() if cells[0].startswith("`")]


def numbers(cell: str) -> tuple[float, float]:
    if cell == "·":
        return 0.0, 0.0
    low, high = (float(part.strip().rstrip("%")) / 100 for part in cell.split("/"))
    return low, high


@functools.cache
def largest() -> Report:
    """The figures that move most, by the page, simulated now."""
    paths = [cells[0].strip("`") for cells in moved()[:8]]
    return report(QUICK, [figures()[path] for path in paths if path in figures()])


def test_every_extrapolated_figure_is_varied() -> None:
    assert {row.path for row in extrapolated_figures(machine())} <= set(figures())


def test_the_page_names_the_figures_that_there_are() -> None:
    named = re.findall(r"`(chip\.[^`]+)`", PAGE.read_text())
    assert sorted(named) == sorted(figures()), "run: python benchmarks/sensitivity.py --docs"


def test_the_page_has_their_bands() -> None:
    for path, band, confidence, *_ in moved():
        row = figures()[path.strip("`")]
        assert band == f"{row.value:g} ({row.low:g} to {row.high:g}) {row.unit}"
        assert confidence == row.confidence


def test_the_page_lists_those_first_that_move_most() -> None:
    sizes = [max(abs(x) for cell in cells[3:] for x in numbers(cell)) for cells in moved()]
    assert sizes == sorted(sizes, reverse=True)


def test_the_page_has_the_right_order_of_magnitude() -> None:
    names = list(PROGRAMS)
    written = {cells[0].strip("`"): dict(zip(names, cells[3:])) for cells in moved()}
    for effect in largest().effects:
        for name, now in effect.changes.items():
            for then, change in zip(numbers(written[effect.figure.path][name]), now):
                assert abs(then - change) <= 0.03 + abs(change), (effect.figure.path, name)


def test_a_slower_part_makes_nothing_faster() -> None:
    for effect in largest().effects:
        fast, slow = 0, 1
        if effect.figure.unit not in sensitivity._COSTS:
            fast, slow = 1, 0
        for name, changes in effect.changes.items():
            assert changes[fast] <= 0 <= changes[slow], (effect.figure.path, name)


def test_all_at_once_move_at_least_as_much_as_each() -> None:
    for effect in largest().effects:
        for name, changes in effect.changes.items():
            fastest, slowest = largest().everything[name]
            assert fastest <= min(changes)
            assert max(changes) <= slowest


def test_changes_are_those_of_the_times() -> None:
    (row,) = (row for row in figures().values() if row.path == "chip.core.start_stop_ns")
    measure = PROGRAMS["DMA stream"]
    (effect,) = report({"DMA stream": measure}, [row]).effects
    for change, end in zip(effect.changes["DMA stream"], (row.low, row.high)):
        time = measure(with_figure(machine(), row.path, end))
        assert time == pytest.approx(measure(machine()) * (1 + change))
        assert time - measure(machine()) == (end - row.value) * 1000


def test_views_have_everything() -> None:
    found = largest()
    read = json.loads(json.dumps(as_json(found)))
    assert [effect["path"] for effect in read["effects"]] == [e.figure.path for e in found.effects]
    assert read["everything"].keys() == QUICK.keys()
    text = page(found)
    assert all(effect.figure.path in text for effect in found.effects)
    assert all(name in text for name in QUICK)
    assert table(found).row_count >= 2


def test_the_command_writes_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sensitivity, "report", lambda programs, rows: largest())
    monkeypatch.setattr(sensitivity, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["sensitivity.py", "--docs"])
    sensitivity.main()
    assert (tmp_path / "page.md").read_text() == page(largest())
    monkeypatch.setattr(sys, "argv", ["sensitivity.py", "--json"])
    sensitivity.main()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(as_json(largest())))
    monkeypatch.setattr(sys, "argv", ["sensitivity.py"])
    monkeypatch.setenv("COLUMNS", "400")
    sensitivity.main()
    assert "all extrapolated" in capsys.readouterr().out
