"""A comparison as text, as a page and as JSON."""

import html
import json
import math
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.evaluation.plot import write_plot

ERRORS = "Scores stand with one standard error; ↑ higher is better, ↓ lower is better."

HEADER = ("task", "metric", "model", "score", "chance", "n", "against chance", "against the first")


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows as text, in `HEADER`'s order."""
    lines = []
    for row in result["rows"]:
        base = row.get("against_base")
        words = ""
        if base:
            words = f"{plus_minus(base['difference'], base['stderr'], sign=True)}: {base['words']}"
        lines.append(
            (
                row["task"],
                row["metric"] + (" ↑" if row["higher_is_better"] else " ↓"),
                row["model"],
                plus_minus(row["value"], row["stderr"]),
                reference(row),
                str(row["n"]),
                row["against_chance"],
                words,
            )
        )
    return lines


def reference(row: dict[str, Any]) -> str:
    """The chance level and what length alone scores, or the yardstick that stands in their place."""
    if row.get("chance") is not None:
        alone = row.get("by_length")
        differs = alone is not None and abs(alone - row["chance"]) >= 0.001
        return f"{row['chance']:.4g}" + (f" (length: {alone:.3f})" if differs else "")
    yardstick = row.get("yardstick")
    return f"{yardstick['name']}: {yardstick['value']:.4g}" if yardstick else "–"


def plus_minus(value: float, stderr: float | None, sign: bool = False) -> str:
    """`0.352 ± 0.011`: the standard error to two digits, the value to the same place."""
    plus = "+" if sign else ""
    if stderr is None or not math.isfinite(stderr):
        return f"{value:{plus}.4g} ± ?"
    if stderr == 0 or abs(value) >= 1e9:
        return f"{value:{plus}.4g} ± {stderr:.2g}"
    places = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:{plus},.{places}f} ± {stderr:,.{places}f}"


def markdown(result: dict[str, Any]) -> str:
    """A table that reads well in a terminal, too: columns are padded."""
    lines = [HEADER, *table(result)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    text += ["", ERRORS]
    return "\n".join([*warning_lines(result), *text, *(f"Note: {note}." for note in result["notes"])])


def warning_lines(result: dict[str, Any]) -> list[str]:
    """What heads the table: by model, what its figures cannot be and why."""
    lines = []
    for model, found in result["warnings"].items():
        lines += [f"WARNING: the figures of {model} cannot be those of the model that was trained.", ""]
        lines += [f"- {line}." for line in found] + [""]
    return lines


def as_html(result: dict[str, Any]) -> str:
    """The same table as a page of its own."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(cells, "td") for cells in table(result))
    warned = "\n".join(f"<p class=warning>{html.escape(line)}</p>" for line in warning_lines(result) if line)
    said = "\n".join(f"<p>{html.escape(note)}.</p>" for note in result["notes"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(" / ".join(result["models"]))}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem }}
table {{ border-collapse: collapse }}
td, th {{ padding: .3rem .7rem; border-bottom: 1px solid #ccc; text-align: left; font-variant-numeric: tabular-nums }}
.warning {{ color: #a00; font-weight: bold; margin: .3rem 0 }}
</style></head><body>
{warned}
<table>
<thead>{line(HEADER, "th")}</thead>
<tbody>
{body}
</tbody></table>
<p>{ERRORS}</p>
{said}
</body></html>
"""


def write_comparison(result: dict[str, Any], path: str | Path) -> None:
    """Write the comparison as Markdown, HTML or JSON, or draw it as PNG or SVG, as the name ends."""
    writers = {
        ".md": lambda: markdown(result) + "\n",
        ".html": lambda: as_html(result),
        ".json": lambda: json.dumps(result, indent=2, ensure_ascii=False) + "\n",
    }
    kind = Path(path).suffix
    if kind in writers:
        write_text(path, writers[kind]())
    else:
        write_plot(result, Path(path))
