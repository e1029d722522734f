"""Views of an estimate, found by the end of a file's name."""

import importlib
from pathlib import Path

from .result import Estimate

VIEWS = {".json": "json_view", ".pftrace": "perfetto", ".parquet": "parquet"}
"""Module of each view by suffix. Loaded when it is needed: a view may need packages of its own."""


def save(estimate: Estimate, path: str | Path, window_ps: tuple[int, int] | None = None) -> None:
    """Writes the view of an estimate that the path's suffix asks for.

    **Arguments:**

    - `path`: A file that ends in ".json" or ".pftrace", or a directory that ends in ".parquet".
    - `window_ps`: The part of the run, ps from its start, whose engine instructions Perfetto and
      Parquet show one by one; None is from the start on, as many as `profiler.MAX_RUNS`. JSON has
      no instructions.

    **Raises:** `ValueError` for another suffix, for a window that is empty or has too many
    instructions; `ModuleNotFoundError` for a view that needs a package which is not installed,
    saying which.
    """
    suffix = Path(path).suffix
    if suffix not in VIEWS:
        raise ValueError(f"{path}: no view ends in {suffix!r}; these do: {', '.join(VIEWS)}")
    importlib.import_module(f".{VIEWS[suffix]}", __package__).write(estimate, path, window_ps)
