"""What one device runs of a StableHLO module: Shardy's partitioning, in global shapes.

The passes are Shardy's own, through jaxlib's MLIR bindings, none of a device's. They leave a
sharding on every value and the collectives between them as operations (`sdy.all_gather`, ...);
`read.py` takes the local shapes from the shardings. Nothing here has a list of devices.
"""

from __future__ import annotations

from typing import Any

from jax._src.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy

from ..inline import blocks_of, functions, inline_calls
from .collectives import forget_lists
from .sharding_rules import binding, sharding_rule
from .shardings import SHARDING
from .sources import call_location

WHOLE = "trn3."
"""What names of operations begin with that stay whole."""

DECOMPOSITION = "trn3.decomposition"
"""Attribute of an operation kept whole: the name of the function that says what it does."""

ATTRIBUTES = "trn3.attributes"
"""Attribute of an operation kept whole: its own attributes."""

_NAMES = ("callee", DECOMPOSITION)  # attributes that name a function
_RULE = "sdy.sharding_rule"
_CALLS = ("stablehlo.custom_call", "chlo.top_k")  # of which Shardy may know nothing

_PROPAGATE = "sdy-propagation-pipeline,sdy-close-shardings"
# Not sdy-resolve-permutation-factors, which aborts the process where an RNG is split (jaxlib 0.10):
# exchange.py says where data move across the edges of slices and windows.
_COLLECTIVES = (
    "func.func(sdy-insert-explicit-reshards{enable-full-version=true},sdy-reshard-to-collectives)"
)
# Shardy's canonical forms: an all_reduce that is sliced is a reduce_scatter.
_TIDY = "canonicalize,cse"
_MERGEABLE = frozenset(
    f"sdy.{name}"
    for name in (
        "all_gather", "all_reduce", "all_slice", "all_to_all", "collective_permute",
        "reduce_scatter",
    )
)  # fmt: skip


def copied(module: Any) -> Any:
    """The module in a context of its own (`.context`)."""
    with module.context, ir.Location.unknown():
        clone = module.operation.clone().opview
        forget_lists(clone)
        code = mlir.module_to_bytecode(clone)
    return ir.Module.parse(code, mlir.make_ir_context())


def partition(module: Any) -> Any:
    """Partitions a module in place: calls inlined, collectives explicit, shapes still global.

    Composites `trn3.*` become custom calls of that name with the attributes DECOMPOSITION and
    ATTRIBUTES; other composites are replaced by what they do.

    **Returns:** a module with the functions that DECOMPOSITION names.

    **Raises:** `ValueError` for a module with GSPMD's annotations.
    """
    with module.context, ir.Location.unknown():
        _check_annotations(module)
        _open_composites(module)
        inline_calls(module, located=call_location)
        library = _split(module)
        if meshes(module):
            _partition(module)
        else:
            _run(module, _TIDY)
        return library


def alone(library: Any, name: str) -> Any:
    """A module whose main is one of a library's functions, with what that calls."""
    known = functions(library)
    with library.context, ir.Location.unknown():
        module = ir.Module.create()
        at = ir.InsertionPoint(module.body)
        for mesh in meshes(library):
            mesh.clone(at)
        for called in _reachable(name, known):
            copy = known[called].clone(at)
            if called == name:
                copy.attributes["sym_name"] = ir.StringAttr.get("main")
                copy.attributes["sym_visibility"] = ir.StringAttr.get("public")
    return module


def _reachable(name: str, known: dict[str, Any]) -> list[str]:
    """The names of a function and of those it calls, or holds as decompositions."""
    found: list[str] = []
    pending = [name]
    while pending:
        if (at := pending.pop()) in found:
            continue
        found.append(at)
        calls = _operations(known[at], "func.call", "stablehlo.custom_call")
        named = [op.attributes[key] for op in calls for key in _NAMES if key in op.attributes]
        pending += [attribute.value for attribute in named]
    return found


def _split(module: Any) -> Any:
    """Takes all functions but main out of a module, and returns them in one of their own."""
    library = module.operation.clone().opview
    functions(library)["main"].erase()
    for name, function in functions(module).items():
        if name != "main":
            function.erase()
    return library


def meshes(module: Any) -> list[Any]:
    """The `sdy.mesh` operations of several devices."""
    found = [op.operation for op in module.body.operations if op.operation.name == "sdy.mesh"]
    return [mesh for mesh in found if len(sdy.MeshAttr(mesh.attributes["mesh"]).axes)]


