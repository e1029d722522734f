"""Everything that JAX can compute has a cost: a sweep over jnp, lax, jax.nn, linalg, with gradients."""

import jax
import pytest
from sweep import calls, gradient, has_gradient

import jax_trn3

CALLS = {name: (function, shapes) for name, function, shapes in calls()}

# Nothing is computed or moved: the result is the operand.
FREE = {"jnp.positive", "bitcast"}

# What the hardware has no instruction for, and says so.
LACKS = (
    "complex",
    "fft",
    "rfft2",
    "irfft",
    "cholesky",
    "eigh",
    "qr",
    "svd",
    "pure_callback",
    "eig",
)


# Groups that no rule takes as one: they run operation by operation, and the estimate says so.
ONE_BY_ONE = {"zeta"}


def estimated(function, shapes) -> jax_trn3.Estimate:
    return jax_trn3.estimate(function, *shapes, topology="trn3-core", while_trip_count=10)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_never_silently_free(name: str) -> None:
    function, shapes = CALLS[name]
    estimate = estimated(function, shapes)
    assert not any("no program was found" in line for line in estimate.assumptions)
    assert (estimate.schedule.time_ps > 0) == (name not in FREE)
    if name not in FREE:
        results = jax.tree.leaves(jax.eval_shape(function, *shapes))
        assert estimate.cost.hbm_write_bytes >= max(x.size for x in results)
        assert sum(line.time_ps for line in estimate.lines) == estimate.schedule.time_ps
    if name in LACKS:
        assert estimate.lacks
        assert all(reason for reason, _ in estimate.lacks)


@pytest.mark.parametrize("name", [name for name in CALLS if has_gradient(CALLS[name][1])])
def test_so_is_its_gradient(name: str) -> None:
    function, shapes = CALLS[name]
    derivative = gradient(function, shapes)
    try:
        jax.eval_shape(derivative, *shapes)
    except (NotImplementedError, ValueError, TypeError) as error:
        pytest.skip(f"JAX has no derivative: {error}"[:100])
    estimate = estimated(derivative, shapes)
    missed = any("no program was found" in line for line in estimate.assumptions)
    assert missed == (name in ONE_BY_ONE)
    assert estimate.cost.hbm_write_bytes > 0
