"""The collectives in MX form, as primitives that stay whole: `trn3.psum`, `trn3.all_gather`, ...

Each moves bytes (wire.py) and is otherwise JAX's collective of the same name. All are linear as
far as derivatives go: a tangent takes the way of the primal, in the same format, and a cotangent
the way of the transposed collective.

Parameters of all: `axis_name` and `axis_index_groups` as in JAX, `size` (devices in a group),
`wire_format`, `scale_rule`, `dtype` (of the result), `feedback` (whether what the format lost is a
second result) and `batch` (how many leading dimensions vmap put in front).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from . import whole, wire

_Core = Callable[..., tuple[jax.Array, jax.Array]]
_Transpose = Callable[..., list[Any]]


def _psum(
    x: jax.Array,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    size: int,
    invariant: bool,
    **format: Any,
) -> tuple[jax.Array, jax.Array]:
    """Reduce-scatter and all-gather: every device sums one shard in float32, and sends the sum.

    A device makes good both what its own shards lost and what the sum lost that it sent.
    """
    shard = -(-x.size // size)
    shards = jnp.pad(x.ravel(), (0, shard * size - x.size)).reshape(size, shard)
    received, lost = wire.send(shards, _exchange(axis_name, axis_index_groups), size=size, **format)
    total, total_lost = wire.send(
        jnp.sum(received, 0),
        lambda message: lax.all_gather(
            message,
            axis_name,
            axis_index_groups=axis_index_groups,
            to="invarying" if invariant else "varying",
        ),
        size=size,
        **format,
    )
    is_own = jnp.arange(size) == _index_in_group(axis_name, axis_index_groups)
    lost = lost + jnp.where(is_own[:, None], total_lost, 0.0)
    result, lost = (shards.reshape(-1)[: x.size].reshape(x.shape) for shards in (total, lost))
    return result, lost


def _all_gather(
    x: jax.Array,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    size: int,
    axis: int,
    tiled: bool,
    to: str,
    **format: Any,
) -> tuple[jax.Array, jax.Array]:
    def move(message: jax.Array) -> jax.Array:
        return lax.all_gather(message, axis_name, axis_index_groups=axis_index_groups, to=to)

    received, lost = wire.send(x.ravel(), move, size=size, **format)
    pieces = received.reshape(size, *x.shape)
    return _put_pieces(pieces, axis, tiled), lost.reshape(x.shape)


def _psum_scatter(
    x: jax.Array,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    size: int,
    scatter_dimension: int,
    tiled: bool,
    **format: Any,
) -> tuple[jax.Array, jax.Array]:
    pieces = _take_pieces(x, scatter_dimension, size, tiled)
    move = _exchange(axis_name, axis_index_groups)
    received, lost = wire.send(pieces.reshape(size, -1), move, size=size, **format)
    result = jnp.sum(received, 0).reshape(pieces.shape[1:])
    return result, _put_pieces(lost.reshape(pieces.shape), scatter_dimension, tiled)


def _all_to_all(
    x: jax.Array,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    size: int,
    split_axis: int,
    concat_axis: int,
    tiled: bool,
    **format: Any,
) -> tuple[jax.Array, jax.Array]:
    pieces = _take_pieces(x, split_axis, size, tiled)
    move = _exchange(axis_name, axis_index_groups)
    received, lost = wire.send(pieces.reshape(size, -1), move, size=size, **format)
    result = _put_pieces(received.reshape(pieces.shape), concat_axis, tiled)
    return result, _put_pieces(lost.reshape(pieces.shape), split_axis, tiled)


def _ppermute(
    x: jax.Array, *, axis_name: Any, perm: Any, size: int, **format: Any
) -> tuple[jax.Array, jax.Array]:
    """A device that nobody sends to decodes zeros to zeros."""

    def move(message: jax.Array) -> jax.Array:
        return lax.ppermute(message, axis_name, perm)

    received, lost = wire.send(x.ravel(), move, size=size, **format)
    return received.reshape(x.shape), lost.reshape(x.shape)


def _ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    size: int,
    **format: Any,
) -> tuple[jax.Array, jax.Array]:
    """A row is a message; rows of output that nothing is sent to keep their values."""
    axis = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    width = output.size // max(output.shape[0], 1)

    def move(messages: jax.Array) -> jax.Array:
        space = jnp.zeros((output.shape[0], messages.shape[-1]), messages.dtype)
        numbers = (input_offsets, send_sizes, output_offsets, recv_sizes)
        return lax.ragged_all_to_all(messages, space, *numbers, **axis)

    rows = operand.reshape(operand.shape[0], width)
    received, lost = wire.send(rows, move, size=size, **format)
    places = lax.all_to_all(output_offsets, split_axis=0, concat_axis=0, tiled=True, **axis)
    written = _written(output, places, recv_sizes)
    result = jnp.where(written, received.reshape(output.shape), output)
    return result, lost.reshape(operand.shape)


def _written(output: jax.Array, places: jax.Array, sizes: jax.Array) -> jax.Array:
    """Which rows of output lie in one of the ranges; with a 1 for every other dimension."""
    row = jnp.arange(output.shape[0])[:, None]
    inside = jnp.any((row >= places) & (row < places + sizes), axis=1)
    return inside.reshape(-1, *(1,) * (output.ndim - 1))


def _exchange(axis_name: Any, groups: Any) -> Callable[[jax.Array], jax.Array]:
    """Row i of the messages goes to device i, which has that of device j in row j."""
    return functools.partial(
        lax.all_to_all,
        axis_name=axis_name,
        split_axis=0,
        concat_axis=0,
        axis_index_groups=groups,
        tiled=True,
    )


def _take_pieces(x: jax.Array, axis: int, size: int, tiled: bool) -> jax.Array:
    """[size, ...]: x cut along `axis`, which remains if tiled."""
    if tiled:
        x = x.reshape(*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _put_pieces(pieces: jax.Array, axis: int, tiled: bool) -> jax.Array:
    """The inverse of _take_pieces."""
    x = jnp.moveaxis(pieces, 0, axis)
    if not tiled:
        return x
    merged = x.shape[axis] * x.shape[axis + 1]
    return x.reshape(*x.shape[:axis], merged, *x.shape[axis + 2 :])


def _index_in_group(axis_name: Any, groups: Any) -> jax.Array:
    index = lax.axis_index(axis_name)
    if groups is None:
        return index
    position = np.empty(sum(map(len, groups)), np.int32)
    for group in groups:
        position[list(group)] = range(len(group))
    return jnp.asarray(position)[index]


def _transpose_psum(cotangent: Any, x: Any, *, invariant: bool, **params: Any) -> list[Any]:
    """As of lax.psum: where the result is the same everywhere by its type, nothing is sent."""
    if invariant:
        return [lax.pcast(cotangent.astype(params["dtype"]), params["axis_name"], to="varying")]
    return psum_p.bind(cotangent, invariant=invariant, **params)


def _transpose_all_gather(
    cotangent: Any, x: Any, *, axis: int, tiled: bool, to: str, batch: int, **params: Any
) -> list[Any]:
    if to == "varying":
        return psum_scatter_p.bind(
            cotangent, scatter_dimension=axis, tiled=tiled, batch=batch, **params
        )
    pieces = _take_pieces(cotangent, axis + batch, params["size"], tiled)
    own = lax.dynamic_index_in_dim(pieces, lax.axis_index(params["axis_name"]), 0, keepdims=False)
    return [own.astype(params["dtype"])]


def _transpose_psum_scatter(
    cotangent: Any, x: Any, *, scatter_dimension: int, **params: Any
) -> list[Any]:
    return all_gather_p.bind(cotangent, axis=scatter_dimension, to="varying", **params)


def _transpose_all_to_all(
    cotangent: Any, x: Any, *, split_axis: int, concat_axis: int, **params: Any
) -> list[Any]:
    return all_to_all_p.bind(cotangent, split_axis=concat_axis, concat_axis=split_axis, **params)


def _transpose_ppermute(cotangent: Any, x: Any, *, perm: Any, **params: Any) -> list[Any]:
    inverse = tuple((target, source) for source, target in perm)
    return ppermute_p.bind(cotangent, perm=inverse, **params)


def _transpose_ragged_all_to_all(
    cotangent: Any, operand: Any, output: Any, *numbers: Any, batch: int, **params: Any
) -> list[Any]:
    """The receivers send back what they got; an output's rows that were replaced do not count."""
    input_offsets, send_sizes, output_offsets, recv_sizes = numbers
    exchange = _exchange(params["axis_name"], params["axis_index_groups"])
    written = _written
    for _ in range(batch):
        exchange, written = jax.vmap(exchange), jax.vmap(written)
    places = exchange(output_offsets)
    operand_cotangent = output_cotangent = None
    if ad.is_undefined_primal(operand):
        sources = exchange(input_offsets)
        nothing = jnp.zeros(operand.aval.shape, params["dtype"])
        back = (places, recv_sizes, sources, send_sizes)
        (operand_cotangent,) = ragged_all_to_all_p.bind(
            cotangent, nothing, *back, batch=batch, **params
        )
    if ad.is_undefined_primal(output):
        output_cotangent = jnp.where(written(cotangent, places, recv_sizes), 0, cotangent)
    return [operand_cotangent, output_cotangent, None, None, None, None]


