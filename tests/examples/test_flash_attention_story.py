"""The story's four numbers, within 15 % of the talk's."""

import re

import jax
import numpy as np
import pytest

from examples.flash_attention_story import (
    step1_qkv,
    step2_attention,
    step3_collectives,
    step4_whole,
)
from examples.flash_attention_story.picture import picture
from examples.flash_attention_story.shape import TRN2, TRN3, utilisation
from jax_trn3.simulator import Timeline


def within(found: float, said: float) -> bool:
    return abs(found / said - 1) <= 0.15


def runs_of(timeline: Timeline, name: str) -> int:
    """How often an instruction ran."""
    pairs = zip(timeline.instructions, timeline.executions)
    return sum(int(runs) for instruction, runs in pairs if instruction.name == name)


def test_fp8_halves_the_projection() -> None:
    step = step1_qkv.step()
    assert within(step.faster, 2.0)
    assert utilisation(step.before) > 0.9


def test_large_moves_make_attention_13_percent_faster() -> None:
    step = step2_attention.step()
    assert within(step.faster - 1, 0.13)
    before, after = (runs_of(t, "tensor_scalar_reduce") for t in (step.before, step.after))
    assert before == 4 * after
    for name in ("nc_matmul", "activation_reduce", "dma_transpose"):
        assert runs_of(step.before, name) == runs_of(step.after, name)


def test_moves_do_not_change_values() -> None:
    q, k, v = (
        jax.random.normal(key, (1, 512, 1, 64), "float32")
        for key in jax.random.split(jax.random.key(0), 3)
    )
    small = step2_attention.small_moves(q, k, v)
    large = step2_attention.large_moves(q, k, v)
    np.testing.assert_array_equal(small, large)


def test_sbuf_to_sbuf_gathers_four_times_as_fast() -> None:
    gather = step3_collectives.gather()
    assert within(gather.faster, 4.0)
    assert gather.between_sbufs < gather.through_hbm


@pytest.mark.parametrize("chip", [TRN2, TRN3], ids=lambda chip: chip.name)
def test_utilisation_of_the_tensor_engine(chip: object) -> None:
    found = utilisation(step4_whole.attention(chip))
    if chip is TRN2:
        assert within(found, step4_whole.SAID["Trainium2"])
    else:
        assert found > step4_whole.SAID["Trainium3"]
        assert step4_whole.layer(chip)["together"][1] > 0.9


def test_pictures_show_the_engines() -> None:
    text = picture(step2_attention.step().after, "attention")
    assert text.startswith("<svg")
    assert text.endswith("</svg>\n")
    for lane in ("tensor", "vector", "scalar"):
        assert f">{lane}</text>" in text
    assert len(re.findall("<rect", text)) > 50
