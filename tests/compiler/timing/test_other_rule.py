"""No operation is silently free: each has a rule, or a reason why it costs nothing."""

import jax
import jax.numpy as jnp
import pytest
from jaxlib.mlir.dialects import chlo, stablehlo

from jax_trn3.compiler.timing.fusion import groups
from jax_trn3.compiler.timing.graph import Body, Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.kinds import (
    COLLECTIVES,
    CONTROL_FLOW,
    DOTS,
    ELEMENTWISE,
    FREE,
    RULE_OF,
    VIEWS,
    custom_call_rule,
    rule_of,
)
from jax_trn3.compiler.timing.read import device_program
from jax_trn3.compiler.timing.rules import RULES
from jax_trn3.compiler.timing.rules.elementwise import recipe
from jax_trn3.hardware import TRAINIUM1, TRAINIUM3
from jax_trn3.simulator import simulate


def operations_of(dialect):
    names = (getattr(value, "OPERATION_NAME", "") for value in vars(dialect).values())
    return sorted({name for name in names if isinstance(name, str) and name})


@pytest.mark.parametrize("kind", operations_of(stablehlo) + operations_of(chlo))
def test_every_operation_costs_something_or_says_why_not(kind):
    ours = kind in FREE, kind in CONTROL_FLOW, kind in COLLECTIVES
    if any(ours):
        assert sum(ours) == 1
        assert kind not in FREE or FREE[kind]
        return
    assert kind in {*VIEWS, *DOTS, *ELEMENTWISE, *RULE_OF}
    assert rule_of(Operation(kind, (), ())) in RULES
    if kind in ELEMENTWISE:
        assert recipe(Operation(kind, (), ()))


def groups_of(fun, *shapes):
    traced = jax.jit(fun).trace(*shapes)
    module = traced.lower(lowering_platforms=("trn3",)).compiler_ir("stablehlo")
    return [g for g in groups(device_program(module).body) if isinstance(g, Group)]


MATRIX = jax.ShapeDtypeStruct((256, 256), jnp.float32)
LACKING = {
    "fft": (jnp.fft.fft, jax.ShapeDtypeStruct((64, 512), jnp.complex64)),
    "cholesky": (jnp.linalg.cholesky, MATRIX),
    "qr": (lambda x: jnp.linalg.qr(x), MATRIX),
    "eigh": (lambda x: jnp.linalg.eigh(x), MATRIX),
    "svd": (lambda x: jnp.linalg.svd(x), MATRIX),
    "sort": (lambda x: jnp.sort(x), MATRIX),
    "callback": (lambda x: jax.pure_callback(lambda y: y, MATRIX, x), MATRIX),
}


@pytest.mark.parametrize("chip", [TRAINIUM1, TRAINIUM3], ids=lambda chip: chip.name)
@pytest.mark.parametrize("name", LACKING)
def test_what_the_hardware_lacks_is_listed(name, chip):
    fun, shape = LACKING[name]
    lacks = []
    for group in groups_of(fun, shape):
        plan = RULES[group.rule](group, chip)
        timeline = simulate(plan.program, chip, active_cores=chip.cores_per_stack)
        assert timeline.active_ps > 0
        if plan.lacks:
            lacks.append(plan.lacks)
            moved = timeline.hbm_read_bytes + timeline.hbm_write_bytes
            assert moved >= sum(t.bytes for t in group.outputs)
            # Never faster than the products that it needs.
            assert plan.flops / chip.core.peak_flops("bfloat16") * 1e12 <= timeline.active_ps
    assert lacks


def test_what_nobody_knows_is_listed():
    x, y = Tensor(0, (1000, 77), "f32"), Tensor(1, (13,), "bf16")
    call = Operation("custom_call:mystery", (x,), (y,))
    (group,) = groups(Body((x,), (call,), (y,)))
    plan = RULES[group.rule](group, TRAINIUM3)
    timeline = simulate(plan.program, TRAINIUM3)
    assert "mystery" in plan.lacks
    assert (timeline.hbm_read_bytes, timeline.hbm_write_bytes) == (x.bytes, y.bytes)


def test_larger_factorizations_take_longer():
    def picoseconds(n):
        x, y = (Tensor(k, (n, n), "f32") for k in range(2))
        (group,) = groups(Body((x,), (Operation("stablehlo.cholesky", (x,), (y,)),), (y,)))
        return simulate(RULES[group.rule](group, TRAINIUM3).program, TRAINIUM3).active_ps

    assert picoseconds(128) < picoseconds(256) < picoseconds(1024)


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("lapack_spotrf_ffi", "linear_algebra"),
        ("xla_ffi_python_cpu_callback", "host"),
        ("TopK", "top_k"),
        ("something_else", "other"),
    ],
)
def test_custom_calls_by_their_target(target, rule):
    assert custom_call_rule(target) == rule
    assert rule in RULES


def test_random_bits():
    (group,) = groups_of(
        lambda key: jax.lax.rng_bit_generator(key, (512, 512)),
        jax.ShapeDtypeStruct((4,), jnp.uint32),
    )
    plan = RULES[group.rule](group, TRAINIUM3)
    timeline = simulate(plan.program, TRAINIUM3)
    assert timeline.hbm_write_bytes >= 512 * 512 * 4
    assert plan.assumptions