def _define(name: str, core: _Core, transpose: _Transpose) -> Primitive:
    """The primitive of one of the functions above, with its rules."""

    def function(
        *arrays: jax.Array, batch: int, feedback: bool, dtype: str, **params: Any
    ) -> tuple[jax.Array, ...]:
        def one(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            result, lost = core(*arrays, **params)
            return (result.astype(dtype), lost) if feedback else (result.astype(dtype),)

        for _ in range(batch):
            one = jax.vmap(one)
        return one(*arrays)

    primitive = whole.define(name, function)
    ad.primitive_jvps[primitive] = functools.partial(_jvp, primitive)
    ad.primitive_transposes[primitive] = functools.partial(_transposed, transpose)
    batching.fancy_primitive_batchers[primitive] = functools.partial(_batch, primitive, function)
    return primitive


def _jvp(
    primitive: Primitive,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    feedback: bool,
    **params: Any,
) -> Any:
    """What was lost has no derivative: the format counts as the identity."""
    results = primitive.bind(*primals, feedback=feedback, **params)
    zeros = [ad.Zero(jax.typeof(result)) for result in results]
    count = 2 if primitive is ragged_all_to_all_p else 1
    if all(type(tangent) is ad.Zero for tangent in tangents[:count]):
        return results, zeros
    moved = [ad.instantiate_zeros(tangent) for tangent in tangents[:count]]
    tangent = primitive.bind(*moved, *primals[count:], feedback=False, **params)
    return results, [*tangent, *zeros[1:]]


def _transposed(
    transpose: _Transpose, cotangents: Sequence[Any], *arguments: Any, dtype: str, **params: Any
) -> list[Any]:
    (cotangent,) = cotangents
    if type(cotangent) is ad.Zero:
        return [None] * len(arguments)
    wanted = next(x.aval.dtype for x in arguments if ad.is_undefined_primal(x))
    return transpose(cotangent, *arguments, dtype=wanted.name, **params)


def _batch(
    primitive: Primitive,
    function: Callable[..., Any],
    axis_data: Any,
    arrays: Sequence[Any],
    dims: Sequence[int | None],
    *,
    axis_name: Any,
    batch: int,
    **params: Any,
) -> Any:
    """One more leading dimension; over an axis of vmap itself, JAX's rules for its parts."""
    fronts = [
        jnp.broadcast_to(x, (axis_data.size, *jnp.shape(x))) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(arrays, dims)
    ]
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if axis_data.name in names:
        inline = functools.partial(function, axis_name=axis_name, batch=batch, **params)
        mapped = jax.vmap(inline, axis_name=axis_data.name, axis_size=axis_data.size)
        results = mapped(*fronts)
    else:
        results = primitive.bind(*fronts, axis_name=axis_name, batch=batch + 1, **params)
    return results, [0] * len(results)


psum_p = _define("psum", _psum, _transpose_psum)
all_gather_p = _define("all_gather", _all_gather, _transpose_all_gather)
psum_scatter_p = _define("psum_scatter", _psum_scatter, _transpose_psum_scatter)
all_to_all_p = _define("all_to_all", _all_to_all, _transpose_all_to_all)
ppermute_p = _define("ppermute", _ppermute, _transpose_ppermute)
ragged_all_to_all_p = _define("ragged_all_to_all", _ragged_all_to_all, _transpose_ragged_all_to_all)
