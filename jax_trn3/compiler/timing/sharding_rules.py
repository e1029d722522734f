"""How operations that stay whole may be sharded: a rule for Shardy from names of dimensions.

A rule gives every dimension of operands and results its factors, by letters: in
`"b t kg h", "b s k h"` the heads of queries are key-value heads times their group. A dimension that
several values have may be sharded in all of them alike; one that is reduced leaves partial sums,
which Shardy adds up (`all_reduce`); one that has to be whole on every device is replicated.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from ..operations import shape
from .shardings import Axes, Layout

# A dimension: its factors, outermost first.
_Dims = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Rule:
    """operands, results: the factors of every dimension of every value."""

    operands: tuple[_Dims, ...]
    results: tuple[_Dims, ...]
    sizes: Mapping[str, int]
    reduced: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def sharding_rule(op: Any) -> Any:
    """The `sdy.op_sharding_rule` of an operation kept whole (partition.py).

    One that has no rule here has all its operands and results whole on every device, as XLA has
    them of a call that it knows nothing of.
    """
    return _encoded(_rule(op), list(map(shape, op.operands)), list(map(shape, op.results)))


def summed_axes(op: Any, layouts: Sequence[Layout | None]) -> list[Axes]:
    """For each result of an operation kept whole, the mesh axes over which devices have addends.

    Gradients are sums over what their operands don't have: keys' over queries, and over the heads
    that share them. Shardy cannot say so of a dimension that another result has.

    layouts: of the operands.
    """
    rule = _rule(op)
    split: dict[str, Axes] = {}
    for dims, layout in zip(rule.operands, layouts, strict=True):
        for factors, axes in zip(dims, layout or ()):
            for name, own in _axes_of_factors(factors, rule.sizes, axes).items():
                split.setdefault(name, own)
    handled = {*rule.reduced, *rule.whole}
    return [
        tuple(
            axis
            for name, axes in split.items()
            if name not in handled and not any(name in factors for factors in dims)
            for axis in axes
        )
        for dims in rule.results
    ]


def _axes_of_factors(
    factors: Sequence[str], sizes: Mapping[str, int], axes: Axes
) -> dict[str, Axes]:
    """Which axes split which factor of a dimension; an axis may split two, in parts."""
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in factors}
    pending = list(axes)
    for name in factors:
        room = sizes[name]
        while pending and room > 1:
            axis, count = pending.pop(0)
            if room % count and count % room:  # in unequal parts: all of it
                found[name].append((axis, count))
                break
            if count > room:
                first, rest = _cut(axis, count, room)
                found[name].append(first)
                pending.insert(0, rest)
                break
            found[name].append((axis, count))
            room //= count
    return {name: tuple(own) for name, own in found.items() if own}


def _cut(axis: str, size: int, first: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """An axis, or a part of one, as two parts, in Shardy's spelling."""
    name, _, part = axis.partition(":")
    before = int(part[1:].split(")")[0]) if part else 1
    rest = size // first
    return (f"{name}:({before}){first}", first), (f"{name}:({before * first}){rest}", rest)


def _rule(op: Any) -> Rule:
    name = ir.StringAttr(op.attributes["call_target_name"]).value
    operands, results = list(map(shape, op.operands)), list(map(shape, op.results))
    make = _RULES.get(name)
    rule = make(_attributes(op), operands, results) if make else None
    return rule or _replicated(operands, results)


def binding(attribute: Any) -> Any:
    """A custom rule as one that operands are resharded for; Shardy leaves those of a custom one.

    A dimension that no other value has is whole on every device.
    """
    rule = sdy.OpShardingRuleAttr(attribute)
    values = [*rule.operand_mappings, *rule.result_mappings]
    used = Counter(
        factor
        for value in values
        for factor in {
            index
            for dim in sdy.TensorMappingAttr(value).dim_mappings
            for index in sdy.DimMappingAttr(dim).factor_indices
        }
    )
    sizes = list(rule.factor_sizes)
    alone = {factor for factor, count in used.items() if count == 1 and sizes[factor] > 1}
    return sdy.OpShardingRuleAttr.get(
        factor_sizes=sizes,
        operand_mappings=list(rule.operand_mappings),
        result_mappings=list(rule.result_mappings),
        reduction_factors=list(rule.reduction_factors),
        need_replication_factors=sorted(alone | set(rule.need_replication_factors)),
    )


