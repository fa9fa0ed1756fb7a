"""Evaluated models side by side, with what their figures can and cannot say.

Reads result files only; never imported by training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.errors import UserError
from genesis_hf.evaluation.results import RESULTS, Items, read_items
from genesis_hf.evaluation.sanity import warnings
from genesis_hf.files import read_json
from genesis_hf.uncertainty import against_base, against_chance, base_words, chance_p, holm, linearize

MUST_MATCH = {
    "lm_eval": "version of lm-eval",
    "task_version": "task version",
    "config_sha256": "task definition",
    "num_fewshot": "number of shots",
    "limit": "limit",
    "data_sha256": "data",
    "apply_chat_template": "chat template applied",
    "chat_template_sha256": "chat template",
    "bos_token_added": "BOS added",
    "compute_dtype": "dtype",
}
"""Keys of a task's provenance without which two scores are not of the same thing, and their names in an error."""

WORTH_SAYING = ("prefix_token", "transformers", "torch", "device")
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

    Each row's words follow from p-values that count all tests of their kind in the table (Holm's method): of twenty
    scores at chance, one looks better than chance by itself.

    Returns:
        `models` (names), `rows` (task, metric, model, value, stderr, chance, n, against_chance, against_base …),
        `notes` (what else differs, what the tests are) and `warnings` (what cannot be, by model).

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
    tests = put_words(rows, names[0])
    impossible = {name: found for model, name in zip(models, names, strict=True) if (found := warnings(model.values))}
    return {"models": names, "rows": rows, "notes": notes(models, names) + tests, "warnings": impossible}


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
        row = {"task": task, "metric": metric, "model": name, **entry}
        if base is not None and model is not models[0]:
            differences = item_differences(model.items, models[0].items, (task, metric))
            row["against_base"] = against_base(entry, base, names[0], differences)
        rows.append(row)
    return rows


def put_words(rows: list[dict[str, Any]], base: str) -> list[str]:
    """Add `against_chance` and the words of `against_base`; returns what is to be said about the tests."""
    said = []
    for row, p in zip(rows, holm([chance_p(row) for row in rows]), strict=True):
        row["against_chance"] = against_chance(row, p)
    compared = [row["against_base"] for row in rows if "against_base" in row]
    adjusted = holm([result["p"] for result in compared])
    for result, p in zip(compared, adjusted, strict=True):
        result["p_adjusted"] = p
        result["words"] = base_words(result, base)
    said += [note for row in rows if (note := ties_note(row))]
    counts = {"chance": sum(chance_p(row) is not None for row in rows), base: sum(p is not None for p in adjusted)}
    for against, count in counts.items():
        if count > 1:
            said.append(f"the words against {against} count {count} tests (Holm's method)")
    return said


def ties_note(row: dict[str, Any]) -> str:
    """What ties make of a score, where that is more than its standard error; else empty."""
    shared = row.get("value_ties_shared")
    if shared is None or abs(row["value"] - shared) <= (row["stderr"] or 0.0):
        return ""
    return (
        f"{row['ties']:.0%} of the items of {row['task']} are ties for {row['model']} ({row['metric']}), which lm-eval "
        f"gives to the first choice: {row['value']:.3f}; shared they make {shared:.3f}, and the words go by that"
    )


def item_differences(items: Items, base: Items, key: tuple[str, str]) -> np.ndarray | None:
    """Linearized scores minus the base's, item by item; None unless both kept the same number of items."""
    if key not in items or key not in base:
        return None
    ours = linearize(items[key]["aggregation"], items[key]["values"])
    theirs = linearize(base[key]["aggregation"], base[key]["values"])
    return None if ours is None or theirs is None or len(ours) != len(theirs) else ours - theirs
