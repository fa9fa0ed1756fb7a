"""Evaluated models side by side, with what their figures can and cannot say.

Reads result files only; never imported by training.
"""

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.evaluation import RESULTS, Items, read_items
from genesis_hf.files import read_json
from genesis_hf.uncertainty import against_base, against_chance, linearize

MUST_MATCH = {
    "task_version": "task version",
    "config_sha256": "task definition",
    "num_fewshot": "number of shots",
    "limit": "limit",
    "data_sha256": "data",
}
"""Keys of a task's provenance without which two scores are not of the same thing, and their names in an error."""

WORTH_SAYING = ("apply_chat_template", "compute_dtype", "lm_eval", "bos_token_added", "transformers")
"""Keys that may differ between comparable scores and are then named under the table."""

SAYS_NOTHING = ("final", "export", "exported", "eval", "evaluation")
"""Folder names that don't name a model; the folder above does."""


@dataclass
class Evaluated:
    """One model's result files."""

    folder: Path
    values: dict[str, Any]
    items: Items


def load_evaluation(path: str | Path) -> Evaluated:
    """Results from a folder that holds an `evaluation.json`, or from such a file.

    Raises:
        UserError: no such file, or not an evaluation.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    values = read_json(file)
    if not isinstance(values.get("tasks"), dict) or not isinstance(values.get("provenance"), dict):
        raise UserError(f"{file}: no evaluation there; make one with scripts/evaluate.py --model {path}")
    return Evaluated(file.resolve().parent, values, read_items(file.parent))


def comparison(models: list[Evaluated]) -> dict[str, Any]:
    """Every score of every model beside its chance level and beside the first model's.

    Returns:
        `models` (names), `rows` (task, metric, model, value, stderr, chance, n, against_chance, against_base …) and
        `notes` (what else differs).

    Raises:
        UserError: the scores of a task are not of the same thing; says what differs.
    """
    names = distinct_names([model.folder for model in models])
    refuse_unlike(models, names)
    tasks = dict.fromkeys(task for model in models for task in model.values["tasks"])
    rows = []
    for task in tasks:
        metrics = dict.fromkeys(metric for model in models for metric in model.values["tasks"].get(task, {}))
        for metric in metrics:
            rows += metric_rows(task, metric, models, names)
    return {"models": names, "rows": rows, "notes": notes(models, names)}


def distinct_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart, without parts that say nothing (`final`)."""
    paths = []
    for folder in folders:
        parts = list(folder.parts)
        while len(parts) > 2 and parts[-1] in SAYS_NOTHING:
            parts.pop()
        paths.append(parts)
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} ({number})" for number, parts in enumerate(paths, 1)]


def refuse_unlike(models: list[Evaluated], names: list[str]) -> None:
    """Raise `UserError` where a task was not measured alike in all models that have it."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for model, name in zip(models, names, strict=True):
        for task, provenance in model.values["provenance"].items():
            base_name, base = first.setdefault(task, (name, provenance))
            wrong = [
                f"{word} ({short(base.get(key))} and {short(provenance.get(key))})"
                for key, word in MUST_MATCH.items()
                if base.get(key) != provenance.get(key)
            ]
            if wrong:
                raise UserError(
                    f"{task} was not measured alike in {base_name} and {name}: {', '.join(wrong)} differ; "
                    "evaluate both with the same recipe"
                )


def short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def notes(models: list[Evaluated], names: list[str]) -> list[str]:
    """A line for each setting that differs between models without making their scores unlike."""
    found = []
    for key in WORTH_SAYING:
        values = [sorted({str(p[key]) for p in model.values["provenance"].values() if key in p}) for model in models]
        if len({tuple(v) for v in values if v}) > 1:
            said = ", ".join(f"{name}: {' and '.join(v)}" for name, v in zip(names, values, strict=True) if v)
            found.append(f"{key} differs ({said})")
    return found


def metric_rows(task: str, metric: str, models: list[Evaluated], names: list[str]) -> list[dict[str, Any]]:
    """A row a model that has this score."""
    base = models[0].values["tasks"].get(task, {}).get(metric)
    rows = []
    for model, name in zip(models, names, strict=True):
        entry = model.values["tasks"].get(task, {}).get(metric)
        if entry is None:
            continue
        row = {"task": task, "metric": metric, "model": name, **entry, "against_chance": against_chance(entry)}
        if base is not None and model is not models[0]:
            differences = item_differences(model.items, models[0].items, (task, metric))
            row["against_base"] = against_base(entry, base, names[0], differences)
        rows.append(row)
    return rows


def item_differences(items: Items, base: Items, key: tuple[str, str]) -> np.ndarray | None:
    """Linearized scores minus the base's, item by item; None unless both kept the same number of items."""
    if key not in items or key not in base:
        return None
    ours = linearize(items[key]["aggregation"], items[key]["values"])
    theirs = linearize(base[key]["aggregation"], base[key]["values"])
    return None if ours is None or theirs is None or len(ours) != len(theirs) else ours - theirs


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------

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
    """The chance level, or the yardstick that stands in its place."""
    if row.get("chance") is not None:
        return f"{row['chance']:.4g}"
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
    text += ["", "Scores stand with one standard error; ↑ higher is better, ↓ lower is better."]
    return "\n".join(text + [f"Note: {note}." for note in result["notes"]])


def as_html(result: dict[str, Any]) -> str:
    """The same table as a page of its own."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(cells, "td") for cells in table(result))
    said = "\n".join(f"<p>{html.escape(note)}.</p>" for note in result["notes"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(" / ".join(result["models"]))}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem }}
table {{ border-collapse: collapse }}
td, th {{ padding: .3rem .7rem; border-bottom: 1px solid #ccc; text-align: left; font-variant-numeric: tabular-nums }}
</style></head><body>
<table>
<thead>{line(HEADER, "th")}</thead>
<tbody>
{body}
</tbody></table>
<p>Scores stand with one standard error; ↑ higher is better, ↓ lower is better.</p>
{said}
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
