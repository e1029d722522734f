"""The tutorial runs, and prints what it says: the same words, whatever the numbers."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels.md"
sys.path.insert(0, str(ROOT / "tools"))

from run_page import blocks  # noqa: E402


@pytest.fixture(scope="module")
def run():
    return list(blocks(PAGE))


def words(text: str) -> list[str]:
    """Without numbers, their units and the lines of tables: those follow from the machine."""
    return re.findall(r"[A-Za-z_]{3,}", text)


def test_tutorial_runs(run):
    assert len(run) >= 8


def test_tutorial_prints_what_it_says(run):
    for block in run:
        said = (
            f"line {block.line}; python tools/run_page.py {PAGE.relative_to(ROOT)} writes it anew"
        )
        assert (block.shown is None) == (block.printed == "\n"), said
        if block.shown is not None:
            assert set(words(block.shown)) == set(words(block.printed)), said
