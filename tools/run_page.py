"""Runs the Python of a page of documentation: `python tools/run_page.py docs/kernels.md`.

Blocks marked python run one after another in one module. A block marked text behind one is what it
prints; this writes it anew. Errors and kernels name the page's own lines.
"""

import argparse
import contextlib
import io
import linecache
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "trn3,cpu")  # JAX reads it when it is imported
_WIDTH = "100"

_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """Python on a page."""

    line: int
    """Of its first line, from 1."""

    code: str
    shown: str | None
    """What the page says that it prints; None if it says nothing."""

    printed: str
    """What it printed."""


def blocks(page: Path) -> Iterator[Block]:
    """Runs a page's blocks in turn."""
    text = page.read_text()
    linecache.checkcache(str(page))
    names: dict[str, object] = {"__name__": "__page__"}
    for found in _BLOCK.finditer(text):
        code, shown = found.groups()
        line = text.count("\n", 0, found.start(1)) + 1
        # Empty lines before it give its own lines the numbers that they have on the page.
        program = compile("\n" * (line - 1) + code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out, _columns():
            exec(program, names)
        yield Block(line, code, shown, _plain(out.getvalue(), page))


@contextlib.contextmanager
def _columns() -> Iterator[None]:
    """Tables are as wide as a page, whatever the terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def written(page: Path) -> str:
    """The page with what its blocks print now."""
    printed = iter([block.printed for block in blocks(page)])

    def again(found: re.Match[str]) -> str:
        now = next(printed)
        if found.group(2) is None:
            return found.group()
        head = found.group()[: found.start(2) - found.start()]
        return f"{head}{now}```\n"

    return _BLOCK.sub(again, page.read_text())


def _plain(text: str, page: Path) -> str:
    """Without directories, spaces at ends of lines and empty lines at the ends."""
    lines = text.replace(f"{page.parent}{os.sep}", "").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def main() -> None:
    """Writes the pages anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    for page in parser.parse_args().pages:
        # What is printed names lines, which move with what is printed: again until it stays.
        while (now := written(page.resolve())) != page.read_text():
            page.write_text(now)


if __name__ == "__main__":
    main()
