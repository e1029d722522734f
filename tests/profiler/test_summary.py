"""The summary fits a screen and says what the timeline says; `save` finds views by suffix."""

import re

import pytest
from small_programs import copies, gemm, multiply_mx

from jax_trn3.profiler import VIEWS, runs, save, summary
from jax_trn3.profiler.units import duration
from jax_trn3.simulator import program, simulate


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("made", [copies(), gemm(2048), multiply_mx(10**6)], ids=lambda p: p.name)
def test_fits_a_screen(made, width: int) -> None:
    lines = summary(simulate(made), width).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_says_what_the_timeline_says() -> None:
    timeline = simulate(gemm(2048))
    text = summary(timeline)
    assert text.startswith("gemm of 2048 on one NeuronCore-v4 of a Trainium3\n")
    ends = duration(timeline.overhead_ps)
    assert f"{duration(timeline.time_ps)}, {ends} of it start and stop" in text
    assert f"{timeline.num_instructions:,} instructions, 26 in the text" in text
    spent = timeline.engines["core0/tensor"]
    row = re.search(r"^ tensor +(.*)$", text, re.M)
    assert row is not None
    times = [duration(t) for t in (spent.busy, spent.waiting, spent.idle)]
    assert re.split(r"  +", row[1].strip()) == [
        *times,
        f"{spent.utilization * 100:.1f} %",
        f"{spent.instructions:,}",
    ]
    assert "busiest: tensor" in text
    assert "64 MiB read, 8 MiB written" in text
    assert re.search(r"tensor_copy +vector .* small_programs.py:\d+", text)
    assert re.search(r"scalar .* nc_matmul on tensor", text)


def test_peak_use_is_not_guessed_for_a_long_timeline() -> None:
    assert "in use at the peak" in summary(simulate(multiply_mx(100)))
    assert "in use at the peak" not in summary(simulate(multiply_mx(10**6)))


def test_empty_program() -> None:
    assert "0 instructions" in summary(simulate(program("nothing", [])))


@pytest.mark.parametrize(
    ("ps", "text"), [(0, "0 ps"), (999, "999 ps"), (1500, "1.5 ns"), (2 * 10**12, "2 s")]
)
def test_durations(ps: int, text: str) -> None:
    assert duration(ps) == text


def test_every_view_is_found_by_its_suffix(tmp_path) -> None:
    timeline = simulate(copies())
    for suffix in VIEWS:
        path = tmp_path / f"view{suffix}"
        save(timeline, path)
        files = path.iterdir() if path.is_dir() else [path]
        assert sum(file.stat().st_size for file in files) > 1000


def test_unknown_suffix_names_the_known_ones(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no view ends in '.txt'; these do: .json, .pftrace"):
        save(simulate(copies()), tmp_path / "x.txt")


@pytest.mark.parametrize("window", [(5, 5), (-1, 5), (7, 3)])
def test_windows_that_are_none_are_refused(window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs 0 <= start < end"):
        runs(simulate(copies()), window)
