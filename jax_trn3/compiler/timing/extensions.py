"""Modules of other rooms that enter rules of their own; imported when a program is first timed."""

import importlib

MODULES: dict[str, None] = {}
"""By name, in the order in which they were announced."""


def load() -> None:
    """Imports them."""
    for name in MODULES:
        importlib.import_module(name)
