"""The compiler takes the library's attention where it is faster than its own."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jax_trn3
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.compiler.timing.rules.attention import forward
from jax_trn3.compiler.timing.rules.attention_shape import Shape
from jax_trn3.hardware import TRAINIUM2, TRAINIUM3
from jax_trn3.simulator import simulate
from pallas_trn3.kernels import attention_rule


@pytest.fixture
def installed() -> Iterator[None]:
    attention_rule.install()
    yield
    attention_rule.install()


def shape(**changes: Any) -> Shape:
    sizes = {"heads": 1, "group": 4, "queries": 2048, "keys": 2048} | changes
    return Shape(features=128, value_features=128, dtype="bf16", run=128, **sizes)


@pytest.mark.parametrize("chip", [TRAINIUM2, TRAINIUM3], ids=lambda chip: chip.name)
def test_where_it_suits_it_is_faster(chip: Any) -> None:
    one = shape()
    assert attention_rule.suits(one, chip)
    plan, own = attention_rule._plan(one, chip), forward(one, chip, "own")
    assert plan.flops == own.flops
    times = [simulate(p.program, chip).time_ps * p.repeat for p in (plan, own)]
    assert times[0] < times[1]


def test_elsewhere_the_compilers_own_stays() -> None:
    for changes in ({"causal": True}, {"window": (9, 9)}, {"mask": True}, {"keys": 512}):
        assert not attention_rule.suits(shape(**changes), TRAINIUM3)


def test_estimates_take_it(installed: None) -> None:
    assert RULES[attention_rule.NAME] is attention_rule.attention
    q, k = (jax.ShapeDtypeStruct((1, 2048, n, 128), jnp.bfloat16) for n in (4, 1))
    with_kernel = jax_trn3.estimate(jax_trn3.dot_product_attention, q, k, k)
    attention_rule.uninstall()
    own = jax_trn3.estimate(jax_trn3.dot_product_attention, q, k, k)
    assert with_kernel.time_s < own.time_s
