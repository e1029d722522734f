"""Loops in stages: the same instructions read what the same instructions wrote, and it is faster."""

from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from examples.headline_programs.softmax import softmax as softmax_by_hand
from jax_trn3.hardware import TRAINIUM3
from jax_trn3.simulator import simulate
from jax_trn3.simulator.liveness import operands
from jax_trn3.simulator.walk import instances, slots
from pallas_trn3.timing import kernel_of_function
from pallas_trn3.timing.grid import _settled

F32, BF16 = jnp.float32, jnp.bfloat16


def softmax(x):
    e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
    return e / jnp.sum(e, -1, keepdims=True)


def layernorm(x):
    x = x.astype(F32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6)


def gated(x):
    return jnp.tanh(jnp.exp(x) + x.max(-1, keepdims=True)) * jnp.sin(x)


def by_rows(function, rows, columns, dtype=BF16):
    """A kernel that works on 128 rows at a time."""

    def kernel(x_ref, o_ref):
        o_ref[...] = function(x_ref[...]).astype(o_ref.dtype)

    shape = jax.ShapeDtypeStruct((rows, columns), dtype)
    spec = pl.BlockSpec((128, columns), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel, grid=(rows // 128,), in_specs=[spec], out_specs=spec, out_shape=shape
    )
    return kernel_of_function(call, shape)


def summed(rows, columns):
    """Something that goes on from step to step: the same output block in every one."""

    def kernel(x_ref, o_ref):
        @pl.when(pl.program_id(0) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        e = jnp.exp(x_ref[...] - o_ref[...].max(-1, keepdims=True))
        o_ref[...] = jnp.tanh(o_ref[...] + e)

    shape = jax.ShapeDtypeStruct((rows, columns), F32)
    call = pl.pallas_call(
        kernel,
        grid=(rows // 128,),
        in_specs=[pl.BlockSpec((128, columns), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((128, columns), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((128, columns), F32),
    )
    return kernel_of_function(call, shape)


def flow(program):
    """Who reads what whom: instructions by line, name, written tile and how often they ran."""
    text = list(program.instructions())
    ran, last, found = Counter(), {}, defaultdict(set)
    for number, indices in instances(program):
        instruction = text[number]
        place = (
            instruction.origin.line,
            instruction.name,
            *(a.tile.name for _, a in instruction.operands),
        )
        who = (place, ran[place])
        ran[place] += 1
        for access, reads in operands(instruction):
            for slot in slots(access, indices):
                key = access.tile.name, slot, access.start
                if reads and access.tile.memory != "hbm":
                    found[who].add((access.tile.name, last.get(key)))
        for access, reads in operands(instruction):
            for slot in slots(access, indices):
                if not reads:
                    last[access.tile.name, slot, access.start] = who
    return dict(found)


KERNELS = {
    "softmax": lambda: by_rows(softmax, 1024, 512),
    "layernorm": lambda: by_rows(layernorm, 1024, 512, F32),
    "gated": lambda: by_rows(gated, 1024, 512, F32),
    "summed": lambda: summed(1024, 256),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_values_go_the_same_ways(name):
    kernel = KERNELS[name]()
    staged, plain = (_settled(kernel, TRAINIUM3, room).program for room in ("stages", "turns"))
    assert flow(staged) == flow(plain)
    fast, slow = simulate(staged), simulate(plain)
    assert fast.num_instructions == slow.num_instructions
    assert fast.active_ps <= slow.active_ps


def test_stages_are_worth_it():
    kernel = by_rows(softmax, 2048, 2048)
    fast, slow = (
        simulate(_settled(kernel, TRAINIUM3, room).program) for room in ("stages", "turns")
    )
    by_hand = simulate(softmax_by_hand(2048, 2048, "scalar", "hbm"))
    assert fast.active_ps < 0.75 * slow.active_ps
    assert fast.active_ps < 1.4 * by_hand.active_ps
