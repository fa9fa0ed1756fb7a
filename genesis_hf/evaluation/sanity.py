"""Can these scores be this model's? An evaluation held against what training recorded.

A model that predicts its training text well cannot be lost on other text of the same language: where it seems to be,
what was evaluated is not what was trained (a broken export, another tokenizer, a missing BOS). Only result files are
read, so that no table is printed without this.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genesis_hf.files import read_json

PARITY = "parity.json"
"""Where an export says what training recorded."""

HELD_OUT_RATIO = 1.15
"""Most of the bits per byte that training measured on the same source at that step. The two differ a little: training
takes the source's first rows, evaluation more of it, with half a window before each token."""

TRAINING_MARGIN = 1.0
"""Nats a token that held-out text, in the best of its sources, may lie above the training loss."""

LAST_WORD_FACTOR, LAST_WORD_MARGIN = 2.0, 2.0
"""Nats a token that a chosen word (LAMBADA's) may cost: so many times the training loss, and so many more. Such words
are rarer than others, but a model that is right about text is not lost on them."""

TOKENS_PER_WORD = 1.5
"""Of a chosen word where an evaluation doesn't say."""

FERTILITY_SAME, FERTILITY_OTHER = 1.1, 1.5
"""Ratio of tokens per byte to the tokenizer's report: on the same source, and outside the range of its sources."""

EXPORT = "the export (RoPE θ or layout, head counts, norm epsilon), the tokenizer or the dtype"
HARNESS = "how the task is put to the model (BOS, chat template, dtype), or text that is nothing like the training text"
TOKENIZER = "the tokenizer: it is not the one that the model was trained with, or it reads text in another way"


@dataclass
class Check:
    """One figure against its bound."""

    name: str
    found: float
    bound: float
    words: str
    """what it means where the bound is passed"""
    suspect: str
    below: float | None = None
    """a lower bound, where there is one"""

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        return self.found <= self.bound and (self.below is None or self.found >= self.below)


def training_record(folder: Path) -> dict[str, Any]:
    """What is known about the training of an exported model: `loss` (nats per token) and `held_out` at `step`, from
    parity.json; `bytes_per_token` by source, from the tokenizer's report; `vocab_size`. Unknown keys are left out."""
    figures = {key: value for key, value in read_json(folder / PARITY).get("training", {}).items() if value is not None}
    vocab_size = read_json(folder / "config.json").get("vocab_size")
    fertility = {name: row["bytes_per_token"] for name, row in fertility_report(folder).items() if row.get("tokens")}
    known = {**figures, "vocab_size": vocab_size, "bytes_per_token": fertility}
    return {key: value for key, value in known.items() if value}


def fertility_report(folder: Path) -> dict[str, Any]:
    """The tokenizer's fertility.json: in the model's folder, or where the recipe of the run around it says."""
    beside = read_json(folder / "fertility.json")
    for above in folder.resolve().parents[:3] if not beside else ():
        try:
            recipe = yaml.safe_load((above / "recipe.yaml").read_text(encoding="utf-8"))
            return read_json(Path(recipe["tokenizer"]) / "fertility.json")
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
    return beside


def checks(values: dict[str, Any]) -> list[Check]:
    """Every check that `evaluation.json`'s values allow; empty where nothing is known of the training."""
    training = values.get("training", {})
    held_out = held_out_figures(values)
    found = [*held_out_checks(held_out, training), *fertility_checks(held_out, training)]
    export_is_right = any(check.name.startswith("held-out") for check in found) and all(c.passed for c in found)
    return [*found, *last_word_checks(values, training, HARNESS if export_is_right else EXPORT)]


