"""One page about a run, from its files: results before and after, curves, data, samples, costs.

A reader of run files; never imported by training.
"""

import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import Evaluated, comparison, distinct_names, load_evaluation
from genesis_hf.evaluation.results import RESULTS
from genesis_hf.evaluation.tables import plus_minus, reference
from genesis_hf.files import read_json
from genesis_hf.runs import Run, read_run

Rows = list[list[str]]
"""A table as text; the first row is its head."""

MARGIN = 3.0
"""Standard errors above chance from which on a task counts as learnt here."""


@dataclass
class Samples:
    """Answers of one model to the fixed prompts, and their measured style."""

    name: str
    answers: list[dict[str, Any]]
    style: dict[str, dict[str, Any]]


@dataclass
class Material:
    """All that the given folders hold, each kind in the order in which it came about."""

    folders: list[Path]
    runs: list[Run] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, Any] = field(default_factory=dict)
    fertility: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def collect(folders: Sequence[str | Path]) -> Material:
    """Find run files below some folders by their names.

    Raises:
        UserError: a folder is missing, or holds neither a run nor an evaluation.
    """
    material = Material([Path(folder) for folder in folders])
    for folder in material.folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name run directories, or one that holds them")
        material.runs += [read_run(path.parent) for path in oldest_first(folder, "metrics.jsonl")]
        material.evaluations += sorted(map(load_evaluation, oldest_first(folder, RESULTS)), key=first_measured)
        material.samples += [read_samples(path) for path in oldest_first(folder, "*.summary.json")]
        material.stages += [read_json(path) | {"name": path.stem} for path in oldest_first(folder, "stages/*.json")]
        for path in oldest_first(folder, "parity.json"):
            material.parity = read_json(path)
        for path in folder.rglob("tokenizer/fertility.json"):
            material.fertility = material.fertility or read_json(path)
    if not material.runs and not material.evaluations:
        raise UserError(f"{', '.join(map(str, folders))}: no metrics.jsonl and no {RESULTS} below; nothing to report")
    return material


def oldest_first(folder: Path, pattern: str) -> list[Path]:
    """Files of that name below a folder, checkpoints left out."""
    paths = [p for p in folder.rglob(pattern) if not any(part.startswith(("checkpoint", ".")) for part in p.parts)]
    return sorted(paths, key=lambda path: (path.stat().st_mtime, path))


def first_measured(evaluation: Evaluated) -> str:
    """When its first task was measured, ISO 8601: a base is measured before what is trained from it."""
    return min((p.get("date", "") for p in evaluation.values["provenance"].values()), default="")


def read_samples(path: Path) -> Samples:
    """Answers and their figures from `NAME.summary.json` and `NAME.jsonl` beside it."""
    name = path.name.removesuffix(".summary.json")
    answers = path.with_name(f"{name}.jsonl")
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.is_file() else []
    return Samples(name, [json.loads(line) for line in lines], read_json(path).get("style", {}))


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


def results_rows(material: Material) -> Rows:
    """Every figure of every model, a line a figure, a column a model, with chance level or yardstick."""
    names = distinct_names([e.folder for e in material.evaluations])
    rows = [["", *names, "chance or yardstick"]]
    if material.evaluations:
        by_key: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for row in compared(material.evaluations)["rows"]:
            by_key.setdefault((row["task"], row["metric"]), {})[row["model"]] = row
        for (task, metric), cells in by_key.items():
            arrow = "↑" if next(iter(cells.values()))["higher_is_better"] else "↓"
            scores = [plus_minus(cells[n]["value"], cells[n]["stderr"]) if n in cells else "–" for n in names]
            rows.append([f"{task} {metric} {arrow}", *scores, reference(next(iter(cells.values())))])
    styles = {sample.name: sample.style for sample in material.samples}
    for key, words in STYLE_WORDS.items():
        cells = [percent(styles.get(name, {}).get(key)) for name in names]
        if any(cell != "–" for cell in cells):
            rows.append([words, *cells, "–"])
    for words, before, after in preference_figures(material):
        rows.append([words, *["–"] * max(0, len(names) - 2), before, after, "50.0%"][: len(names) + 2])
    return rows


STYLE_WORDS = {
    "stop_rate": "answers that end by themselves ↑",
    "hedging_rate": "answers that hedge ↓",
    "refusal_rate": "answers that refuse",
    "repetition": "four-word sequences that repeat ↓",
}


