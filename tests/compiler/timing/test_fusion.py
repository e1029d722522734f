"""Bodies are cut into groups as a good compiler would: one pass over HBM wherever one will do."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jax_trn3.compiler.timing.fusion import groups, memory_of
from jax_trn3.compiler.timing.graph import Body, Operation, Tensor
from jax_trn3.compiler.timing.group import Group
from jax_trn3.compiler.timing.read import device_program

F32, BF16 = jnp.float32, jnp.bfloat16


def struct(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def body_of(fun, *shapes) -> Body:
    traced = jax.jit(fun).trace(*shapes)
    module = traced.lower(lowering_platforms=("trn3",)).compiler_ir("stablehlo")
    return device_program(module).body


def cut(fun, *shapes) -> list:
    return groups(body_of(fun, *shapes))


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * scale + bias


def rms_norm(x, scale):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def adamw(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return p - 1e-3 * (m / (jnp.sqrt(v) + 1e-8) + 0.1 * p), m, v


def loss(logits, labels):
    log_p = jax.nn.log_softmax(logits.astype(F32))
    return -(jax.nn.one_hot(labels, logits.shape[-1]) * log_p).sum(-1).mean()


ROW = struct(512)
ONE_GROUP = {
    "softmax": (lambda x: jax.nn.softmax(x), (struct(4, 64, 512),)),
    "layer_norm": (layer_norm, (struct(256, 512), ROW, ROW)),
    "rms_norm": (rms_norm, (struct(256, 512, dtype=BF16), ROW)),
    "adamw": (adamw, (struct(256, 512),) * 4),
    "loss": (loss, (struct(256, 512, dtype=BF16), struct(256, dtype=jnp.int32))),
    "gradient of a loss": (
        jax.grad(loss),
        (struct(256, 512, dtype=BF16), struct(256, dtype=jnp.int32)),
    ),
}


@pytest.mark.parametrize("name", ONE_GROUP)
def test_one_pass_over_hbm(name):
    fun, shapes = ONE_GROUP[name]
    body = body_of(fun, *shapes)
    groups_ = [g for g in groups(body) if max(t.size for t in (*g.inputs, *g.outputs)) > 1]
    (group,) = groups_
    assert group.rule == "rows"
    # Of the parameters everything once, of the results everything once, and nothing else.
    assert sum(t.bytes for t in group.inputs) == sum(t.bytes for t in body.parameters)
    assert sum(t.bytes for t in group.outputs) == sum(t.bytes for t in body.results)


def test_epilogue_of_a_matmul():
    found = cut(
        lambda x, w, b: jax.nn.gelu(x @ w + b), struct(64, 128), struct(128, 256), struct(256)
    )
    (group,) = found
    assert group.rule == "matmul"
    assert sorted(t.size for t in group.inputs) == [256, 64 * 128, 128 * 256]
    assert [t.size for t in group.outputs] == [64 * 256]


def test_a_long_epilogue_is_rows_of_its_own():
    def step(x, g, p, m, v):
        return adamw(p, x.T @ g, m, v)

    state = struct(128, 256)
    found = cut(step, struct(64, 128), struct(64, 256), state, state, state)
    assert [g.rule for g in found] == ["matmul", "rows"]
    assert len(found[1].outputs) == 3


def test_two_matmuls_are_two_groups():
    found = cut(
        lambda x, a, b: jax.nn.silu(x @ a) * (x @ b), struct(64, 128), *[struct(128, 256)] * 2
    )
    assert [g.rule for g in found] == ["matmul", "matmul"]


def test_a_gradient_is_written_transposed():
    found = cut(jax.grad(lambda w, x: (x @ w).sum()), struct(128, 256), struct(64, 128))
    assert "transpose" not in [g.rule for g in found]


def test_control_flow_stays_whole():
    def scan(x, ws):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]

    found = cut(scan, struct(64, 128), struct(4, 128, 128))
    (loop,) = [part for part in found if isinstance(part, Operation)]
    assert loop.kind == "stablehlo.while"
    inner = groups(loop.regions[-1])
    dot = next(g for g in inner if g.rule == "matmul")
    # The weights of an iteration are read from where they lie among those of all.
    assert sorted(t.shape for t in dot.inputs) == [(64, 128), (128, 128)]
    assert {t.id for t in dot.inputs} <= {t.id for t in loop.regions[-1].parameters}


def test_an_update_is_written_where_it_belongs():
    def scan(xs):
        return lax.scan(lambda h, x: (h + 1.0, jnp.exp(x)), 0.0, xs)[1]

    (loop,) = [part for part in cut(scan, struct(8, 1024)) if isinstance(part, Operation)]
    rows = [g for g in groups(loop.regions[-1]) if max(t.size for t in g.outputs) > 1]
    (group,) = rows
    assert group.rule == "rows"
    assert [t.size for t in group.outputs] == [1024]
    assert group.outputs[0].id in {t.id for t in loop.regions[-1].results}


def test_shape_only_operations_are_in_no_group():
    body = body_of(lambda x: jnp.exp(x.reshape(8, 32) + 1.0).reshape(4, 64), struct(256))
    (group,) = groups(body)
    assert [op.kind for op in group.operations] == ["stablehlo.add", "stablehlo.exponential"]
    assert group.inputs[0].id == body.parameters[0].id
    assert memory_of(body)[body.results[0].id].id == group.outputs[0].id


def test_a_broadcast_is_written_for_who_cannot_look_behind_it():
    found = cut(lambda x, w: jnp.broadcast_to(x, (64, 128)) @ w, struct(128), struct(128, 32))
    assert [g.rule for g in found] == ["rows", "matmul"]
    assert [t.shape for t in found[0].outputs] == [(64, 128)]


def test_dead_operations_are_in_no_group():
    x, y, z = (Tensor(n, (8,), "f32") for n in range(3))
    live = Operation("stablehlo.exponential", (x,), (y,))
    dead = Operation("stablehlo.tanh", (x,), (z,))
    (group,) = groups(Body((x,), (dead, live), (y,)))
    assert group.operations == (live,)


def chain_of(length: int) -> Body:
    """Sums of two values before, and now and then a product."""
    values = [Tensor(n, (64, 64), "f32") for n in range(length + 2)]
    operations = [
        Operation(
            "stablehlo.add" if n % 7 else "stablehlo.dot_general",
            (values[n], values[n // 2]),
            (values[n + 2],),
        )
        for n in range(length)
    ]
    return Body(tuple(values[:2]), tuple(operations), tuple(values[-3:]))


def test_every_group_reads_what_is_there():
    body = chain_of(200)
    there = {t.id for t in body.parameters}
    for group in groups(body):
        assert isinstance(group, Group)
        assert {t.id for t in group.inputs} <= there
        there |= {t.id for t in group.outputs}
    assert {t.id for t in body.results} <= there


def test_same_body_same_groups():
    assert groups(chain_of(100)) == groups(chain_of(100))


def test_cost_is_linear():
    def seconds(length):
        body = chain_of(length)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            groups(body)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(4000) < 8 * seconds(1000)
