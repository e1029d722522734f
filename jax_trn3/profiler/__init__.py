"""Views of a timeline: text, JSON, Perfetto, Parquet. Each shows the same numbers (`figures.py`).

A view is a module with `write(timeline, path, shown)`; naming it in `VIEWS` under the end of its
files' names is all it takes for `save` and `jax-trn3 trace`.
"""

import importlib
from pathlib import Path

from jax_trn3.simulator import Timeline

from .runs import MAX_RUNS as MAX_RUNS
from .runs import Runs as Runs
from .runs import runs as runs
from .summary import render as render
from .summary import summary as summary

VIEWS = {".json": "json_view", ".pftrace": "perfetto", ".parquet": "parquet"}
"""Module of each view by suffix. Loaded when it is needed: a view may need packages of its own."""


def save(timeline: Timeline, path: str | Path, shown: Runs | None = None) -> None:
    """Writes the view of a timeline that the path's suffix asks for.

    **Arguments:**

    - `path`: Ends in one of `VIEWS`; ".parquet" is a directory of tables.
    - `shown`: The runs of instructions to show one by one (`runs(timeline, window_ps)`). With None,
      JSON leaves them out; the others show all, or up to `MAX_RUNS` from the start.

    **Raises:** `ValueError` for another suffix; `ModuleNotFoundError` for a view that needs a
    package which is not installed, saying which.
    """
    suffix = Path(path).suffix
    if suffix not in VIEWS:
        raise ValueError(f"{path}: no view ends in {suffix!r}; these do: {', '.join(VIEWS)}")
    importlib.import_module(f".{VIEWS[suffix]}", __name__).write(timeline, path, shown)
