"""Each rule finds what it is about, where it is, and not what is beside it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from sdk_programs import CASES, Case

from jax_trn3.neuron_sdk import RULES, Finding, check


def marked_line(function: Any) -> int:
    """The line that ends in "# here", of a function or of what is written around it."""
    lines = Path(inspect.getfile(function)).read_text().splitlines()
    first = function.__code__.co_firstlineno
    start = max(at for at in range(first) if lines[at].startswith("@case"))
    return next(at for at in range(start, len(lines)) if lines[at].endswith("# here")) + 1


def found(rule: str, function: Any, args: tuple[Any, ...]) -> list[Finding]:
    return [finding for finding in check(function, *args) if finding.rule == rule]


@pytest.mark.parametrize("name", CASES)
def test_rule_finds_its_line(name: str) -> None:
    rule, case = name.partition(":")[0], CASES[name]
    with case.configured():
        (finding,) = found(rule, case.hit, case.args)
    assert finding.file == __file__.replace("test_rules", "sdk_programs")
    assert finding.line == marked_line(case.hit)


@pytest.mark.parametrize("name", CASES)
def test_rule_does_not_find_the_near_miss(name: str) -> None:
    rule, case = name.partition(":")[0], CASES[name]
    with case.configured():
        assert found(rule, case.miss, case.miss_args or case.args) == []


def test_every_rule_has_a_case() -> None:
    assert {name.partition(":")[0] for name in CASES} == {rule.id for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_is_complete(rule: Any) -> None:
    assert [rule.equation, rule.dtype, rule.operation].count(None) == 2
    assert rule.pages
    assert all(page.endswith(".rst") or page.startswith("jax/") for page in rule.pages)
    for sentence in (rule.says, rule.way_out):
        assert not sentence.endswith(".")
        assert sentence


def test_names_of_rules_are_different() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_case_leaves_the_configuration_as_it_was() -> None:
    import jax

    with Case(len, len, settings={"jax_enable_x64": True}).configured():
        assert jax.config.jax_enable_x64
    assert not jax.config.jax_enable_x64
