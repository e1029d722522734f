"""Programs on a mesh of 4 x 2 devices, and what XLA's own partitioner makes of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_trn3.compiler.timing.graph import DeviceProgram

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}

# By kind and groups the bytes that a device puts in.
Traffic = Counter[tuple[str, Any]]


def mesh() -> Any:
    return jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def on(*spec: Any) -> NamedSharding:
    return NamedSharding(mesh(), P(*spec))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def traffic_of(program: DeviceProgram) -> Traffic:
    """A reduce_scatter counts as an all_reduce, which XLA:CPU has instead."""
    found: Traffic = Counter()
    names = [name for name, _ in program.mesh.axes]
    ranks = np.arange(program.mesh.size).reshape([size for _, size in program.mesh.axes])
    for op in program.body.walk():
        kind = op.kind.split(".")[-1].replace("_", "-").replace("reduce-scatter", "all-reduce")
        if not re.fullmatch(KINDS, kind):
            continue
        groups: Any = "pairs"
        if kind != "collective-permute":
            axes = [names.index(name) for name in op.attributes["axes"]]
            rest = [at for at in range(len(names)) if at not in axes]
            count = int(np.prod(op.attributes["sizes"]))
            groups = _groups(ranks.transpose(rest + axes).reshape(-1, count))
        found[kind, groups] += sum(tensor.bytes for tensor in op.operands)
    return found


def traffic_of_hlo(text: str) -> Traffic:
    found: Traffic = Counter()
    pattern = re.compile(rf"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({KINDS})(?:-start)?\(")
    for line in text.splitlines():
        if not (match := pattern.match(line)):
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        size = sum(BYTES[dtype] * int(np.prod(_ints(dims))) for dtype, dims in shapes)
        kind, groups = match[2], _groups_of_hlo(line)
        if kind == "all-gather":  # by its result
            size //= len(next(iter(groups)))
        if kind == "reduce-scatter":
            kind, size = "all-reduce", size * len(next(iter(groups)))
        found[kind, groups] += size
    return found


def _ints(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _groups(rows: Any) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(map(int, row)) for row in rows)


def _groups_of_hlo(line: str) -> Any:
    """Of the three ways in which XLA writes them: lists, iota, a mesh."""
    if "source_target_pairs" in line:
        return "pairs"
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        return _groups(map(_ints, re.findall(r"\{([\d,]+)\}", match[1])))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        ranks = np.arange(np.prod(_ints(match[2]))).reshape(_ints(match[2]))
        return _groups(
            ranks.transpose(_ints(match[3]) if match[3] else None).reshape(_ints(match[1]))
        )
    match = re.search(r"replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}", line)
    assert match, line
    axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    ranks = np.arange(np.prod([int(size) for size in axes.values()]))
    if order := re.search(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", match[2]):
        ranks = ranks.reshape(_ints(order[1])).transpose(_ints(order[2]))
    used = re.findall(r"'(\w+)'", match[3])
    names = list(axes)
    places = [names.index(name) for name in used]
    rest = [at for at in range(len(names)) if at not in places]
    grid = ranks.reshape([int(size) for size in axes.values()]).transpose(rest + places)
    return _groups(grid.reshape(-1, int(np.prod([int(axes[name]) for name in used]))))


# The programs: (jitted function, *arguments).


def _mlp(w: Any, x: Any) -> Any:
    return jnp.tanh(x @ w[0]) @ w[1]


def _mlp_loss(w: Any, x: Any) -> Any:
    return jnp.mean(_mlp(w, x) ** 2)


WEIGHTS = floats(128, 256), floats(256, 128)
LAYERS = floats(8, 128, 256), floats(8, 256, 128)
TOKENS = floats(4096, 128)


def tensor_parallel() -> Any:
    shards = (on(None, "tensor"), on("tensor")), on("data")
    return jax.jit(_mlp, in_shardings=shards, out_shardings=on("data")), WEIGHTS, TOKENS


def tensor_parallel_scattered() -> Any:
    shards = (on(None, "tensor"), on("tensor")), on("data")
    return jax.jit(_mlp, in_shardings=shards, out_shardings=on("data", "tensor")), WEIGHTS, TOKENS


def data_parallel_grad() -> Any:
    f = jax.jit(
        jax.grad(_mlp_loss), in_shardings=(on(), on(("data", "tensor"))), out_shardings=on()
    )
    return f, WEIGHTS, TOKENS


def fsdp_grad() -> Any:
    shards = (on(("data", "tensor")),) * 2
    f = jax.jit(
        jax.grad(_mlp_loss), in_shardings=(shards, on(("data", "tensor"))), out_shardings=shards
    )
    return f, WEIGHTS, TOKENS


def fsdp_and_tensor_grad() -> Any:
    shards = on("data", "tensor"), on("tensor", "data")
    f = jax.jit(jax.grad(_mlp_loss), in_shardings=(shards, on("data")), out_shardings=shards)
    return f, WEIGHTS, TOKENS


def _scan_loss(w: Any, x: Any) -> Any:
    def layer(h: Any, wi: Any) -> Any:
        inner = jax.lax.with_sharding_constraint(jnp.tanh(h @ wi[0]), on("data", "tensor"))
        return jax.lax.with_sharding_constraint(h + inner @ wi[1], on("data")), None

    h, _ = jax.lax.scan(jax.checkpoint(layer), x, w)
    return jnp.mean(h**2)


def scan_with_remat_tensor() -> Any:
    shards = on(None, None, "tensor"), on(None, "tensor")
    f = jax.jit(jax.grad(_scan_loss), in_shardings=(shards, on("data")), out_shardings=shards)
    return f, LAYERS, TOKENS


def scan_with_remat_fsdp() -> Any:
    shards = on(None, "data", "tensor"), on(None, "tensor", "data")
    f = jax.jit(
        jax.value_and_grad(_scan_loss),
        in_shardings=(shards, on("data")),
        out_shardings=(on(), shards),
    )
    return f, LAYERS, TOKENS


def expert_parallel() -> Any:
    def f(x: Any, w: Any) -> Any:
        x = jax.lax.with_sharding_constraint(x, on(None, "data"))
        y = jnp.einsum("gecm,emh->gech", x, w)
        return jax.lax.with_sharding_constraint(y, on("data"))

    return (
        jax.jit(f, in_shardings=(on("data"), on("data"))),
        floats(8, 8, 16, 32),
        floats(8, 32, 64),
    )


def sequence_parallel() -> Any:
    def f(w: Any, x: Any) -> Any:
        return _mlp(w, jax.lax.with_sharding_constraint(x, on("data", None)))

    along = on("data", "tensor")
    shards = (on(None, "tensor"), on("tensor")), along
    return jax.jit(f, in_shardings=shards, out_shardings=along), WEIGHTS, floats(8, 16, 128)


def attention_by_heads() -> Any:
    def f(x: Any, wq: Any, wk: Any, wv: Any, wo: Any) -> Any:
        q, k, v = (jnp.einsum("btd,dnh->btnh", x, w) for w in (wq, wk, wv))
        a = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
        return jnp.einsum("bnts,bsnh,nhd->btd", a, v, wo)

    shards = on("data"), *((on(None, "tensor"),) * 3), on("tensor")
    weights = (*((floats(64, 4, 16),) * 3), floats(4, 16, 64))
    return jax.jit(f, in_shardings=shards, out_shardings=on("data")), floats(8, 16, 64), *weights


def attention_by_sequence() -> Any:
    def f(q: Any, k: Any, v: Any) -> Any:
        a = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
        return jnp.einsum("bnts,bsnh->btnh", a, v)

    along = on("data", "tensor")
    return jax.jit(f, in_shardings=(along,) * 3, out_shardings=along), *(
        (floats(8, 16, 4, 16),) * 3
    )


def embedding_grad() -> Any:
    def f(table: Any, tokens: Any) -> Any:
        return jnp.sum(table[tokens] ** 2)

    shards = on("tensor"), on("data")
    f = jax.jit(jax.grad(f), in_shardings=shards, out_shardings=on("tensor"))
    return f, floats(64, 32), integers(8, 16)


def cross_entropy() -> Any:
    def f(x: Any, w: Any, labels: Any) -> Any:
        logs = jax.nn.log_softmax(x @ w)
        return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))

    shards = on("data"), on(None, "tensor"), on("data")
    return jax.jit(f, in_shardings=shards), floats(4096, 32), floats(32, 128), integers(4096)


def adam_step() -> Any:
    def step(w: Any, m: Any, v: Any, x: Any) -> Any:
        g = jax.grad(_mlp_loss)(w, x)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, g)
        w = jax.tree.map(lambda w, m, v: w - 1e-3 * m / (jnp.sqrt(v) + 1e-8), w, m, v)
        return w, m, v

    shards = on("data", "tensor"), on("tensor", "data")
    f = jax.jit(
        step,
        in_shardings=(shards, shards, shards, on("data")),
        out_shardings=(shards,) * 3,
        donate_argnums=(0, 1, 2),
    )
    return f, WEIGHTS, WEIGHTS, WEIGHTS, TOKENS


def shard_map_collectives() -> Any:
    def body(x: Any) -> Any:
        gathered = jax.lax.all_gather(x, "tensor", tiled=True)
        turned = jax.lax.all_to_all(x, "data", 1, 0, tiled=True)
        shifted = jax.lax.ppermute(x, "data", [(at, (at + 1) % 4) for at in range(4)])
        scattered = jax.lax.psum_scatter(x, ("data", "tensor"), tiled=True)
        largest = jax.lax.pmax(x, ("tensor", "data"))
        return sum(y.sum() for y in (gathered, turned, shifted, scattered, largest))

    specs = {"in_specs": P("data", "tensor"), "out_specs": P(), "check_vma": False}
    return jax.jit(jax.shard_map(body, mesh=mesh(), **specs)), floats(64, 128)


def shard_map_over_one_axis() -> Any:
    f = jax.shard_map(
        lambda x: jax.lax.psum(x, "data"),
        mesh=mesh(),
        in_specs=P("data"),
        out_specs=P(),
        axis_names={"data"},
    )
    shards = on("data", "tensor"), on("tensor")
    return jax.jit(lambda x, w: f(x) @ w, in_shardings=shards), floats(64, 128), floats(128, 64)


def layer_norm() -> Any:
    def f(x: Any, scale: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale

    along = on("data", "tensor")
    return jax.jit(f, in_shardings=(along, on("tensor")), out_shardings=along), TOKENS, floats(128)


def convolution_grad() -> Any:
    def f(x: Any, w: Any) -> Any:
        dims = "NHWC", "HWIO", "NHWC"
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims).sum()

    f = jax.jit(jax.grad(f, argnums=1), in_shardings=(on("data"), on()), out_shardings=on())
    return f, floats(8, 16, 16, 8), floats(3, 3, 8, 16)


def concatenation_along_split() -> Any:
    f = jax.jit(
        lambda x, y: jnp.concatenate([x, y]),
        in_shardings=(on("data"),) * 2,
        out_shardings=on("data"),
    )
    return f, floats(64, 128), floats(32, 128)


def sum_along_split() -> Any:
    f = jax.jit(lambda x: jnp.cumsum(x, 0), in_shardings=on("data"), out_shardings=on("data"))
    return f, floats(64, 128)


def sort_along_split() -> Any:
    f = jax.jit(lambda x: jnp.sort(x, 0), in_shardings=on("data"), out_shardings=on("data"))
    return f, floats(64, 128)


def kv_cache() -> Any:
    def f(cache: Any, x: Any, at: Any) -> Any:
        return jax.lax.dynamic_update_slice(cache, x, (0, at, 0, 0))

    along = on("data", None, "tensor")
    f = jax.jit(f, in_shardings=(along, along, on()), donate_argnums=0)
    return f, floats(8, 64, 4, 16), floats(8, 1, 4, 16), integers()


def branches() -> Any:
    def f(which: Any, x: Any) -> Any:
        return jax.lax.cond(which > 0, lambda x: x @ x.T, lambda x: (x * 2) @ x.T, x)

    return jax.jit(f, in_shardings=(on(), on("data", "tensor"))), integers(), floats(64, 128)


PROGRAMS = [
    tensor_parallel, tensor_parallel_scattered, data_parallel_grad, fsdp_grad, fsdp_and_tensor_grad,
    scan_with_remat_tensor, scan_with_remat_fsdp, expert_parallel, sequence_parallel,
    attention_by_heads, attention_by_sequence, embedding_grad, cross_entropy, adam_step,
    shard_map_collectives, shard_map_over_one_axis, layer_norm, convolution_grad,
    concatenation_along_split, sum_along_split, sort_along_split, kv_cache, branches,
]  # fmt: skip
