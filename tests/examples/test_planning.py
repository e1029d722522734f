"""The planned models compute what they are called, and plans of them make sense."""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax_trn3
from examples import plan_decode, plan_training
from examples.plan_decode import Point, at, decoded, frontier
from examples.plan_mesh import Candidate, layouts, ranked, reason
from examples.plan_training import UNQUANTIZED
from examples.planning import decoding, forward, models, training
from examples.planning.experts import places
from examples.planning.figures import Plan, model_flops, plan
from examples.planning.layout import Layout
from examples.planning.models import Experts, Latent, Model
from examples.planning.parameters import active, count, parameters
from jax_trn3.estimates import estimate

# The models.


@pytest.mark.parametrize(
    ("model", "billions", "active_billions"),
    [
        (models.LLAMA3_70B, 70.6, 69.5),
        (models.LLAMA3_405B, 405.9, 403.8),
        (models.MIXTRAL_8X22B, 140.6, 39.0),  # published: 141 and 39
        (models.DEEPSEEK_V3, 671.0, 36.6),  # published: 671 and 36.6 with the output layer
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_parameters_are_as_many_as_published(model, billions, active_billions):
    assert count(model) / 1e9 == pytest.approx(billions, abs=0.06)
    assert active(model) / 1e9 == pytest.approx(active_billions, abs=0.1)


def test_weights_of_gpt_oss_are_as_many_as_published():
    _, (params, *_) = decoding.decode_step(models.GPT_OSS_120B, Layout(tensor=8), 8, 128)
    leaves = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "format"))
    assert sum(math.prod(x.shape) for x in leaves) / 1e9 == pytest.approx(116.8, abs=0.05)
    bits = sum(math.prod(x.shape) * {"float4_e2m1fn": 4}.get(str(x.dtype), x.dtype.itemsize * 8)
               for x in jax.tree.leaves(params))  # fmt: skip
    assert bits / 8 / 2**30 == pytest.approx(60.8, abs=0.3)  # the model card's checkpoint


# What they compute, beside numpy in float64.

TINY = Model("tiny", "", 2, 64, 4, 2, 16, 96, 128, dtype="float32")
TINY_EXPERTS = dataclasses.replace(
    TINY,
    name="tiny experts",
    layers=3,
    kv_heads=4,
    experts=Experts(4, 2, 32, shared_width=32, dense_layers=1, capacity_factor=4.0),
    latent=Latent(24, 16, 8),
)


