"""`file.py[:name]` on the command line: a Python file, and something in it."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_NAME = "jax_trn3_file"  # so that a file's `if __name__ == "__main__"` is not run


class Refused(Exception):
    """What a command cannot do, in one line."""


def load(where: str) -> tuple[Path, str | None, dict[str, Any]]:
    """The path, the name if there is one, and what the file defines.

    The file is run with its own directory to import from.

    **Raises:** `Refused` if there is no such file.
    """
    file, colon, name = where.rpartition(":")
    path = Path(file if colon else where)
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    directory = str(path.resolve().parent)
    sys.path.insert(0, directory)
    try:
        found = runpy.run_path(str(path), run_name=RUN_NAME)
    finally:
        sys.path.remove(directory)
    return path, name if colon else None, found


EXAMPLE_ARGUMENTS = "example_args"
"""What a file calls its function's arguments."""

ARGUMENTS_HELP = (
    f"a function in a Python file, which defines {EXAMPLE_ARGUMENTS}, too: a tuple of arrays or "
    "jax.ShapeDtypeStructs, or a function that returns it"
)


def example(where: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function that `file.py[:name]` means, and its arguments, as `ARGUMENTS_HELP` says.

    **Raises:** `Refused` where one is missing, is something else, or is not the only one.
    """
    path, name, found = load(where)
    return _function(path, name, found), _arguments(path, found)


def _function(path: Path, name: str | None, found: dict[str, Any]) -> Callable[..., Any]:
    if name is None:
        own = [key for key, value in found.items() if _is_function(key, value)]
        if len(own) != 1:
            raise Refused(f"which function of {path}? Write {path}:name; it has {', '.join(own)}")
        name = own[0]
    if name not in found:
        raise Refused(f"{path} has no {name!r}")
    if not callable(found[name]):
        raise Refused(f"{path}:{name} is a {type(found[name]).__name__}, no function")
    return found[name]


def _is_function(name: str, value: object) -> bool:
    """Whether it is a function of the file's own, jitted or not, that is no help to others."""
    own = callable(value) and getattr(value, "__module__", None) == RUN_NAME
    return (
        own and not (name.startswith("_") or isinstance(value, type)) and name != EXAMPLE_ARGUMENTS
    )


def _arguments(path: Path, found: dict[str, Any]) -> tuple[Any, ...]:
    if EXAMPLE_ARGUMENTS not in found:
        raise Refused(
            f"{path} has no {EXAMPLE_ARGUMENTS}: define there a tuple of arrays or "
            "jax.ShapeDtypeStructs"
        )
    given = found[EXAMPLE_ARGUMENTS]
    given = given() if callable(given) else given
    if not isinstance(given, tuple | list):
        what = type(given).__name__
        raise Refused(f"{EXAMPLE_ARGUMENTS} of {path} is a {what}, no tuple of arguments")
    return tuple(given)
