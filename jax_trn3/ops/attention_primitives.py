"""The primitives of attention, and how they are batched and differentiated.

    trn3.dot_product_attention            operands -> out, row_max, row_sum
    trn3.dot_product_attention_tangent    operands, these three, tangents -> tangent of out
    trn3.dot_product_attention_backward   operands, these three, cotangent of out -> gradients

The second is linear in the tangents, the third in the cotangent, and each is the other's transpose:
reverse mode is the first one's JVP, transposed. What is of higher order comes from attend_plain.

Arrays have JAX's layouts: query, out [B, T, N, H]; key, value [B, S, K, H]; bias, mask
[B, N, T, S] (or sizes of 1); sinks [B, N] or [1, N]; lengths [B]; row_max, row_sum [B, N, T].
Parameters: the fields of Attention; `operands`, the names of the operands given, and `wrt`, those
of the tangents or of the gradients, each with commas in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from ..numerics.attention import Softmax, attend, attend_backward, attend_tangent
from ..numerics.attention_blocks import Attention, Operands
from ..numerics.attention_plain import attend_plain
from .whole import define

Arrays = dict[str, Any]

_DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")
_SOFTMAX = ("out", "row_max", "row_sum")
# Operands whose axis of the batch may be of size 1.
_SHAREABLE = ("bias", "mask", "sinks")


def bind_attention(arrays: Arrays, **parameters: Any) -> Sequence[Any]:
    """trn3.dot_product_attention of operands by name: out, row_max and row_sum.

    parameters: the fields of Attention.
    """
    names = [name for name in Operands._fields if name in arrays]
    ordered = [arrays[name] for name in names]
    return attention_p.bind(*ordered, operands=",".join(names), **parameters)


# What each is: the arrays by name, and the JAX function.


def _arguments(operands: str, wrt: str | None = None, cotangent: bool = False) -> list[str]:
    """The names of a primitive's arguments; a tangent's is "d_" and its operand's."""
    names = operands.split(",")
    if wrt is None:
        return names
    return [*names, *_SOFTMAX, *(["cotangent"] if cotangent else map("d_{}".format, _split(wrt)))]


def _split(names: str) -> list[str]:
    return names.split(",") if names else []


def _attention(*args: Any, operands: str, **parameters: Any) -> tuple[Any, ...]:
    arrays = dict(zip(_arguments(operands), args, strict=True))
    result = attend(_grouped(arrays), Attention(**parameters))
    return _heads_last(result.out), _joined(result.row_max), _joined(result.row_sum)


def _tangent(*args: Any, operands: str, wrt: str, **parameters: Any) -> tuple[Any, ...]:
    arrays = dict(zip(_arguments(operands, wrt), args, strict=True))
    tangents = {name: arrays[f"d_{name}"] for name in _split(wrt)}
    groups = _kv_heads(arrays)
    softmax, attention = _softmax(arrays), Attention(**parameters)
    return (
        _heads_last(
            attend_tangent(_grouped(arrays), attention, softmax, _grouped(tangents, groups))
        ),
    )


def _backward(*args: Any, operands: str, wrt: str, **parameters: Any) -> tuple[Any, ...]:
    arrays = dict(zip(_arguments(operands, wrt, cotangent=True), args, strict=True))
    cotangent = _heads_first(arrays["cotangent"], _kv_heads(arrays))
    gradients = attend_backward(
        _grouped(arrays), Attention(**parameters), _softmax(arrays), cotangent, _split(wrt)
    )
    back: dict[str, Callable[[Any], Any]] = {
        "query": _heads_last,
        "key": lambda x: jnp.swapaxes(x, 1, 2),
        "value": lambda x: jnp.swapaxes(x, 1, 2),
        "bias": lambda x: x.reshape(arrays["bias"].shape),
        "sinks": lambda x: x.reshape(arrays["sinks"].shape),
    }
    return tuple(back[name](getattr(gradients, name)) for name in _split(wrt))


def _plain(arrays: Arrays, parameters: dict[str, Any]) -> Any:
    """`out` alone, in a form that has derivatives of any order."""
    return _heads_last(attend_plain(_grouped(arrays), Attention(**parameters)))


# Layouts: JAX's to those of numerics.attention, which has the heads outside and grouped, and back.


def _kv_heads(arrays: Arrays) -> int:
    return arrays["key"].shape[2]