def drawn(shapes):
    """Random numbers, around one in norms."""
    rng = np.random.default_rng(0)

    def one(leaf):
        is_norm = math.prod(leaf.shape) <= 3 * 64
        return (is_norm + 0.2 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(one, shapes)


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x):
    """[tokens, heads, head_dim], each pair turned by its position."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * 500_000.0 ** -(np.arange(half) / half)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], -1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attended(query, key, value):
    """Causal, with as many queries a key as it takes; value as wide as it is."""
    group = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        logits = query[:, head] @ key[:, head // group].T / math.sqrt(query.shape[-1])
        logits[np.triu_indices(len(logits), 1)] = -np.inf
        heads.append(softmax(logits) @ value[:, head // group])
    return np.concatenate(heads, -1)


def swiglu(x, gate_up, down):
    gate, up = x @ gate_up[:, 0], x @ gate_up[:, 1]
    return gate / (1 + np.exp(-gate)) * up @ down


def attention_of(x, p, model):
    if model.latent is None:
        qkv = np.einsum("tw,wgnh->tgnh", x, p["qkv"])
        query = qkv[:, :, :-2].reshape(len(x), -1, model.head_dim)
        return attended(turned(query), turned(qkv[:, :, -2]), qkv[:, :, -1]) @ p["out"]
    q, kv, position = np.split(x @ p["narrow"], [24, 40], -1)
    query = np.einsum("tr,rnh->tnh", norm(q, p["query_norm"]), p["query_up"])
    query = np.concatenate([query[..., :16], turned(query[..., 16:])], -1)
    both = np.einsum("tr,rnh->tnh", norm(kv, p["key_value_norm"]), p["key_value_up"])
    position = np.broadcast_to(turned(position[:, None]), (len(x), 4, 8))
    key = np.concatenate([both[..., :16], position], -1)
    return attended(query, key, both[..., 16:]) @ p["out"]


def experts_of(x, p):
    scores = 1 / (1 + np.exp(-(x @ p["router"])))
    out = swiglu(x, p["shared_gate_up"], p["shared_down"])
    for token, row in enumerate(scores):
        best = np.argsort(-row)[:2]
        for expert in best:
            weights = p["expert_gate_up"][expert], p["expert_down"][expert]
            out[token] += row[expert] / row[best].sum() * swiglu(x[token : token + 1], *weights)[0]
    return out


def reference(params, tokens, model):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = [(kind, number) for kind, count in
              (("dense", model.dense_layers), ("experts", model.expert_layers))
              for number in range(count)]  # fmt: skip
    losses = []
    for before, after in zip(tokens[:, :-1], tokens[:, 1:]):
        x = params["embedding"][before]
        for kind, number in layers:
            p = {name: leaf[number] for name, leaf in params[kind].items()}
            x = x + attention_of(norm(x, p["attention_norm"]), p, model)
            inner = norm(x, p["ff_norm"])
            x = x + (
                experts_of(inner, p)
                if kind == "experts"
                else swiglu(inner, p["gate_up"], p["down"])
            )
        chances = softmax(norm(x, params["final_norm"]) @ params["lm_head"])
        losses.append(-np.log(chances[np.arange(len(after)), after]))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (TINY, Layout(replica=2, sequence=2, tensor=2)),
        (TINY_EXPERTS, Layout()),
        (TINY_EXPERTS, Layout(fsdp=2, expert=2, tensor=2)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_loss_is_that_of_the_model(model, layout):
    params = drawn(parameters(model, layout))
    tokens = np.random.default_rng(0).integers(0, 128, (4, 17), np.int32)
    ours = on_devices(functools.partial(forward.loss, model=model, layout=layout), layout)
    expected = reference(params, tokens, model)
    np.testing.assert_allclose(ours(params, tokens), expected, rtol=2e-5)


def on_devices(function, layout):
    """Jitted, on as many devices as the layout has."""
    names, sizes = zip(*layout.sizes)
    mesh = jax.make_mesh(
        sizes, names, axis_types=layout.mesh.axis_types, devices=jax.devices()[: layout.devices]
    )
    whole = jax.NamedSharding(mesh, jax.P())
    return jax.jit(function, in_shardings=whole, out_shardings=whole)


def test_step_is_that_of_the_whole_batch():
    step, shapes = training.training_step(TINY, Layout(microbatches=2), batch_size=4, sequence=16)
    params = drawn(shapes[0])
    tokens = np.random.default_rng(1).integers(0, 128, (2, 2, 17), np.int32)
    whole = tokens.reshape(4, 17)
    gradients = jax.jit(jax.grad(lambda p: forward.loss(p, whole, TINY, Layout())))(params)
    norm = math.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    zeros = [jax.tree.map(lambda p: jnp.zeros(p.shape), params) for _ in range(2)]
    _, first, _, loss = step(jax.tree.map(jnp.array, params), *zeros, jnp.int32(0), tokens)
    np.testing.assert_allclose(loss, reference(params, whole, TINY), rtol=2e-5)
    for moment, gradient in zip(jax.tree.leaves(first), jax.tree.leaves(gradients)):
        expected = 0.1 * gradient / max(norm, 1)
        np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-7)


def test_adamw_is_optax_s():
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((8, 8)).astype(np.float32), "b": np.ones(3, np.float32)}
    clip, adamw = optax.clip_by_global_norm(1.0), optax.adamw(3e-4, 0.9, 0.95, weight_decay=0.1)
    optimizer = optax.chain(clip, adamw)
    state, theirs = optimizer.init(params), params
    moments = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    for number in range(3):
        gradients = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(p.dtype), params)
        updates, state = optimizer.update(gradients, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        params, *moments = training.adamw(params, gradients, *moments, jnp.int32(number))
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(one, two, rtol=1e-5)


TINY_DECODED = Model(
    "tiny decoded", "", 4, 64, 8, 4, 8, 32, 128, Experts(8, 2, 32), window=4, dtype="float32"
)  # fmt: skip


def reference_step(params, cache, position, tokens, model):
    """Keys and values of the last layer, and logits; user by user, expert by expert."""
    params, cache = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (params, cache))
    results = []
    for user, token in enumerate(tokens):
        x = params["embedding"][token]
        for number in range(model.layers):
            pair, place = divmod(number, 2)
            p = {name: leaf[pair, place] for name, leaf in params["layers"].items()}
            rows = np.array(cache[("window", "all")[place]][pair, :, user])
            qkv = np.einsum("w,wgnh->gnh", norm(x, p["attention_norm"]), p["qkv"])
            here = position % rows.shape[1]
            rows[0, here] = turned_by(qkv[:, -2], position)
            rows[1, here] = qkv[:, -1]
            mixed = []
            for head, query in enumerate(turned_by(qkv[:, :-2].reshape(-1, 8), position)):
                logits = rows[0, :, head // 2] @ query / math.sqrt(8)
                weights = softmax(np.append(logits, p["sinks"][head]))[:-1]
                mixed.append(weights @ rows[1, :, head // 2])
            x = x + np.concatenate(mixed) @ p["out"]
            inner = norm(x, p["ff_norm"])
            scores = inner @ p["router"]
            best = np.argsort(-scores)[:2]
            for expert, weight in zip(best, softmax(scores[best])):
                gate_up = p["gate_up"][expert].reshape(64, 2, 32)
                x = x + weight * swiglu(inner[None], gate_up, p["down"][expert])[0]
        results.append((rows[:, here], norm(x, params["final_norm"]) @ params["lm_head"]))
    return [np.stack(part) for part in zip(*results)]


def turned_by(heads, position):
    return turned(np.repeat(heads[None], position + 1, 0))[position]


@pytest.mark.parametrize("layout", [Layout(), Layout(expert=2, tensor=4)], ids=str)
def test_decoding_is_that_of_the_model(layout, monkeypatch):
    monkeypatch.setattr(decoding, "places", lambda mean, most: most)  # nothing is dropped
    _, (params, cache, _, _) = decoding.decode_step(TINY_DECODED, layout, 4, 12, "bfloat16")
    params, cache = drawn(params), drawn(cache)
    tokens, position = np.array([5, 17, 99, 3], np.int32), np.int32(9)
    step = functools.partial(decoding._step, model=TINY_DECODED, layout=layout)
    after, following = on_devices(step, layout)(params, cache, position, tokens)
    rows, logits = reference_step(params, cache, 9, tokens, TINY_DECODED)
    new = np.asarray(after["all"])[-1, :, :, 9].swapaxes(0, 1)
    np.testing.assert_allclose(new, rows, atol=0.02 * np.abs(rows).max())
    assert following.tolist() == logits.argmax(-1).tolist()


# Layouts and figures.


def test_layouts_that_do_not_divide_say_so():
    with pytest.raises(ValueError, match="fsdp 128 does not divide 64"):
        training.training_step(TINY, Layout(fsdp=128), batch_size=128)
    with pytest.raises(ValueError, match="7 microbatches do not divide 1152"):
        training.training_step(TINY, Layout(microbatches=7))


def test_places_of_experts():
    assert places(models.MIXTRAL_8X22B, 8192) == 2560  # 8192 * 2 / 8 * 1.25
    assert decoding.places(0.01, 5) == 1
    assert decoding.places(16.0, 100) == 28
    assert decoding.places(16.0, 20) == 20


def test_model_flops_are_those_of_palm():
    # 6 N + 12 L H Q T, the latter halved by the mask (arXiv:2204.02311, appendix B).
    per_token = 6 * active(models.LLAMA3_70B) + 12 * 80 * 64 * 128 * 8192 / 2
    assert model_flops(models.LLAMA3_70B, 1000, 8192) == per_token * 1000


# What the examples say.


def point(per_user, per_megawatt, fits=True):
    return Point(
        "trn3-gen2", "mxfp4", 1, 1, 8192, 1 / per_user, per_user, per_megawatt, 1, fits, "hbm"
    )


def test_frontier_is_what_nothing_beats():
    found = [
        point(100, 10), point(50, 30), point(60, 5), point(20, 90, fits=False), point(25, 40)
    ]  # fmt: skip
    line = frontier(found)
    assert [p.tokens_per_s_user for p in line] == [100, 50, 25]
    assert at(line, 75) == pytest.approx(20)
    assert at(line, 25) == 40
    assert at(line, 101) is None


def test_layouts_use_all_devices_and_divide_the_model():
    found = list(layouts(models.LLAMA3_70B, 1152, 8))
    assert len(set(found)) == len(found) > 20
    assert Layout(replica=9, fsdp=16, tensor=8) in found
    for layout in found:
        assert layout.devices == 1152
        assert layout.tensor * layout.sequence <= 8


def candidate(time_s, exposed=0.0, hfu=0.5, fits=True, layout=""):
    figures = dict.fromkeys((field.name for field in dataclasses.fields(Plan)), 0)
    figures |= {"time_s": time_s, "exposed_collectives": exposed, "hfu": hfu, "fits": fits}
    return Candidate(layout, Plan(**figures))


def test_losers_lose_for_a_reason():
    first = candidate(10.0)
    waits, small = candidate(12.0, exposed=0.2), candidate(20.0, hfu=0.4)
    other, large = candidate(11.0, hfu=0.45), candidate(8.0, fits=False)
    assert ranked([large, other, small, waits, first]) == [first, other, waits, small, large]
    reasons = [reason(one, first) for one in (first, waits, small, other, large)]
    starts = ["fastest", "collectives: +2.4 s", "small products", "what is not", "does not fit"]
    for text, start in zip(reasons, starts, strict=True):
        assert text.startswith(start)


# What estimates say of them.

SMALL = dataclasses.replace(TINY, width=512, heads=8, kv_heads=4, head_dim=64, ff_width=1024,
                            vocabulary=1024, dtype="bfloat16")  # fmt: skip


@functools.cache
def small_plan(precision="bfloat16", topology="trn3-chip", layers=2, microbatches=2):
    model = dataclasses.replace(SMALL, layers=layers)
    layout = Layout(fsdp=2, tensor=4, microbatches=microbatches)
    step, shapes = training.training_step(model, layout, batch_size=8, sequence=1024)
    name = {"bfloat16": "default"}.get(precision, precision)
    with jax_trn3.matmul_precision(name, except_scopes=UNQUANTIZED):
        found = estimate(step, *shapes, topology=topology)
    return plan(found, model, precision, str(layout), 8 * 1024, 1024)


def test_plan_of_a_small_step():
    found = small_plan()
    assert 0 < found.mfu < found.hfu < 1
    assert found.mfu == pytest.approx(found.mfu_bf16)
    assert found.fits
    assert found.peak_hbm_gib > 16 * count(SMALL) / 8 / 2**30  # float32: parameters to gradients
    assert 0 <= found.exposed_collectives < 1
    assert found.tokens_per_s == pytest.approx(8 * 1024 / found.time_s)
    text = plan_training.row(found)
    assert len(text) == len(plan_training.HEADER)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["devices"] == 8


def test_more_layers_and_older_chips_take_longer():
    assert small_plan(layers=4).time_s > small_plan().time_s
    assert small_plan(topology="trn2-chip").time_s > small_plan().time_s


def test_decoding_more_users_takes_longer_and_is_more_efficient():
    few, many = (decoded(("trn3-gen2", "mxfp4", 1, users, 1024)) for users in (16, 64))
    assert few.step_s < many.step_s
    assert few.tokens_per_s_mw < many.tokens_per_s_mw
    assert few.fits
    assert few.tokens_per_s_user == pytest.approx(1 / few.step_s)


def test_plot_is_written(tmp_path):
    line = [point(100, 10), point(50, 30)]
    plan_decode.plot({("trn3-gen2", "mxfp4"): line}, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").stat().st_size > 10_000
