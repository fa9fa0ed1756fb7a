"""What the models score: side by side, and what follows from it."""

from collections.abc import Iterator, Sequence
from typing import Any

from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import Evaluated, comparison, distinct_names
from genesis_hf.evaluation.tables import plus_minus, reference
from genesis_hf.report.curve import number
from genesis_hf.report.material import Material, Training
from genesis_hf.report.tables import Rows

MARGIN = 3.0
"""Standard errors above chance from which on a task counts as learnt here."""

STYLE_WORDS = {
    "stop_rate": "answers that end by themselves ↑",
    "hedging_rate": "answers that hedge ↓",
    "refusal_rate": "answers that refuse",
    "repetition": "four-word sequences that repeat ↓",
}


def results_rows(material: Material) -> Rows:
    """Every figure of every model, a line a figure, a column a model, with chance level or yardstick."""
    names = material.model_names()
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
    return rows + preference_rows(material, names)


def preference_rows(material: Material, names: Sequence[str]) -> Rows:
    """Held-out pairs before and after each preference training, under the models that it began and ended with.

    They have a place here only where both models were evaluated.
    """
    rows: Rows = []
    for training in material.trainings:
        ends = ends_among(names, training)
        if ends is None:
            continue
        several = sum(bool(other.summary.get("held_out")) for other in material.of_phase("dpo")) > 1
        for words, *figures in preference_figures([training.summary]):
            cells = dict(zip(ends, figures, strict=True))
            words = f"{training.name}: {words}" if several else words
            rows.append([words, *(cells.get(name, "–") for name in names), "50.0%"])
    return rows


def ends_among(names: Sequence[str], training: Training) -> tuple[str, str] | None:
    """The evaluated models that a training began and ended with, if both are there."""
    before, after = name_in(names, training.summary.get("model")), name_in(names, training.folder)
    return None if before is None or after is None else (before, after)


def name_in(names: Sequence[str], path: object) -> str | None:
    """The evaluated model that a folder is called by: `runs/demo/sft/final` is `sft`."""
    folder = str(path).removesuffix("/").removesuffix("/final")
    return next((name for name in names if f"/{folder}".endswith(f"/{name}")), None)


