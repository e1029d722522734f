"""JAX's collectives with an MX wire format as an option; users import `jax_trn3.collectives`.

Without a `wire_format` each function is jax.lax's of the same name. With one, what a device sends
is quantized in blocks of 32 along the flattened message, moved as bytes (8.25 bits an element for
"mxfp8"), and dequantized; sums are made in float32. Keywords that all share:

* `wire_format`: None, "mxfp8" (E4M3), "mxfp4", or an MX name or dtype: "mxfp8_e5m2", "mxint8", ...
* `scale_rule`: how a block's scale follows from it, as for quantize_mx; "ocp" if not given.
* `residual`: error feedback. What the format lost when this device sent last time, shaped like
  the operand (float32, zeros at first); it is added to the operand, and the function returns
  (result, new residual). Over many steps the losses then cancel: the sum of all results differs
  from the exact one by what the last residuals hold. Of a block with an infinity or a NaN
  nothing is held back. The new residual varies over the devices, and has no derivative.

Operands with a wire format are float32, bfloat16 or float16, or trees of such; another dtype is a
TypeError. Derivatives are those of JAX's collective, with the wire format in the transposed one,
too: what psum_scatter is to all_gather. Among one device nothing is sent, and nothing is rounded.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import config
from jax._src.lax import parallel
from jax.extend.core import Primitive

from jax_trn3.numerics import FLOAT_DTYPES, canonical_axis, check_scale_rule, element_format

from . import mx_collectives as mx


def psum(
    x: Any,
    axis_name: Any,
    *,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.psum; with a wire format a reduce-scatter and an all-gather of what it sums.

    Each device sums one shard (x flattened, and filled up to equal shards) in float32, so two
    roundings lie between x and the result. All devices get the same bits. The derivative is
    jax.lax.psum's: under shard_map's check_vma a result that does not vary, whose gradient needs
    no communication; otherwise the psum of the cotangents, in the same format.

    Raises:
      NotImplementedError: axis_index_groups under check_vma, as in JAX, or positional axes.
    """
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.psum(x, axis_name, axis_index_groups=axis_index_groups)
    invariant = bool(config._check_vma.value)
    if invariant and axis_index_groups is not None:
        raise NotImplementedError(
            "psum with axis_index_groups under shard_map(check_vma=True), where JAX has none "
            "either; pass check_vma=False to shard_map"
        )
    params = _wire(axis_name, axis_index_groups, wire_format, scale_rule) | {"invariant": invariant}
    return _over_leaves(lambda leaf, r: _bind(mx.psum_p, leaf, r, params), x, residual)