def preference_figures(material: Material) -> Iterator[tuple[str, str, str]]:
    """(words, before, after) of the held-out pairs of the last preference training."""
    summaries = [run.summary for run in material.runs if run.summary.get("phase") == "dpo"]
    held_out = summaries[-1].get("held_out") if summaries else None
    if held_out:
        before, after = held_out["before"], held_out["after"]
        yield "held-out pairs ranked right ↑", percent(before["ranked"]), percent(after["ranked"])
        yield "… by mean per token ↑", percent(before["ranked_per_token"]), percent(after["ranked_per_token"])
        yield "… by gain over the SFT model ↑", "–", percent(held_out["implicit_reward"])


def compared(evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    """The comparison of evaluations; of unlike ones the scores of each, with a warning that says what differs."""
    try:
        return comparison(evaluations)
    except UserError as refusal:
        rows: list[dict[str, Any]] = []
        names = distinct_names([evaluated.folder for evaluated in evaluations])
        for name, evaluated in zip(names, evaluations, strict=True):
            rows += [{**row, "model": name} for row in comparison([evaluated])["rows"]]
        return {"rows": rows, "warnings": {"these scores can't be compared": [str(refusal)]}}


def percent(figure: dict[str, Any] | None) -> str:
    """`{"value", "stderr"}` of a share as `98.0% ± 1.0%`."""
    if not figure or figure["value"] is None:
        return "–"
    error = figure.get("stderr")
    return f"{figure['value']:.1%}" + (f" ± {error:.1%}" if error is not None else "")


def findings(material: Material) -> list[str]:
    """Sentences that follow from the figures: against xz, against chance, and what training changed."""
    if not material.evaluations:
        return []
    result = compared(material.evaluations)
    said = [f"WARNING, {model}: {words}." for model, found in result["warnings"].items() for words in found]
    first = material.evaluations[0]
    name = distinct_names([e.folder for e in material.evaluations])[0]
    for task, metrics in first.values["tasks"].items():
        for figure in metrics.values():
            yardstick = figure.get("yardstick")
            if yardstick:
                gap = figure["value"] / yardstick["value"] - 1
                words = "below" if gap < 0 else "ABOVE"
                said.append(
                    f"{task}: {name} has {figure['value']:.3f} bits per byte, {abs(gap):.1%} {words} "
                    f"{yardstick['name']}'s {yardstick['value']:.3f} on the same bytes."
                )
    for row in result["rows"]:
        if row.get("chance") and row["stderr"]:
            above = (row["value"] - row["chance"]) / row["stderr"]
            if above >= MARGIN and row["model"] == name:
                said.append(f"{row['task']} {row['metric']}, {name}: {row['against_chance']}.")
    return said


def cost_rows(material: Material) -> Rows:
    """Time and memory of every stage."""
    rows = [["stage", "minutes", "peak memory, GiB"]]
    for stage in material.stages:
        rows.append([stage["name"], f"{stage['seconds'] / 60:.1f}", f"{stage['peak_memory_gib']:.2f}"])
    if material.stages:
        total = sum(stage["seconds"] for stage in material.stages) / 60
        rows.append(["all", f"{total:.1f}", f"{max(s['peak_memory_gib'] for s in material.stages):.2f}"])
    return rows


def run_rows(material: Material) -> Rows:
    """Where each training began and ended."""
    rows = [["run", "steps", "tokens", "first loss", "last loss", "tokens/s (median)", "tokens of each source"]]
    for run in material.runs:
        logged = [record for record in run.metrics if "loss" in record]
        if not logged:
            continue
        last = logged[-1]
        speeds = sorted(r["tokens_per_second"] for r in logged if "tokens_per_second" in r)
        mixture = ", ".join(f"{name} {share:.1%}" for name, share in last.get("mixture", {}).items())
        rows.append(
            [
                run.folder.name,
                f"{last['step']:,}",
                f"{last['tokens_seen']:,}" if "tokens_seen" in last else "–",
                f"{logged[0]['loss']:.3f}",
                f"{last['loss']:.3f}",
                f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "–",
                mixture or "–",
            ]
        )
    return rows


def fertility_rows(material: Material) -> Rows:
    """Bytes a token of each source."""
    rows = [["source", "bytes per token", "byte fallback"]]
    for name, figures in material.fertility.items():
        rows.append([name, f"{figures['bytes_per_token']:.3f}", f"{figures['byte_fallback_share']:.3%}"])
    return rows


def sample_pairs(material: Material, count: int = 4) -> list[tuple[str, list[tuple[str, str]]]]:
    """(question, [(model, answer), …]) of prompts that all sampled models answered: evenly spread, none hand-picked."""
    if not material.samples:
        return []
    answers = [{json.dumps(a["prompt"]): a for a in sample.answers} for sample in material.samples]
    shared = [key for key in answers[0] if all(key in other for other in answers)]
    chosen = shared[:: max(1, len(shared) // count)][:count]
    names = [sample.name for sample in material.samples]
    return [
        (json.loads(key)[-1]["content"], [(n, a[key]["answer"]) for n, a in zip(names, answers, strict=True)])
        for key in chosen
    ]


# ---------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------


def text_table(rows: Rows) -> str:
    """A Markdown table that reads well in a terminal, too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def sample_text(material: Material) -> str:
    """A few questions with each model's answer."""
    blocks = []
    for question, answers in sample_pairs(material):
        blocks.append(
            "\n".join([f"> {question}", *(f"  {name}: {' '.join(answer.split())}" for name, answer in answers)])
        )
    return "\n\n".join(blocks)


def sections(material: Material) -> Iterator[tuple[str, Rows]]:
    """(title, table) of every part that has something to show."""
    tables = {
        "Before and after": results_rows(material),
        "Training": run_rows(material),
        "Tokenizer": fertility_rows(material),
        "Cost": cost_rows(material),
    }
    yield from ((title, rows) for title, rows in tables.items() if len(rows) > 1)


def parity_words(material: Material) -> str:
    """What the export's proof says."""
    figures = material.parity.get("formats_compared", {}).get("llama")
    if not figures:
        return ""
    difference = figures["max_logit_difference"]
    within = f"within {difference:.2g}" if difference else "to the last bit"
    return f"The exported folder, read back in a fresh process, gives the live model's logits {within}."


def as_markdown(material: Material) -> str:
    """The report as Markdown, without curves."""
    parts = [f"# {title_of(material)}"]
    for title, rows in sections(material):
        parts += [f"## {title}", text_table(rows)]
        if title == "Before and after":
            parts += ["\n".join(f"- {sentence}" for sentence in findings(material)), parity_words(material)]
    if material.samples:
        parts += ["## Samples", sample_text(material)]
    return "\n\n".join(part for part in parts if part) + "\n"


def title_of(material: Material) -> str:
    return "Report: " + ", ".join(str(folder) for folder in material.folders)


STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap;
         font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
blockquote { margin: 1.2rem 0; padding: .6rem 1rem; background: var(--soft); border-radius: 6px }
blockquote p { margin: .3rem 0 } blockquote b { display: inline-block; min-width: 3.5rem }
"""


def as_html(material: Material) -> str:
    """The report as one page that needs no other file and asks nothing of the network."""
    escape = html.escape
    parts = [f"<h1>{escape(title_of(material))}</h1>"]
    for title, rows in sections(material):
        parts.append(f"<h2>{escape(title)}</h2>{html_table(rows)}")
        if title == "Before and after":
            said = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(material))
            parts.append(f"<ul>{said}</ul><p>{escape(parity_words(material))}</p>")
        if title == "Training":
            parts += [curve for run in material.runs if (curve := draw_run(run))]
    if material.samples:
        parts.append("<h2>Samples</h2>")
    for question, answers in sample_pairs(material, 8):
        lines = "".join(f"<p><b>{escape(name)}</b> {escape(answer)}</p>" for name, answer in answers)
        parts.append(f"<blockquote><p><i>{escape(question)}</i></p>{lines}</blockquote>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title_of(material))}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def html_table(rows: Rows) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def draw_run(run: Run) -> str:
    """Loss and learning rate over the steps, and held-out bits per byte where there are any, as inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    logged = [record for record in run.metrics if "loss" in record]
    if len(logged) < 2:
        return ""
    held_out = [record for record in run.metrics if "held_out" in record]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 + bool(held_out))
    steps = [record["step"] for record in logged]
    axes[0].plot(steps, [record["loss"] for record in logged], linewidth=1)
    axes[0].set_title(f"{run.folder.name}: loss")
    with_rate = [record for record in logged if "learning_rate" in record]
    axes[1].plot([r["step"] for r in with_rate], [r["learning_rate"] for r in with_rate], linewidth=1)
    axes[1].set_title("learning rate")
    if held_out:
        for name in held_out[0]["held_out"]:
            values = [record["held_out"][name]["bits_per_byte"] for record in held_out]
            axes[2].plot([record["step"] for record in held_out], values, marker="o", markersize=3, label=name)
        axes[2].set_title("held-out bits per byte")
        axes[2].legend()
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def write_report(material: Material, path: str | Path) -> Path:
    """Write the page, and the Markdown beside it; returns the page's path."""
    path = Path(path)
    write_text(path.with_suffix(".md"), as_markdown(material))
    write_text(path, as_html(material))
    return path