def preference_figures(summaries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(words, before, after) of the held-out pairs of the last DPO among the trainings with these summaries."""
    held_out = next((s.get("held_out") for s in reversed(summaries) if s.get("phase") == "dpo"), None)
    if held_out:
        before, after = held_out["before"], held_out["after"]
        yield "held-out pairs ranked right ↑", percent(before["ranked"]), percent(after["ranked"])
        yield "… by mean per token ↑", percent(before["ranked_per_token"]), percent(after["ranked_per_token"])
        yield "… by gain over the SFT model ↑", "–", percent(held_out["implicit_reward"])


def held_out_rows(material: Material) -> Rows:
    """What SFT and preference training measured on their own held-out rows, where it has no place among the scores."""
    rows = [["run", "held out", "before", "after"]]
    for training in material.trainings:
        measured = training.summary.get("held_out") or {}
        before, after = (measured.get(when) or {} for when in ("before", "after"))
        if "loss" in before and "loss" in after:
            losses = [plus_minus(figures["loss"], figures.get("stderr")) for figures in (before, after)]
            rows.append([training.name, "loss of answers, nats a token ↓", *losses])
        if "ranked" in before and "ranked" in after and ends_among(material.model_names(), training) is None:
            rows += [[training.name, *figures] for figures in preference_figures([training.summary])]
    return rows


def compared(evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    """The comparison of evaluations; of unlike ones the scores of each, with a warning that says what differs."""
    try:
        return comparison(list(evaluations))
    except UserError as refusal:
        rows: list[dict[str, Any]] = []
        names = distinct_names([evaluated.folder for evaluated in evaluations])
        for name, evaluated in zip(names, evaluations, strict=True):
            rows += [{**row, "model": name} for row in comparison([evaluated])["rows"]]
        return {
            "models": names,
            "rows": rows,
            "notes": [],
            "warnings": {"these scores can't be compared": [str(refusal)]},
        }


def difference_rows(result: dict[str, Any]) -> Rows:
    """Every score against the first model's, with p-values that count all tests of the table."""
    rows = [["task", "metric", "model", "difference", "p", "p among all tests (Holm)", "so"]]
    for row in result["rows"]:
        against = row.get("against_base")
        if against:
            arrow = "↑" if row["higher_is_better"] else "↓"
            difference = plus_minus(against["difference"], against["stderr"], sign=True)
            ps = [p_text(against["p"]), p_text(against.get("p_adjusted"))]
            verdict = against["words"].split(" (")[0]
            rows.append([row["task"], f"{row['metric']} {arrow}", row["model"], difference, *ps, verdict])
    return rows


def p_text(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def percent(figure: dict[str, Any] | None) -> str:
    """`{"value", "stderr"}` of a share as `98.0% ± 1.0%`."""
    value = number(figure.get("value")) if isinstance(figure, dict) else None
    if value is None:
        return "–"
    error = number(figure.get("stderr"))
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None else "")


def impossible(material: Material) -> list[str]:
    """What the sanity gate says of the evaluations: figures that cannot be those of the model that was trained."""
    if not material.evaluations:
        return []
    found = compared(material.evaluations)["warnings"]
    return [f"{model}: {words}." for model, said in found.items() for words in said]


def findings(material: Material) -> list[str]:
    """Sentences that follow from the figures: against xz, against chance, and what training changed."""
    if not material.evaluations:
        return []
    said = [f"WARNING, {words}" for words in impossible(material)]
    name = material.model_names()[0]
    for task, metrics in material.evaluations[0].values["tasks"].items():
        for figure in metrics.values():
            yardstick = figure.get("yardstick")
            if yardstick:
                gap = figure["value"] / yardstick["value"] - 1
                words = "below" if gap < 0 else "ABOVE"
                said.append(
                    f"{task}: {name} has {figure['value']:.3f} bits per byte, {abs(gap):.1%} {words} "
                    f"{yardstick['name']}'s {yardstick['value']:.3f} on the same bytes."
                )
    guessed = []
    for row in compared(material.evaluations)["rows"]:
        if row.get("chance") and row["stderr"] and row["model"] == name:
            above = (row["value"] - row["chance"]) / row["stderr"]
            if above >= MARGIN:
                said.append(f"{row['task']} {row['metric']}, {name}: {row['against_chance']}.")
            else:
                guessed.append(f"{row['task']} {row['metric']}")
    if guessed:
        said.append(f"Less than {MARGIN:g} standard errors above chance, {name}: {', '.join(guessed)}.")
    return said


def parity_rows(material: Material) -> Rows:
    """How each exported file compared with the live model."""
    rows = [["export", "file", "logits differ by at most", "same likeliest token", "tokens compared", "agrees"]]
    for folder, parity in material.exports:
        for name, figures in (parity.get("formats_compared") or {}).items():
            rows.append(
                [
                    folder.name,
                    name,
                    f"{figures['max_logit_difference']:.2g}" if "max_logit_difference" in figures else "unknown",
                    f"{figures['top1_agreement']:.2%}" if "top1_agreement" in figures else "unknown",
                    f"{figures.get('tokens_compared', 0):,}",
                    {True: "yes", False: "NO"}.get(figures.get("agrees"), "unknown"),
                ]
            )
    return rows


def parity_words(material: Material) -> list[str]:
    """What the proofs of the exports say."""
    said = []
    for folder, parity in material.exports:
        figures = (parity.get("formats_compared") or {}).get("llama") or {}
        difference = figures.get("max_logit_difference")
        if difference is not None:
            within = f"within {difference:.2g}" if difference else "to the last bit"
            said.append(f"{folder.name}, read back in a fresh process, gives the live model's logits {within}.")
    return said
