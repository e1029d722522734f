"""The summary of an estimate fits a screen and says what the estimate says."""

import re

import pytest
from hand_made import body, collective, compute, estimate_of, while_

from jax_trn3.estimates import summary
from jax_trn3.estimates.json_view import document
from jax_trn3.profiler.units import duration

LAYER = [compute("copies", 30, 3, 11, "mul"), collective(10**8, 2**20, 13)]
STEP = body(
    compute(),
    collective(),
    compute("products", 30, 2, 8),
    (80, [*LAYER, (5, [compute("products", 4, 1, 12, lacks="no sort")])]),
)
MANY = body(*(compute(line=line, name=f"operation_{line}" * 4) for line in range(1, 40)))


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("schedule", [STEP, MANY, body()], ids=["step", "many", "nothing"])
@pytest.mark.parametrize("peak", [0, 2**40])
def test_fits_a_screen(schedule, width: int, peak: int) -> None:
    lines = summary(estimate_of(schedule, peak=peak), width).splitlines()
    assert len(lines) <= 55
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_says_what_the_estimate_says() -> None:
    estimate = estimate_of(STEP)
    text = summary(estimate)
    assert text == str(estimate)
    assert text.startswith("step on trn3-chip, 8 devices of Trainium3, mesh data=4 x model=2\n")
    start = duration(estimate.time_ps - STEP.time_ps)
    assert f"\n{duration(estimate.time_ps)} a run, {start} of it start and stop; " in text
    assert f"{estimate.cost.instructions:,} instructions a device" in text
    assert f"MFU      {estimate.mfu * 100:.1f} %, HFU {estimate.hfu * 100:.1f} %" in text
    assert f"nearest bound: {estimate.bound}, " in text
    assert "1 GiB of 18 GiB HBM a device at the peak (5.6 %): fits" in text
    row = estimate.by_operation()[0]
    where = rf"{row.source.file.rpartition('/')[2]}:{row.source.line}"
    assert re.search(rf"{duration(row.time_ps)} .*{row.count} .*{where} +layer/mul\n", text)
    assert re.search(r"all_gather \(ring\)", text)
    assert "the hardware lacks (1):\n  no sort (model.py:12)\n" in text
    assert "assumptions (2):\n  copies assumed\n  products assumed\n" in text
    assert "core.tensor: min_moving_cycles" in text
    assert "gpsimd:" not in text  # it has nothing to do


def test_collectives_exposed_and_busy() -> None:
    estimate = estimate_of(body(collective(10**8), compute("copies", 1)))
    hidden = compute("copies", 1).time_ps
    text = summary(estimate)
    assert re.search(rf"{duration(10**8 - hidden)} +100 us +1 +model.py:9 +all_gather", text)


def test_what_does_not_fit_is_named() -> None:
    text = summary(estimate_of(STEP, peak=2**40))
    assert "1 TiB of 18 GiB HBM a device at the peak (5688.9 %): DOES NOT FIT" in text
    assert re.search(r"512 GiB +bf16\[137438953472, 4\] +parameter 0 +model.py:7", text)


def test_tokens() -> None:
    estimate = estimate_of(STEP)
    text = summary(document(estimate, 8192))
    assert f"{estimate.tokens_per_s(8192):,.0f} tokens/s, " in text
    assert f"{estimate.tokens_per_s_per_mw(8192):,.0f} tokens/s/MW" in text
    assert "tokens" not in summary(estimate)


def test_repr_is_short() -> None:
    estimate = estimate_of(STEP)
    assert repr(estimate) == f"<Estimate of step on trn3-chip: {duration(estimate.time_ps)}>"


def test_condition_of_a_loop_is_a_line_of_its_own() -> None:
    loop = while_(10, body(compute()), condition_ps=10**6)
    estimate = estimate_of(body(loop))
    lines = {line.kind: line for line in estimate.lines}
    assert lines["loop"].time_ps == 11 * 10**6
    assert lines["compute"].time_ps == 10 * compute().time_ps
    assert sum(line.cost.instructions for line in estimate.lines) == estimate.cost.instructions


def test_nothing_has_no_bound() -> None:
    assert "bound:" not in summary(estimate_of(body()))


def test_loop_that_never_runs() -> None:
    estimate = estimate_of(body(while_(0, body(compute()), condition_ps=10**6)))
    assert sum(line.time_ps for line in estimate.lines) == 10**6
    assert "a run" in summary(estimate)