def _attributes(op: Any) -> dict[str, Any]:
    """Python values of the composite's attributes, texts parsed where they are values."""
    return {
        named.name: named.attr.value if hasattr(named.attr, "value") else str(named.attr)
        for named in ir.DictAttr(op.attributes["trn3.attributes"])
    }


def _encoded(rule: Rule, operands: Sequence[Any], results: Sequence[Any]) -> Any:
    sizes: list[int] = []
    index: dict[str, int] = {}

    def factor(name: str) -> int:
        if name not in index:
            index[name] = len(sizes)
            sizes.append(rule.sizes[name])
        return index[name]

    def dimension(factors: tuple[str, ...], size: int) -> Any:
        if math.prod(rule.sizes[name] for name in factors) != size:
            raise ValueError(f"factors {factors} of {dict(rule.sizes)} make no size {size}")
        known = [factor(name) for name in factors if rule.sizes[name] != 1]
        if not known:  # Shardy wants a factor of a dimension of size 1
            known = [len(sizes)]
            sizes.append(1)
        return sdy.DimMappingAttr.get(known)

    def mappings(values: Sequence[_Dims], shapes: Sequence[Sequence[int]]) -> list[Any]:
        return [
            sdy.TensorMappingAttr.get(list(map(dimension, dims, sizes_of)))
            for dims, sizes_of in zip(values, shapes, strict=True)
        ]

    return sdy.OpShardingRuleAttr.get(
        operand_mappings=mappings(rule.operands, operands),
        result_mappings=mappings(rule.results, results),
        factor_sizes=sizes,
        reduction_factors=sorted(index[name] for name in rule.reduced if name in index),
        need_replication_factors=sorted(index[name] for name in rule.whole if name in index),
        is_custom=True,
    )


