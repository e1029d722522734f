"""Where operations come from: MLIR locations as JAX writes them.

An operation's location is its name stack around the frames of the call stack, innermost first:
`loc("jit(f)/mul"(callsite("layer"("model.py":12:4) at "f"("model.py":20:8))))`. In a function that
is called, the name stack is from there on, and library functions have no frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxlib.mlir import ir

from .graph import Source

_OURS = str(Path(__file__).parents[2])  # jax_trn3


def call_location(inlined: Any, call: Any) -> Any:
    """The location of an inlined operation: names joined, its frames or else the call's."""
    name, frames = _parts(inlined)
    outer_name, outer_frames = _parts(call)
    joined = "/".join(part for part in (outer_name, name) if part)
    child = outer_frames if isinstance(frames, ir.UnknownLoc) else frames
    return ir.Location.name(joined, child) if joined else child


def source_of(location: Any) -> Source:
    """File, line and function of the innermost frame outside of jax_trn3, and the name stack."""
    name, frames = _parts(location)
    found = list(_frames(frames))
    users = [frame for frame in found if not frame[0].startswith(_OURS)] or found
    file, line, function = users[0] if users else ("", 0, "")
    return Source(file=file, line=line, function=function, name=name)


def _parts(location: Any) -> tuple[str, Any]:
    """Name stack and frames."""
    if isinstance(location, ir.FusedLoc):  # of operations that became one
        return _parts(location.locations[0])
    if isinstance(location, ir.NameLoc):
        return location.name_str, location.child_loc
    return "", location


def _frames(location: Any) -> list[tuple[str, int, str]]:
    """(file, line, function), innermost first."""
    frames = []
    pending = [location]
    while pending:
        at = pending.pop()
        if isinstance(at, ir.CallSiteLoc):
            pending += [at.caller, at.callee]
        elif isinstance(at, ir.FusedLoc):
            pending += reversed(at.locations)
        elif isinstance(at, ir.FileLineColLoc):
            frames.append((at.filename, at.start_line, ""))
        elif isinstance(at, ir.NameLoc) and isinstance(at.child_loc, ir.FileLineColLoc):
            file = at.child_loc
            frames.append((file.filename, file.start_line, at.name_str))
        elif isinstance(at, ir.NameLoc):
            pending.append(at.child_loc)
    return frames
