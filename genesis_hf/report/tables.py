"""Tables as text, and as HTML."""

import html
import json
import re
from typing import Any

Rows = list[list[str]]
"""A table as text; the first row is its head."""

FIGURE = re.compile(r"(< )?[-+−]?[\d.,]+ ?(%|[kMBT]|kWh|h|min|s)?( ± [\d.,?]+%?)?|–|unknown")
"""A cell that stands at the right of its column."""

ARROW = re.compile(" (?=[↑↓])")
"""The space before it is none at which a line may end."""

LONG = 24
"""Characters of a cell from which on it may be broken."""


def text_table(rows: Rows) -> str:
    """A Markdown table that reads well in a terminal, too."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def html_table(rows: Rows) -> str:
    """The table in a box of its own, inside which it scrolls; columns of figures stand right."""
    head, *body = rows
    right = [bool(body) and all(FIGURE.fullmatch(row[i]) for row in body) for i in range(len(head))]

    def line(row: list[str], tag: str) -> str:
        parts = []
        for cell, figure in zip(row, right, strict=True):
            look = " class=n" if figure else " class=t" if len(cell) > LONG else ""
            parts.append(f"<{tag}{look}>{ARROW.sub('&nbsp;', html.escape(cell))}</{tag}>")
        return "".join(parts)

    lines = "".join(f"<tr>{line(row, 'td')}</tr>" for row in body)
    return (
        '<div class="wide" tabindex="0"><table>'
        f"<thead><tr>{line(head, 'th')}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def count(value: float | None) -> str:
    """`1,234,567`, or unknown."""
    return "unknown" if value is None else f"{value:,.0f}"


def amount(value: float | None) -> str:
    """`41.9B`: three digits, for counts that nobody compares digit by digit."""
    if value is None:
        return "unknown"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}" if abs(value) < 999.5 * size else f"{value / size:,.0f}{letter}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """`1.5 min`, `73.2 h`, or unknown."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} h"


def share(value: float | None) -> str:
    """`75.1%`, or unknown."""
    return "unknown" if value is None else f"{value:.1%}"


def value_text(value: Any) -> str:
    """A value of a recipe or config as a reader expects it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.9g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