def _replicated(operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    sizes: dict[str, int] = {}

    def dims(values: Sequence[Any]) -> tuple[_Dims, ...]:
        made = []
        for value in values:
            names = [f"d{len(sizes) + at}" for at in range(len(value))]
            sizes.update(zip(names, value))
            made.append([(name,) for name in names])
        return tuple(made)

    return Rule(dims(operands), dims(results), sizes, whole=tuple(sizes))


# Attention: by the names of its operands (ops/attention_primitives.py).

_ATTENTION = {
    "query": "b t kg h",
    "key": "b s k h",
    "value": "b s k h",
    "bias": "b kg t s",
    "mask": "b kg t s",
    "sinks": "b kg",
    "query_seq_lengths": "b",
    "key_value_seq_lengths": "b",
    "out": "b t kg h",
    "row_max": "b kg t",
    "row_sum": "b kg t",
}
_SOFTMAX = ("out", "row_max", "row_sum")


def _attention(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = _split(attributes["operands"])
    return _attention_rule(names, operands, _SOFTMAX, results, whole=("s", "h"))


def _attention_tangent(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = [*_split(attributes["operands"]), *_SOFTMAX, *_split(attributes["wrt"])]
    return _attention_rule(names, operands, ["out"], results, whole=("s", "h"))


def _attention_backward(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = [*_split(attributes["operands"]), *_SOFTMAX, "out"]
    return _attention_rule(names, operands, _split(attributes["wrt"]), results, whole=("s", "h"))


def _attention_rule(
    operand_names: Sequence[str],
    operands: Sequence[Any],
    result_names: Sequence[str],
    results: Sequence[Any],
    whole: tuple[str, ...],
) -> Rule:
    query = operands[operand_names.index("query")]
    key = operands[operand_names.index("key")]
    heads = key[2]
    sizes = {
        "b": query[0], "t": query[1], "k": heads, "g": query[2] // max(heads, 1),
        "h": query[3], "s": key[1],
    }  # fmt: skip

    def dims(name: str, value: Sequence[int]) -> _Dims:
        letters = _ATTENTION[name].split()
        return [
            () if size == 1 and math.prod(sizes[c] for c in factors) != 1 else tuple(factors)
            for factors, size in zip(letters, value, strict=True)
        ]

    return Rule(
        tuple(map(dims, operand_names, operands)),
        tuple(map(dims, result_names, results)),
        sizes,
        whole=whole,
    )


def _split(names: str) -> list[str]:
    return names.split(",") if names else []


# Products: every dimension has a name; one that is cut in blocks has as factors the blocks, which
# may be on several devices, and "<name>'", what is in a block.


@dataclass(frozen=True)
class _Names:
    """Names of dimensions: of the operands of a product, and of its result."""

    lhs: tuple[str, ...]
    rhs: tuple[str, ...]
    result: tuple[str, ...]
    contracted: tuple[str, ...]


def _dot_names(attributes: Any, lhs_rank: int, rhs_rank: int) -> _Names:
    contracting, batch = ast.literal_eval(attributes["dimension_numbers"])
    lhs = [f"l{at}" for at in range(lhs_rank)]
    rhs = [f"r{at}" for at in range(rhs_rank)]
    for letter, (lhs_dims, rhs_dims) in (("c", contracting), ("b", batch)):
        for number, (i, j) in enumerate(zip(lhs_dims, rhs_dims, strict=True)):
            lhs[i] = rhs[j] = f"{letter}{number}"
    kept = [[name for name in names if name[0] in "lr"] for names in (lhs, rhs)]
    batches = [f"b{number}" for number in range(len(batch[0]))]
    contracted = tuple(f"c{number}" for number in range(len(contracting[0])))
    return _Names(tuple(lhs), tuple(rhs), (*batches, *kept[0], *kept[1]), contracted)


def _conv_names(attributes: Any, rank: int) -> _Names:
    """Features of the input are contracted; space is whole."""
    specs = [
        tuple(map(int, spec.split(","))) for spec in _SPEC.findall(attributes["dimension_numbers"])
    ]
    lhs, rhs, result = ([f"s{side}{at}" for at in range(rank)] for side in range(3))
    lhs_spec, rhs_spec, out_spec = specs
    lhs[lhs_spec[0]] = result[out_spec[0]] = "l0"
    if attributes.get("feature_group_count", 1) == 1 == attributes.get("batch_group_count", 1):
        rhs[rhs_spec[0]] = result[out_spec[1]] = "r0"
        lhs[lhs_spec[1]] = rhs[rhs_spec[1]] = "c0"
    return _Names(tuple(lhs), tuple(rhs), tuple(result), ("c0",))


_SPEC = re.compile(r"spec=\(([\d, ]+)\)")


def _product(
    names: _Names,
    operands: Sequence[Sequence[int]],
    results: Sequence[Sequence[int]],
    others: Sequence[tuple[str, ...]] = (),
    counts: Mapping[str, int] | None = None,
) -> Rule:
    """Of lhs, rhs and what comes with them: scales, by names of their dimensions.

    counts: blocks along a dimension. A dimension that blocks do not divide is whole, and so is one
    of a scale that has other sizes.
    """
    every = ((names.lhs, operands[0]), (names.rhs, operands[1]), (names.result, results[0]))
    totals = {name: size for dims, shape_ in every for name, size in zip(dims, shape_, strict=True)}
    blocks = {
        name: count for name, count in (counts or {}).items() if count and totals[name] % count == 0
    }
    sizes: dict[str, int] = {}
    for name, total in totals.items():
        sizes[name] = blocks.get(name, total)
        if sizes[name] != total:
            sizes[f"{name}'"] = total // sizes[name]

    def dims(own: Sequence[str], shape_: Sequence[int]) -> _Dims:
        made: list[tuple[str, ...]] = []
        for name, size in zip(own, shape_, strict=True):
            inner = f"{name}'"
            if size == totals[name]:
                made.append((name, inner) if inner in sizes else (name,))
            elif size == sizes[name] or size == 1:
                made.append((name,) if size != 1 else ())
            else:
                sizes[odd := f"{name}?{size}"] = size
                made.append((odd,))
        return made

    every_operand = [names.lhs, names.rhs, *others]
    mapped = tuple(map(dims, every_operand, operands)), tuple(map(dims, [names.result], results))
    unblocked = {name for name in counts or {} if name not in blocks}
    whole = {
        name
        for name in sizes
        if name in unblocked or name[-1] == "'" or name[0] == "s" or "?" in name
    }
    reduced = tuple(name for name in names.contracted if name in sizes and name not in whole)
    return Rule(*mapped, sizes, reduced, tuple(whole))


def _plain_dot(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    return _product(_dot_names(attributes, *map(len, operands)), operands, results)


def _mx_dot(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = _dot_names(attributes, len(operands[0]), len(operands[1]))
    scales = [
        own
        for own, side in ((names.lhs, "lhs"), (names.rhs, "rhs"))
        if attributes.get(f"{side}_is_mx")
    ]
    return _product(names, operands, results, scales, _mx_counts(names, attributes, operands))


def _mx_counts(names: _Names, attributes: Any, operands: Sequence[Any]) -> dict[str, int]:
    """Blocks run along the last contracted dimension that is longer than 1."""
    sizes = dict(zip(names.lhs, operands[0]))
    long = [name for name in names.contracted if sizes[name] != 1] or list(names.contracted[-1:])
    counts = {name: -(-sizes[name] // attributes["block_size"]) for name in long[-1:]}
    if long and sizes[long[-1]] % attributes["block_size"]:  # blocks go across all of them
        counts = dict.fromkeys(long, 0)
    return counts


def _scaled_dot(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = _dot_names(attributes, len(operands[0]), len(operands[1]))
    counts: dict[str, int] = {}
    for own, values, scales in (
        (names.lhs, operands[0], operands[2]),
        (names.rhs, operands[1], operands[3]),
    ):
        for name, size, count in zip(own, values, scales, strict=True):
            if size != count:
                counts[name] = math.gcd(counts.get(name, count), count)
    return _product(names, operands, results, (names.lhs, names.rhs), counts)


def _sparse_dot(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule | None:
    """Of the dense operand, and values and indices of the other one, N in M along an axis."""
    dense, values, _ = operands
    kept, block = map(int, attributes["pattern"].split(":"))
    axis = attributes["axis"] % len(values)
    if attributes["size"] % block:
        return None
    is_lhs = attributes["sparse_operand"] == "lhs"
    ranks = (len(values), len(dense)) if is_lhs else (len(dense), len(values))
    names = _dot_names(attributes, *ranks)
    of_dense, of_sparse = (names.rhs, names.lhs) if is_lhs else (names.lhs, names.rhs)
    sizes = dict(zip(of_dense, dense)) | dict(zip(of_sparse, values))
    name, count = of_sparse[axis], attributes["size"] // block
    sizes |= {name: count, "m'": block, "n'": kept}

    def dims(own: Sequence[str], inner: str) -> _Dims:
        return [(one, inner) if one == name else (one,) for one in own]

    return Rule(
        (dims(of_dense, "m'"), dims(of_sparse, "n'"), dims(of_sparse, "n'")),
        (dims(names.result, "m'"),),
        sizes,
        tuple(names.contracted),
        ("m'", "n'"),
    )


def _conv(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    names = _conv_names(attributes, len(operands[0]))
    counts = {}
    if "format" in attributes and "c0" in names.lhs:  # MX: in blocks of 32 input features
        size = dict(zip(names.lhs, operands[0]))["c0"]
        counts = {"c0": size // 32 if size % 32 == 0 else 0}
    return _product(names, operands, results, counts=counts)


def _quantize(attributes: Any, operands: Sequence[Any], results: Sequence[Any]) -> Rule:
    """Of an array, its MX form or both, in blocks along an axis."""
    axis, block = attributes["axis"], attributes["block_size"]
    full = operands[0]
    sizes = {f"d{at}": size for at, size in enumerate(full)}
    name = f"d{axis}"
    whole: tuple[str, ...] = ("block",)
    if full[axis] % block == 0:
        sizes |= {name: full[axis] // block, "block": block}
    else:
        sizes |= {"block": full[axis], "scales": -(-full[axis] // block)}
        whole = ("block", "scales")

    def dims(value: Sequence[int]) -> _Dims:
        made: list[tuple[str, ...]] = [(f"d{at}",) for at in range(len(value))]
        if len(whole) == 2:
            made[axis] = ("block",) if value[axis] == full[axis] else ("scales",)
        elif value[axis] == full[axis]:
            made[axis] = (name, "block")
        return made

    return Rule(tuple(map(dims, operands)), tuple(map(dims, results)), sizes, whole=whole)


_RULES: dict[str, Callable[[Any, Sequence[Any], Sequence[Any]], Rule | None]] = {
    "trn3.dot_product_attention": _attention,
    "trn3.dot_product_attention_tangent": _attention_tangent,
    "trn3.dot_product_attention_backward": _attention_backward,
    "trn3.mx_dot_general": _mx_dot,
    "trn3.bf16_dot_general": _plain_dot,
    "trn3.scaled_dot": _scaled_dot,
    "trn3.sparse_dot_general": _sparse_dot,
    "trn3.mx_conv_general_dilated": _conv,
    "trn3.bf16_conv_general_dilated": _conv,
    "trn3.quantize_mx": _quantize,
    "trn3.dequantize_mx": _quantize,
    "trn3.quantize_dequantize_mx": _quantize,
}