def held_out_figures(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By source: the entry of its bits per byte."""
    return {
        task.removeprefix("held_out/"): metrics["bits_per_byte"]
        for task, metrics in values.get("tasks", {}).items()
        if task.startswith("held_out/") and "bits_per_byte" in metrics
    }


def held_out_checks(held_out: dict[str, dict[str, Any]], training: dict[str, Any]) -> list[Check]:
    """Each source against training's own figure; the best of them against the training loss, and against ln V."""
    found = []
    for name, entry in held_out.items():
        recorded = training.get("held_out", {}).get(name, {}).get("bits_per_byte")
        if recorded:
            words = f"training measured {recorded:.3f} bits per byte on {name}, this model has {entry['value']:.3f}"
            found.append(Check(f"held-out {name}", entry["value"] / recorded, HELD_OUT_RATIO, words, EXPORT))
    losses = {name: entry["loss"] for name, entry in held_out.items() if "loss" in entry}
    if not losses:
        return found
    name = min(losses, key=lambda name: losses[name] if not math.isnan(losses[name]) else math.inf)
    loss = losses[name]
    if "loss" in training:
        words = f"the training loss was {training['loss']:.2f} nats a token, held-out text ({name}) costs {loss:.2f}"
        found.append(Check("held-out loss", loss, training["loss"] + TRAINING_MARGIN, words, EXPORT))
    if "vocab_size" in training:
        guess = math.log(training["vocab_size"])
        words = f"held-out text ({name}) costs {loss:.2f} nats a token; a model that knows nothing has {guess:.2f}"
        found.append(Check("held-out against guessing", loss, guess, words, EXPORT))
    return found


def fertility_checks(held_out: dict[str, dict[str, Any]], training: dict[str, Any]) -> list[Check]:
    """Tokens per byte against the tokenizer's report, on the same source or within the range of its sources."""
    report = {name: 1 / size for name, size in training.get("bytes_per_token", {}).items()}
    found = []
    for name, entry in held_out.items() if report else ():
        rate = entry["tokens"] / entry["bytes"]
        low, high = (report[name],) * 2 if name in report else (min(report.values()), max(report.values()))
        ratio = FERTILITY_SAME if name in report else FERTILITY_OTHER
        words = f"{rate:.3f} tokens a byte on {name}; the tokenizer's report says {low:.3f}"
        words += "" if low == high else f" to {high:.3f}"
        found.append(Check(f"tokens per byte of {name}", rate, high * ratio, words, TOKENIZER, low / ratio))
    return found


def last_word_checks(values: dict[str, Any], training: dict[str, Any], suspect: str) -> list[Check]:
    """Perplexities of chosen words against the training loss."""
    if "loss" not in training:
        return []
    found = []
    for task, metrics in values.get("tasks", {}).items():
        entry = metrics.get("perplexity")
        if task.startswith("held_out/") or not entry:
            continue
        tokens = entry.get("tokens_per_item") or TOKENS_PER_WORD
        nats = math.log(entry["value"]) if entry["value"] > 0 else math.nan
        bound = LAST_WORD_FACTOR * training["loss"] + LAST_WORD_MARGIN
        words = (
            f"{task}'s perplexity of {entry['value']:,.0f} is {nats / tokens:.1f} nats a token, which no model at a "
            f"training loss of {training['loss']:.2f} has (at most {bound:.1f})"
        )
        found.append(Check(f"{task} perplexity", nats / tokens, bound, words, suspect))
    return found


def warnings(values: dict[str, Any]) -> list[str]:
    """What is impossible about an evaluation and which part is suspected, a line each; empty where all holds."""
    lines = [f"{check.words}. Suspect: {check.suspect}" for check in checks(values) if not check.passed]
    if values.get("suspects"):
        lines.append(f"text costs clearly less when one thing in the model is changed: {'; '.join(values['suspects'])}")
    return lines


def summary(values: dict[str, Any]) -> str:
    """One line about the gate, for a table without warnings."""
    made = checks(values)
    if not made:
        return "not held against its training: no parity.json with a training loss, no held-out text, or neither"
    return f"held against its training: {len(made)} of {len(made)} checks passed ({', '.join(c.name for c in made)})"
