"""How views write tables, and what they write as plain text."""

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table


def columns(*names: str) -> Table:
    """An empty table of these columns. Those that begin with ">" are numbers."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        number = name.startswith(">")
        made.add_column(name.lstrip(">"), justify="right" if number else "left", no_wrap=True)
    return made


def plain(what: RenderableType, width: int) -> str:
    """What a console of that many columns shows, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in written.splitlines()) + "\n"
