"""Where an equation or an operation of a program was written."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax._src import source_info_util
from jaxlib.mlir import ir

_OURS = str(Path(__file__).parents[1])
_INSTALLED = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


@dataclass(frozen=True)
class Place:
    """A line of source, and JAX's name for what it became."""

    file: str | None = None
    line: int | None = None
    name_stack: str = ""


@functools.cache
def is_library(file: str) -> bool:
    """Whether a file belongs to JAX, to us, to Python or to an installed package."""
    if file.startswith("<") or not source_info_util.is_user_filename(file):
        return True
    return file.startswith((_OURS, *_INSTALLED)) or "site-packages" in Path(file).parts


def innermost(lines: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
    """The first line that a user wrote, of lines from the inside out."""
    return next((line for line in lines if not is_library(line[0])), None)


def of_equation(eqn: Any, within: Place, *, pinned: bool) -> Place:
    """Where an equation of a jaxpr was written.

    within: the place of the equation that the jaxpr is a parameter of.
    pinned: the jaxpr is of a library's function, which JAX traces once for all who call it: its
      own lines may be those of another caller.
    """
    name = _joined(within.name_stack, str(eqn.source_info.name_stack), _call_name(eqn))
    frames = source_info_util.user_frames(eqn.source_info.traceback)
    found = None if pinned else innermost((frame.file_name, frame.start_line) for frame in frames)
    return Place(*(found or (within.file, within.line)), name)


def _call_name(eqn: Any) -> str:
    name = eqn.primitive.name
    return f"jit({eqn.params['name']})" if name in ("jit", "pjit") else name


def of_operation(op: Any, within: Place, *, pinned: bool) -> Place:
    """Where an operation of a StableHLO module was written; as `of_equation`.

    within: the place of the call of the function that the operation is in.
    """
    found = None if pinned else innermost(_lines(op.location))
    name = _joined(within.name_stack, _name(op.location))
    return Place(*(found or (within.file, within.line)), name)


def _joined(*names: str) -> str:
    return "/".join(name for name in names if name)


def _name(location: Any) -> str:
    """JAX names the location of an operation, around where it comes from."""
    return location.name_str.rstrip(":") if isinstance(location, ir.NameLoc) else ""


def _lines(location: Any) -> Iterator[tuple[str, int]]:
    """The lines that a location speaks of, from the inside out."""
    if isinstance(location, ir.FileLineColLoc):
        yield location.filename, location.start_line
    elif isinstance(location, ir.NameLoc):
        yield from _lines(location.child_loc)
    elif isinstance(location, ir.CallSiteLoc):
        yield from _lines(location.callee)
        yield from _lines(location.caller)
    elif isinstance(location, ir.FusedLoc):
        for part in location.locations:
            yield from _lines(part)


def of_function(info: Any) -> Place:
    """Where a traced function begins, of JAX's `debug_info` of it ("f at file.py:12")."""
    name, _, where = (getattr(info, "func_src_info", None) or "").partition(" at ")
    file, _, line = where.rpartition(":")
    stack = f"jit({name})" if name else ""
    return Place(file, int(line), stack) if line.isdigit() else Place(name_stack=stack)
