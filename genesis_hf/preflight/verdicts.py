"""Verdicts, and the table of them."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        check: what was looked at.
        verdict: ok; slow, for what works and costs; wrong, for what must be mended first; not run, after another's end.
        figure: what was measured, in words.
        mend: what to do, empty where nothing is.
        values: the figures as numbers, for a program.
    """

    check: str
    verdict: Literal["ok", "slow", "wrong", "not run"]
    figure: str
    mend: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def size(number: float) -> str:
    """Bytes in words."""
    unit, name = next((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (1, "bytes")) if number >= u or u == 1)
    return f"{number / unit:,.{0 if unit == 1 else 1}f} {name}"


def table(verdicts: Sequence[Verdict], width: int | None = None) -> str:
    """A line a verdict, wrapped to the terminal; a mend below the figure it belongs to."""
    checks = max(len(v.check) for v in verdicts)
    indent = " " * (checks + 11)
    room = max(40, (width or shutil.get_terminal_size((120, 24)).columns) - len(indent))
    lines = []
    for v in verdicts:
        figure, *rest = textwrap.wrap(v.figure, room) or [""]
        lines.append(f"{v.check:<{checks}}  {v.verdict:<7}  {figure}")
        rest += textwrap.wrap(v.mend, room, initial_indent="→ ", subsequent_indent="  ") if v.mend else []
        lines += [indent + line for line in rest]
    return "\n".join(lines)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 where every check is ok or slow, else 2."""
    return 0 if all(v.verdict in ("ok", "slow") for v in verdicts) else 2