def all_gather(
    x: Any,
    axis_name: Any,
    *,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    axis: int = 0,
    tiled: bool = False,
    to: str = "varying",
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.all_gather; with a wire format a device's own piece is rounded like the others.

    Raises:
      ValueError: `to` is neither "varying" nor "invarying", with a wire format.
    """
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.all_gather(
            x, axis_name, axis_index_groups=axis_index_groups, axis=axis, tiled=tiled, to=to
        )
    if to not in ("varying", "invarying"):
        raise ValueError(f"all_gather to {to!r} with a wire_format; use 'varying' or 'invarying'")
    if to == "invarying" and axis_index_groups is not None:
        raise NotImplementedError("all_gather to 'invarying' with axis_index_groups")
    shared = _wire(axis_name, axis_index_groups, wire_format, scale_rule)

    def gather(leaf: jax.Array, residual: Any) -> Any:
        index = canonical_axis(axis, leaf.ndim + (not tiled))
        params = shared | {"axis": index, "tiled": tiled, "to": to}
        return _bind(mx.all_gather_p, leaf, residual, params)

    return _over_leaves(gather, x, residual)


def psum_scatter(
    x: Any,
    axis_name: Any,
    *,
    scatter_dimension: int = 0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    tiled: bool = False,
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.psum_scatter; with a wire format each addend is rounded once, the sum is not."""
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.psum_scatter(
            x,
            axis_name,
            scatter_dimension=scatter_dimension,
            axis_index_groups=axis_index_groups,
            tiled=tiled,
        )
    shared = _wire(axis_name, axis_index_groups, wire_format, scale_rule)

    def scatter(leaf: jax.Array, residual: Any) -> Any:
        index = canonical_axis(scatter_dimension, leaf.ndim, "scatter_dimension")
        _check_split("scatter_dimension", leaf, index, shared["size"], tiled)
        params = shared | {"scatter_dimension": index, "tiled": tiled}
        return _bind(mx.psum_scatter_p, leaf, residual, params)

    return _over_leaves(scatter, x, residual)


reduce_scatter = psum_scatter


def all_to_all(
    x: Any,
    axis_name: Any,
    split_axis: int,
    concat_axis: int,
    *,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    tiled: bool = False,
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.all_to_all; with a wire format each piece has blocks of its own."""
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.all_to_all(
            x,
            axis_name,
            split_axis,
            concat_axis,
            axis_index_groups=axis_index_groups,
            tiled=tiled,
        )
    shared = _wire(axis_name, axis_index_groups, wire_format, scale_rule)

    def exchange(leaf: jax.Array, residual: Any) -> Any:
        split = canonical_axis(split_axis, leaf.ndim, "split_axis")
        concat = canonical_axis(concat_axis, leaf.ndim, "concat_axis")
        _check_split("split_axis", leaf, split, shared["size"], tiled)
        params = shared | {"split_axis": split, "concat_axis": concat, "tiled": tiled}
        return _bind(mx.all_to_all_p, leaf, residual, params)

    return _over_leaves(exchange, x, residual)


def ppermute(
    x: Any,
    axis_name: Any,
    perm: Any,
    *,
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.ppermute; the new residual of a device that sends nothing is as if it did."""
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.ppermute(x, axis_name, perm)
    params = _wire(axis_name, None, wire_format, scale_rule)
    del params["axis_index_groups"]
    params["perm"] = tuple((operator.index(s), operator.index(t)) for s, t in perm)
    return _over_leaves(lambda leaf, r: _bind(mx.ppermute_p, leaf, r, params), x, residual)


def ragged_all_to_all(
    operand: Any,
    output: Any,
    input_offsets: Any,
    send_sizes: Any,
    output_offsets: Any,
    recv_sizes: Any,
    *,
    axis_name: Any,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    wire_format: Any = None,
    scale_rule: str | None = None,
    residual: Any = None,
) -> Any:
    """jax.lax.ragged_all_to_all; with a wire format each row is a message with its own blocks.

    Rows of `output` that nothing is sent to stay as they are. The residual belongs to `operand`;
    that of rows which are not sent is as if they were.
    """
    numbers = (input_offsets, send_sizes, output_offsets, recv_sizes)
    if not _has_wire(wire_format, scale_rule, residual):
        return lax.ragged_all_to_all(
            operand, output, *numbers, axis_name=axis_name, axis_index_groups=axis_index_groups
        )
    operand, output = jnp.asarray(operand), jnp.asarray(output)
    if operand.ndim == 0 or operand.shape[1:] != output.shape[1:] or operand.dtype != output.dtype:
        raise ValueError(
            "operand and output of ragged_all_to_all differ only in their rows; got "
            f"{operand.dtype}{list(operand.shape)} and {output.dtype}{list(output.shape)}"
        )
    params = _wire(axis_name, axis_index_groups, wire_format, scale_rule)
    pvary = functools.partial(parallel.insert_collective_pvary, axis_name)
    others = [pvary(x) for x in (output, *map(jnp.asarray, numbers))]
    return _bind(mx.ragged_all_to_all_p, operand, residual, params, *others)


def _has_wire(wire_format: Any, scale_rule: Any, residual: Any) -> bool:
    if wire_format is None and (scale_rule is not None or residual is not None):
        given = "scale_rule" if scale_rule is not None else "residual"
        raise ValueError(f"{given} is given, but no wire_format that it could be for")
    return wire_format is not None


def _wire(axis_name: Any, groups: Any, wire_format: Any, scale_rule: str | None) -> dict[str, Any]:
    """The parameters that all primitives share, checked."""
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    if any(isinstance(name, int) for name in names):
        raise NotImplementedError(f"positional axes {names} with a wire_format; name the axis")
    rule = "ocp" if scale_rule is None else scale_rule
    check_scale_rule(rule)
    return {
        "axis_name": names if len(names) > 1 else names[0],
        "axis_index_groups": _groups(groups),
        "size": lax.axis_size(names) if groups is None else len(groups[0]),
        "wire_format": element_format(wire_format).name,
        "scale_rule": rule,
    }


def _groups(groups: Any) -> tuple[tuple[int, ...], ...] | None:
    if groups is None:
        return None
    groups = tuple(tuple(map(operator.index, group)) for group in groups)
    members = sorted(index for group in groups for index in group)
    if len(set(map(len, groups))) != 1 or members != list(range(len(members))):
        raise ValueError(
            "axis_index_groups must be of equal size and cover all indices exactly once; got "
            f"{groups}"
        )
    return groups


def _over_leaves(collective: Callable[[jax.Array, Any], Any], x: Any, residual: Any) -> Any:
    """The collective of every leaf; with residuals, a tree of results and one of residuals."""
    leaves, tree = jax.tree.flatten(x)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    if residual is None:
        return tree.unflatten([collective(leaf, None) for leaf in leaves])
    pairs = [collective(leaf, r) for leaf, r in zip(leaves, tree.flatten_up_to(residual))]
    return tree.unflatten([p[0] for p in pairs]), tree.unflatten([p[1] for p in pairs])


def _bind(
    primitive: Primitive, x: jax.Array, residual: Any, params: dict[str, Any], *others: jax.Array
) -> Any:
    """The result, or (result, new residual)."""
    if x.dtype.name not in FLOAT_DTYPES:
        raise TypeError(
            f"a wire_format is for {', '.join(FLOAT_DTYPES)}; got {x.dtype}: cast it, or send it "
            "with wire_format=None"
        )
    operand = x
    if residual is not None:
        residual = jnp.asarray(residual)
        if residual.shape != x.shape or residual.dtype.name not in FLOAT_DTYPES:
            raise ValueError(
                f"the residual must be a float of the operand's shape {list(x.shape)}; got "
                f"{residual.dtype}{list(residual.shape)}"
            )
        operand = x.astype(jnp.float32) + residual.astype(jnp.float32)
    operand = parallel.insert_collective_pvary(params["axis_name"], operand)
    dtype, feedback = x.dtype.name, residual is not None
    results = primitive.bind(operand, *others, dtype=dtype, feedback=feedback, batch=0, **params)
    return (results[0], results[1].astype(residual.dtype)) if feedback else results[0]


def _check_split(what: str, x: jax.Array, axis: int, size: int, tiled: bool) -> None:
    n = x.shape[axis]
    if n % size if tiled else n != size:
        wanted = "divisible by" if tiled else "equal to"
        raise ValueError(
            f"dimension {axis} ({what}) of the shape {list(x.shape)} must be {wanted} the {size} "
            f"devices of a group{'' if tiled else '; or pass tiled=True'}"
        )
