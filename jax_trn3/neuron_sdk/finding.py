"""What `check` finds, and how it reads."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Severity = Literal["refused", "changed", "slow"]
SEVERITIES: tuple[Severity, ...] = ("refused", "changed", "slow")
_STYLES = {"refused": "bold red", "changed": "yellow", "slow": "cyan"}
_WIDTH = 100  # of text that goes to no terminal


@dataclass(frozen=True)
class Finding:
    """One place in a program that the Neuron SDK would not take as it is."""

    severity: Severity
    """"refused": the SDK's pages say that it is not supported. "changed": it is taken, with other
    values, errors at run time or conditions, which the message names. "slow"."""

    rule: str
    """Which rule of docs/neuron_sdk.md."""

    message: str
    """What was found, with shapes and dtypes, and what the SDK's pages say of it."""

    way_out: str
    """What to write instead."""

    file: str | None
    """Where it is written: outside of JAX and of installed packages, if there is such a place."""

    line: int | None

    name_stack: str
    """JAX's name of the operation: "jit(step)/while/body/dot_general"."""

    pages: tuple[str, ...]
    """Where that is said: files of github.com/aws-neuron/aws-neuron-sdk, at `neuron_sdk.SDK`."""

    count: int = 1
    """How many operations of this line the rule is about; the message is about the first."""

    @property
    def source(self) -> str:
        """file:line, or "?"."""
        return f"{self.file}:{self.line}" if self.file else "?"

    def __str__(self) -> str:
        return _text(Findings([self]), summary=False)


class Findings(list[Finding]):
    """The findings of a program, the gravest first. `print` shows them; `rich` in colour."""

    def of(self, severity: Severity) -> Findings:
        """Those of one severity."""
        return Findings(finding for finding in self if finding.severity == severity)

    def summary(self) -> str:
        """One line: how many there are of each severity."""
        if not self:
            return "nothing found that the Neuron SDK's pages speak of"
        counts = Counter(finding.severity for finding in self)
        parts = [f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity]]
        return f"{len(self)} finding{'s' if len(self) > 1 else ''}: {', '.join(parts)}"

    def to_json(self) -> str:
        """A JSON list with an object for each finding, fields as in `Finding`."""
        return json.dumps([asdict(finding) for finding in self], indent=2)

    def __str__(self) -> str:
        return _text(self, summary=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import (
            Text,
        )  # only when something is shown: importing jax_trn3 is to be quick

        for finding in self:
            yield from _shown(finding)
        yield Text(self.summary())


def _shown(finding: Finding) -> RenderResult:
    from rich.padding import Padding
    from rich.text import Text

    head = Text.assemble(
        (finding.severity, _STYLES[finding.severity]),
        f" [{finding.rule}] ",
        (finding.source, "bold"),
        overflow="fold",
    )
    yield head
    more = f" ({finding.count} times on this line)" if finding.count > 1 else ""
    yield Padding(Text(finding.message + more), (0, 0, 0, 4))
    yield Padding(Text.assemble(("way out: ", "green"), finding.way_out), (0, 0, 0, 4))
    where = f"in {finding.name_stack}; " if finding.name_stack else ""
    yield Padding(Text(f"{where}see {', '.join(finding.pages)}", style="dim"), (0, 0, 1, 4))


def _text(findings: Findings, *, summary: bool) -> str:
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None)
    if summary:
        console.print(findings)
    else:
        for finding in findings:
            console.print(*_shown(finding), sep="\n", end="")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