def _partition(module: Any) -> None:
    for op in _operations(module.operation, "stablehlo.custom_call"):
        if DECOMPOSITION in op.attributes:
            op.attributes[_RULE] = sharding_rule(op)
    _run(module, _PROPAGATE)
    for op in _operations(module.operation, *_CALLS):
        if _RULE in op.attributes:
            op.attributes[_RULE] = binding(op.attributes[_RULE])
        elif SHARDING not in op.attributes:
            _replicate_operands(op, meshes(module)[0])
    _run(module, _COLLECTIVES)
    _run(module, _TIDY)
    while _merge_collectives(module):
        _run(module, _TIDY)


def _replicate_operands(op: Any, mesh: Any) -> None:
    """Of an operation that Shardy knows nothing of: it runs on whole arrays, on every device."""
    name = ir.StringAttr(mesh.attributes["sym_name"]).value
    for at, operand in enumerate(op.operands):
        if isinstance(operand.type, ir.RankedTensorType) and operand.type.rank:
            open_dims = ", ".join(["{}"] * operand.type.rank)
            sharding = ir.Attribute.parse(f"#sdy.sharding<@{name}, [{open_dims}]>")
            reshard = sdy.ReshardOp(operand, sharding, loc=op.location, ip=ir.InsertionPoint(op))
            op.operands[at] = reshard.result


def _merge_collectives(module: Any) -> bool:
    """Whether there were collectives of a block that do the same to the same value: now one.

    MLIR's cse leaves them, XLA's does not: weights that are gathered stay so for the backward pass,
    unless there is an optimization_barrier (jax.checkpoint) in between.
    """
    merged = False
    for block in blocks_of(module.operation):
        first: dict[Any, Any] = {}
        for op in [op.operation for op in block.operations]:
            if op.name not in _MERGEABLE:
                continue
            attributes = tuple((name, op.attributes[name]) for name in op.attributes)
            key = op.name, tuple(op.operands), attributes
            same = first.setdefault(key, op)
            if same is not op:
                op.results[0].replace_all_uses_with(same.results[0])
                op.erase()
                merged = True
    return merged


def _run(module: Any, passes: str) -> None:
    passmanager.PassManager.parse(f"builtin.module({passes})").run(module.operation)


def _check_annotations(module: Any) -> None:
    partitions = module.operation.attributes.get("mhlo.num_partitions")
    if partitions is None or ir.IntegerAttr(partitions).value == 1 or meshes(module):
        return
    if b"mhlo.sharding" in mlir.module_to_bytecode(module):
        raise ValueError(
            "the program has GSPMD's annotations (mhlo.sharding), whose meshes have no axes; lower "
            "it with Shardy's: jax.config.update('jax_use_shardy_partitioner', True)"
        )


def _operations(root: Any, *names: str) -> list[Any]:
    return [
        op.operation
        for block in blocks_of(root)
        for op in block.operations
        if op.operation.name in names
    ]


def _open_composites(module: Any) -> None:
    """Composites of ours as custom calls, others as calls of what they do."""
    for op in _operations(module.operation, "stablehlo.composite"):
        name = ir.StringAttr(op.attributes["name"]).value
        (_replace_by_whole if name.startswith(WHOLE) else _replace_by_call)(op)
    for call in _operations(module.operation, "func.call"):
        for attribute in [named for named in call.attributes if named != "callee"]:
            del call.attributes[attribute]  # hints, which the callee's operations have, too


def _replace_by_whole(composite: Any) -> None:
    attributes = composite.attributes
    decomposition = ir.FlatSymbolRefAttr(attributes["decomposition"]).value
    own = "composite_attributes"
    _replace(
        composite,
        "stablehlo.custom_call",
        {
            "call_target_name": attributes["name"],
            DECOMPOSITION: ir.StringAttr.get(decomposition),
            ATTRIBUTES: attributes[own] if own in attributes else ir.DictAttr.get({}),
        },
    )


def _replace_by_call(composite: Any) -> None:
    _replace(composite, "func.call", {"callee": composite.attributes["decomposition"]})


def _replace(op: Any, kind: str, attributes: dict[str, Any]) -> None:
    new = ir.Operation.create(
        kind,
        results=[result.type for result in op.results],
        operands=list(op.operands),
        attributes=attributes,
        loc=op.location,
        ip=ir.InsertionPoint(op),
    )
    for old, result in zip(op.results, new.results):
        old.replace_all_uses_with(result)
    op.erase()
