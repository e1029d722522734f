"""docs/neuron_sdk.md is what the table says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import neuron_sdk_page

from jax_trn3.neuron_sdk import RULES


def test_page_is_current() -> None:
    written = neuron_sdk_page.PAGE.read_text()
    assert written == neuron_sdk_page.page(), "run python tools/neuron_sdk_page.py"


def test_page_has_every_rule() -> None:
    page = neuron_sdk_page.page()
    assert all(page.count(f"### {rule.id}\n") == 1 for rule in RULES)