def _grouped(arrays: Arrays, kv_heads: int | None = None) -> Operands:
    groups = _kv_heads(arrays) if kv_heads is None else kv_heads
    to_numerics: dict[str, Callable[[Any], Any]] = {
        "query": lambda x: _heads_first(x, groups),
        "key": lambda x: jnp.swapaxes(x, 1, 2),
        "value": lambda x: jnp.swapaxes(x, 1, 2),
        "bias": lambda x: _grouped_logits(x, groups),
        "mask": lambda x: _grouped_logits(x, groups),
        "sinks": lambda x: x.reshape(x.shape[0], groups, -1),
        "query_seq_lengths": lambda x: x,
        "key_value_seq_lengths": lambda x: x,
    }
    fields = dict.fromkeys(Operands._fields)
    return Operands(**fields | {k: f(arrays[k]) for k, f in to_numerics.items() if k in arrays})


def _heads_first(x: Any, kv_heads: int) -> Any:
    batch, length, heads, features = x.shape
    x = x.reshape(batch, length, kv_heads, heads // kv_heads, features)
    return x.transpose(0, 2, 3, 1, 4)


def _heads_last(x: Any) -> Any:
    batch, kv_heads, group, length, features = x.shape
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, length, kv_heads * group, features)


def _grouped_logits(x: Any, kv_heads: int) -> Any:
    batch, heads, *lengths = x.shape
    groups = (1, 1) if heads == 1 else (kv_heads, heads // kv_heads)
    return x.reshape(batch, *groups, *lengths)


def _joined(row: Any) -> Any:
    batch, kv_heads, group, length = row.shape
    return row.reshape(batch, kv_heads * group, length)


def _softmax(arrays: Arrays) -> Softmax:
    groups = _kv_heads(arrays)
    row_max, row_sum = (
        x.reshape(x.shape[0], groups, -1, x.shape[2])
        for x in (arrays["row_max"], arrays["row_sum"])
    )
    return Softmax(_heads_first(arrays["out"], groups), row_max, row_sum)


attention_p = define("dot_product_attention", _attention)
tangent_p = define("dot_product_attention_tangent", _tangent)
backward_p = define("dot_product_attention_backward", _backward)


# Derivatives.


def _attention_jvp(args: Sequence[Any], moves: Sequence[Any], **parameters: Any) -> Any:
    result = attention_p.bind(*args, **parameters)
    moving = _moving(_arguments(parameters["operands"]), moves)
    wrt = ",".join(moving)
    out = tangent_p.bind(*args, *result, *moving.values(), wrt=wrt, **parameters)
    # row_max and row_sum are for the derivatives of `out`; they have none themselves.
    return result, [*out, *map(_no_tangent, result[1:])]


def _tangent_jvp(
    args: Sequence[Any], moves: Sequence[Any], *, operands: str, wrt: str, **parameters: Any
) -> Any:
    names = _arguments(operands, wrt)
    arrays, moving = dict(zip(names, args)), _moving(names, moves)
    directions = {name: arrays[f"d_{name}"] for name in _split(wrt)}

    def tangent(moved: Arrays) -> Any:
        at = arrays | moved
        wrt_at = {name: at[name] for name in directions}
        return jax.jvp(lambda x: (_plain(at | x, parameters),), (wrt_at,), (directions,))[1]

    linear = [name for name in directions if f"d_{name}" in moving]
    parts = []
    if linear:
        fixed = args[: len(names) - len(directions)]
        tangents = [moving[f"d_{name}"] for name in linear]
        bound = {"operands": operands, "wrt": ",".join(linear)}
        parts.append(tangent_p.bind(*fixed, *tangents, **bound, **parameters))
    parts += _second_order(tangent, arrays, moving)
    result = tangent_p.bind(*args, operands=operands, wrt=wrt, **parameters)
    return result, _added(parts, result)


def _backward_jvp(
    args: Sequence[Any], moves: Sequence[Any], *, operands: str, wrt: str, **parameters: Any
) -> Any:
    names = _arguments(operands, wrt, cotangent=True)
    arrays, moving = dict(zip(names, args)), _moving(names, moves)

    def gradients(moved: Arrays) -> Any:
        at = arrays | moved
        wrt_at = {name: at[name] for name in _split(wrt)}
        _, pull = jax.vjp(lambda x: _plain(at | x, parameters), wrt_at)
        (found,) = pull(arrays["cotangent"])
        return tuple(found[name] for name in _split(wrt))

    parts = []
    bind = functools.partial(backward_p.bind, operands=operands, wrt=wrt, **parameters)
    if "cotangent" in moving:
        parts.append(bind(*args[:-1], moving["cotangent"]))
    parts += _second_order(gradients, arrays, moving)
    result = bind(*args)
    return result, _added(parts, result)


def _moving(names: Iterable[str], moves: Sequence[Any]) -> Arrays:
    """The tangents that are not zero, by name."""
    return {name: x for name, x in zip(names, moves, strict=True) if type(x) is not ad.Zero}


def _second_order(function: Callable[[Arrays], Any], arrays: Arrays, moving: Arrays) -> list[Any]:
    """The derivative of `function` by the operands, if they move at all."""
    moves = {name: moving[name] for name in _DIFFERENTIABLE if name in moving}
    return [jax.jvp(function, ({n: arrays[n] for n in moves},), (moves,))[1]] if moves else []


def _no_tangent(x: Any) -> ad.Zero:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _added(parts: Sequence[Sequence[Any]], like: Sequence[Any]) -> list[Any]:
    if not parts:
        return list(map(_no_tangent, like))
    return [functools.reduce(jnp.add, terms) for terms in zip(*parts, strict=True)]


def _tangent_transpose(
    cotangents: Sequence[Any], *args: Any, operands: str, wrt: str, **parameters: Any
) -> list[Any]:
    (cotangent,) = cotangents
    fixed = args[: len(args) - len(_split(wrt))]
    tangents = dict(zip(_split(wrt), args[len(fixed) :]))
    wanted = [name for name, x in tangents.items() if ad.is_undefined_primal(x)]
    if type(cotangent) is ad.Zero:
        found = {name: ad.Zero(tangents[name].aval.to_ct_aval()) for name in wanted}
    else:
        bound = {"operands": operands, "wrt": ",".join(wanted)}
        gradients = backward_p.bind(*fixed, cotangent, **bound, **parameters)
        found = dict(zip(wanted, gradients))
    return [*[None] * len(fixed), *map(found.get, tangents)]


def _backward_transpose(
    cotangents: Sequence[Any], *args: Any, operands: str, wrt: str, **parameters: Any
) -> list[Any]:
    fixed, (cotangent,) = args[:-1], args[-1:]
    moving = _moving(_split(wrt), cotangents)
    if moving:
        bound = {"operands": operands, "wrt": ",".join(moving)}
        (found,) = tangent_p.bind(*fixed, *moving.values(), **bound, **parameters)
    else:
        found = ad.Zero(cotangent.aval.to_ct_aval())
    return [*[None] * len(fixed), found]


ad.primitive_jvps[attention_p] = _attention_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[backward_p] = _backward_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[backward_p] = _backward_transpose


# vmap: the axis becomes a part of the batch.


def _batch_attention(args: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> Any:
    folded, size = _fold(_arguments(parameters["operands"]), args, axes)
    return _unfold(attention_p.bind(*folded, **parameters), size)


def _batch_tangent(args: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> Any:
    names = _arguments(parameters["operands"], parameters["wrt"])
    folded, size = _fold(names, args, axes, own=_split(parameters["wrt"]))
    return _unfold(tangent_p.bind(*folded, **parameters), size)


def _batch_backward(args: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> Any:
    wrt = _split(parameters["wrt"])
    names = _arguments(parameters["operands"], parameters["wrt"], cotangent=True)
    folded, size = _fold(names, args, axes, own=wrt)
    gradients, out_axes = _unfold(backward_p.bind(*folded, **parameters), size)
    shared = [_batch_size(names, args, axes, name) == 1 for name in wrt]
    # What was shared by the batch before the axis joined it, is shared by it still.
    gradients = [
        jnp.sum(x, axis=1, keepdims=True) if one and x.shape[1] != 1 else x
        for x, one in zip(gradients, shared)
    ]
    return gradients, out_axes


def _batch_size(names: Sequence[str], args: Sequence[Any], axes: Sequence[Any], name: str) -> int:
    x, axis = next((x, axis) for other, x, axis in zip(names, args, axes) if other == name)
    return x.shape[1 if axis == 0 else 0]


def _fold(
    names: Sequence[str], args: Sequence[Any], axes: Sequence[Any], own: Sequence[str] = ()
) -> tuple[list[Any], int]:
    """The arguments with the axis in front of the batch's and one with it; the axis' size.

    own: operands that must not stay shared by the batch: each batch's gradient is asked for.
    """
    size = next(x.shape[axis] for x, axis in zip(args, axes) if axis is not None)
    batch = _batch_size(names, args, axes, "query")

    def fold(name: str, x: Any, axis: Any) -> Any:
        if axis is None:
            if name in _SHAREABLE and name not in own and x.shape[0] == 1:
                return x
            x = jnp.broadcast_to(x, (size, *x.shape))
        else:
            x = jnp.moveaxis(x, axis, 0)
        if x.shape[1] != batch:
            x = jnp.broadcast_to(x, (size, batch, *x.shape[2:]))
        return x.reshape(size * batch, *x.shape[2:])

    return [fold(*argument) for argument in zip(names, args, axes, strict=True)], size


def _unfold(results: Sequence[Any], size: int) -> tuple[list[Any], list[int]]:
    return [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in results], [0] * len(results)


batching.primitive_batchers[attention_p] = _batch_attention
batching.primitive_batchers[tangent_p] = _batch_tangent
batching.primitive_batchers[backward_p] = _batch_backward
