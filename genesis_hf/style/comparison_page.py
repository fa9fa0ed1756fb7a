"""A comparison of answers as a table, a page or a picture."""

import html
import io
import json
import os
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.style.measures import FIGURES, interval_text, value_text

HEADER = ("figure", "model", "before", "after", "difference", "95 % interval", "n", "unknown")
MAX_PERCENT = 200
"""Where the picture ends: a figure that began near zero can change by any factor."""
BY_NAME = {figure.name: figure for figure in FIGURES}


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows as text, in `HEADER`'s order."""
    lines = []
    for row in result["rows"]:
        figure = BY_NAME[row["figure"]]
        lines.append(
            (
                figure.words,
                row["model"],
                value_text(figure, row["before"]),
                value_text(figure, row["after"]),
                value_text(figure, row["difference"], sign=True),
                interval_text(figure, row["interval"], sign=True),
                str(row["n"]),
                str(row["unknown"]) if row["unknown"] else "",
            )
        )
    return lines


def title(result: dict[str, Any]) -> str:
    before, *after = result["models"]
    return f"Style of {result['prompts']} answers: {before} → {', '.join(after)}"


def sentences(result: dict[str, Any]) -> list[str]:
    """What changed, one sentence a figure; with its model's name where there are several."""
    several = len(result["models"]) > 2
    return [f"{row['model']}: {row['words']}" if several else row["words"] for row in result["rows"]]


def markdown(result: dict[str, Any]) -> str:
    """A table that reads well in a terminal, too, and sentences."""
    lines = [HEADER, *table(result)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    said = [f"- {sentence}" for sentence in sentences(result)]
    return "\n".join([f"# {title(result)}", "", *text, "", *said, "", *(f"Note: {note}." for note in result["notes"])])


def as_html(result: dict[str, Any]) -> str:
    """The same as a page of its own."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(cells, "td") for cells in table(result))
    said = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences(result))
    noted = "\n".join(f"<p>Note: {html.escape(note)}.</p>" for note in result["notes"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title(result))}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; max-width: 70rem }}
table {{ border-collapse: collapse }}
td, th {{ padding: .3rem .7rem; border-bottom: 1px solid #ccc; text-align: left; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>{html.escape(title(result))}</h1>
<table>
<thead>{line(HEADER, "th")}</thead>
<tbody>
{body}
</tbody></table>
<ul>
{said}
</ul>
{noted}
</body></html>
"""


def write_comparison(result: dict[str, Any], path: str | Path) -> None:
    """Write the comparison as Markdown, HTML or JSON, as the name ends."""
    writers = {
        ".md": lambda: markdown(result) + "\n",
        ".html": lambda: as_html(result),
        ".json": lambda: json.dumps(result, indent=2, ensure_ascii=False) + "\n",
    }
    write_text(path, writers[Path(path).suffix]())


def draw_differences(result: dict[str, Any], path: str | Path) -> None:
    """Draw every difference with its interval: shares in points, other numbers in percent of their first mean.

    A difference that may be none is drawn hollow, one without an interval as a cross.
    """
    from matplotlib.figure import Figure

    shown = [figure for figure in FIGURES if any(row["figure"] == figure.name for row in result["rows"])]
    panels = {"points": [f for f in shown if f.kind != "number"], "percent": [f for f in shown if f.kind == "number"]}
    models = result["models"][1:]
    canvas = Figure(figsize=(11, 2 + 0.2 * max(map(len, panels.values())) * (1 + len(models))), layout="constrained")
    axes = canvas.subplots(1, 2)
    for axis, (unit, figures) in zip(axes, panels.items(), strict=True):
        for place, model in enumerate(models):
            shift = 0.5 * ((place + 0.5) / len(models) - 0.5)
            rows = {row["figure"]: row for row in result["rows"] if row["model"] == model}
            for position, figure in enumerate(figures):
                row = rows.get(figure.name)
                scale = 100 if unit == "points" else 100 / row["before"] if row and row["before"] else None
                if row is not None and scale is not None:
                    draw_row(axis, row, scale, position + shift, f"C{place}")
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_yticks(range(len(figures)), [figure.words for figure in figures])
        axis.set_ylim(len(figures) - 0.5, -0.5)
        axis.set_xlabel(f"difference, {unit}")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
    low, high = axes[1].get_xlim()
    axes[1].set_xlim(max(low, -MAX_PERCENT), min(high, MAX_PERCENT))
    for place, model in enumerate(models):
        axes[0].plot([], [], "o", color=f"C{place}", label=f"{model} against {result['models'][0]}")
    canvas.legend(loc="outside lower center", frameon=False, ncols=len(models))
    canvas.suptitle(f"{title(result)}\n95 % intervals, paired by prompt; hollow: may be no difference", fontsize=10)
    save_picture(canvas, Path(path))


def draw_row(axis: Any, row: dict[str, Any], scale: float, height: float, color: str) -> None:
    """One difference as a point on its interval."""
    value = scale * row["difference"]
    if row["interval"] is None:
        axis.plot([value], [height], "x", color=color)
        return
    low, high = (scale * end for end in row["interval"])
    axis.plot([low, high], [height, height], "-", color=color, linewidth=1.5)
    unclear = low <= 0 <= high
    axis.plot([value], [height], "o", color=color, markerfacecolor="white" if unclear else color)


def save_picture(canvas: Any, path: Path) -> None:
    """Write a matplotlib figure beside and rename it."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=path.suffix[1:], dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
