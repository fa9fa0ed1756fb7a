"""How answers to the same prompts changed from one model to another, prompt by prompt.

Reads files of answers only; never imported by training.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.answers import Answer, read_answers, read_settings
from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import distinct_names
from genesis_hf.style.intervals import newcombe, student
from genesis_hf.style.measures import FIGURES, interval_text, measure_answers, value_text
from genesis_hf.style.metric import Figure

MUST_MATCH = ("max_new_tokens", "temperature", "top_p", "repetition_penalty")
"""Settings without which two sets of answers are not of the same thing."""


@dataclass
class Sampled:
    """One model's answers, measured."""

    path: Path
    answers: list[Answer]
    settings: dict[str, Any]
    """What they were made from; {} where that is not known."""


def load_answers(path: str | Path) -> Sampled:
    """A file of answers, and the settings from its summary where there is one."""
    return Sampled(Path(path), read_answers(path), read_settings(path))


def compare_answers(models: Sequence[Sampled]) -> dict[str, Any]:
    """Every figure of the first model beside that of each other one, on the same prompts.

    Returns:
        `models` (names), `prompts` (their number), `rows` (figure, model, before, after, difference, interval …, words)
        and `notes`.

    Raises:
        UserError: other prompts or settings; says which.
    """
    names = distinct_names([model.path.with_suffix("") for model in models])
    for model in models[1:]:
        refuse_unlike(models[0], model)
    first = measure_answers(models[0].answers)
    rows = []
    for model, name in zip(models[1:], names[1:], strict=True):
        measured = measure_answers(in_order_of(models[0].answers, model.answers))
        rows += [difference_row(figure, name, first[figure.name], measured[figure.name]) for figure in FIGURES]
    return {
        "models": names,
        "prompts": len(models[0].answers),
        "rows": [row for row in rows if row is not None],
        "notes": notes(models, names),
    }


def prompt_key(answer: Answer) -> str:
    return json.dumps([[m["role"], m["content"]] for m in answer.prompt], ensure_ascii=False)


def refuse_unlike(base: Sampled, other: Sampled) -> None:
    """Raise `UserError` unless both answered the same prompts with the same settings."""
    ours, theirs = (Counter(map(prompt_key, sampled.answers)) for sampled in (base, other))
    if ours != theirs:
        only = [(path, difference) for path, difference in ((base.path, ours - theirs), (other.path, theirs - ours))]
        said = "; ".join(
            f"{sum(missing.values())} only in {path}, the first: {json.loads(next(iter(missing)))[-1][1][:60]!r}"
            for path, missing in only
            if missing
        )
        raise UserError(f"{base.path} and {other.path} answer different prompts ({said}); sample both with the same")
    ours, theirs = (sampled.settings.get("recipe", {}) for sampled in (base, other))
    both = [key for key in MUST_MATCH if key in ours and key in theirs]
    wrong = [f"{key} ({ours[key]} and {theirs[key]})" for key in both if ours[key] != theirs[key]]
    if wrong:
        raise UserError(
            f"{base.path} and {other.path} were sampled with another {', '.join(wrong)}; sample both with the same"
        )


def in_order_of(base: Sequence[Answer], answers: Sequence[Answer]) -> list[Answer]:
    """The answers in the order of the base's prompts."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(prompt_key(answer), []).append(answer)
    return [by_prompt[prompt_key(answer)].pop(0) for answer in base]


def difference_row(figure: Figure, model: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """One figure of two models over the prompts on which it is known for both; None where there is none."""
    pairs = [(a, b) for a, b in zip(before["values"], after["values"], strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    ours, theirs = np.array(pairs, dtype=np.float64).T
    difference = float(theirs.mean() - ours.mean())
    interval = newcombe(ours, theirs) if figure.kind == "share" else student(theirs - ours)
    row = {
        "figure": figure.name,
        "model": model,
        "n": len(pairs),
        "unknown": len(before["values"]) - len(pairs),
        "before": float(ours.mean()),
        "after": float(theirs.mean()),
        "difference": difference,
        "interval": list(interval) if interval else None,
        "relative": difference / float(ours.mean()) if figure.kind == "number" and ours.mean() else None,
        "same_everywhere": bool((ours == theirs).all()),
    }
    return {**row, "words": words_for(figure, row)}


def words_for(figure: Figure, row: dict[str, Any]) -> str:
    """What the numbers say, and no more than they say."""
    before, after = (value_text(figure, row[key]) for key in ("before", "after"))
    relative = f" ({row['relative']:+.1%})".replace("-", "−").replace("%", " %") if row["relative"] else ""
    said = f"{before} → {after}{relative}"
    interval = interval_text(figure, row["interval"], sign=True)
    if row["same_everywhere"]:
        return f"{figure.words}: the same on every prompt, {before}"
    if row["interval"] is None:
        return f"{figure.words}: {said}; too few prompts, or the same difference on each, for an interval"
    if row["interval"][0] <= 0 <= row["interval"][1]:
        return f"{figure.words}: no difference that these {row['n']} prompts can show ({said}, difference {interval})"
    direction = "rose" if row["difference"] > 0 else "fell"
    return f"{figure.words} {direction}: {said}, difference {value_text(figure, row['difference'], True)} {interval}"


def notes(models: Sequence[Sampled], names: Sequence[str]) -> list[str]:
    """What a reader has to know beside the numbers."""
    said = [
        "intervals are 95 %, paired by prompt: Newcombe's for shares of yes and no, Student's for the others; of "
        "twenty differences that are none, one is taken for one by chance",
        "hedging, refusals, questions and specificity are counted with English word lists",
    ]
    unknown = [name for model, name in zip(models, names, strict=True) if not model.settings]
    if unknown:
        said.append(f"the settings of {' and '.join(unknown)} are not known (no .summary.json beside the answers)")
    seeds = {str(model.settings["recipe"]["seed"]) for model in models if "recipe" in model.settings}
    if len(seeds) > 1:
        said.append(f"seeds differ ({', '.join(sorted(seeds))})")
    return said
