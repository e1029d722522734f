"""`file.py[:name]` on the command line: a Python file, and something in it."""

import runpy
import sys
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
