"""The operations of a lowered program, with the places where they were written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxlib.mlir import ir

from jax_trn3.compiler.inline import functions

from . import place
from .place import Place


@dataclass(frozen=True)
class Call:
    """A call of a private function, and the call that it is in itself."""

    op: Any
    callee: Any
    caller: Call | None


@dataclass(frozen=True)
class Operation:
    """An operation of the StableHLO module, at any depth, in one of the calls of its function."""

    op: Any
    where: Place
    call: Call | None
    """None in the main function."""

    functions: dict[str, Any]

    @property
    def name(self) -> str:
        """ "stablehlo.while"."""
        return str(self.op.name)

    @property
    def inputs(self) -> list[Any]:
        """Types of its operands."""
        return [value.type for value in self.op.operands]

    @property
    def outputs(self) -> list[Any]:
        """Types of its results."""
        return [value.type for value in self.op.results]

    def integers(self, name: str) -> list[int]:
        """The numbers of an attribute that may be left out."""
        if name not in self.op.attributes:
            return []
        return list(ir.DenseI64ArrayAttr(self.op.attributes[name]))


def operations(module: Any, users: set[str]) -> Iterator[Operation]:
    """Every operation of a module's main function, and of those that it calls, for each call.

    users: names of private functions whose own lines can be believed; others are a library's, which
      JAX traces once for all who call them.
    """
    known = functions(module)
    yield from _inside(known["main"], known, Place(), None, users, pinned=False)


def _inside(
    op: Any, known: dict[str, Any], within: Place, call: Call | None, users: set[str], pinned: bool
) -> Iterator[Operation]:
    for region in op.regions:
        for block in region:
            for each in block.operations:
                inner = each.operation
                where = place.of_operation(inner, within, pinned=pinned)
                yield Operation(inner, where, call, known)
                yield from _inside(inner, known, within, call, users, pinned)
                if inner.name == "func.call":
                    name = callee_name(inner)
                    made = Call(inner, known[name], call)
                    held = _is_of_library(name, users)
                    yield from _inside(known[name], known, where, made, users, held)


# What JAX makes a function of without anybody's jit.
_WITHOUT_JIT = {"checkpoint", "closed_call", "eval_jaxpr", "rematted_computation"}


def _is_of_library(name: str, users: set[str]) -> bool:
    plain = re.sub(r"(_\d+)+$", "", name)
    return not {name, plain} & (users | _WITHOUT_JIT)


def callee_name(call: Any) -> str:
    """The function that a func.call calls."""
    return str(ir.FlatSymbolRefAttr(call.attributes["callee"]).value)


def element(kind: Any) -> str:
    """The element type of a tensor, in MLIR's words; "" of anything else."""
    return str(kind.element_type) if isinstance(kind, ir.RankedTensorType) else ""


_SHORT = {"i1": "bool", "complex<f32>": "c64", "complex<f64>": "c128"}


def text(kind: Any) -> str:
    """A type as JAX writes it: "f32[4,8]"."""
    if not isinstance(kind, ir.RankedTensorType):
        return str(kind)
    name = element(kind)
    name = _SHORT.get(name) or (name[1:] if name.startswith("ui") else name)
    sizes = (
        "?" if kind.is_dynamic_dim(at) else str(kind.get_dim_size(at)) for at in range(kind.rank)
    )
    return f"{name}[{','.join(sizes)}]"


def texts(kinds: list[Any]) -> str:
    """Several, with commas."""
    return ", ".join(map(text, kinds))
