"""lm-eval's figures, each with its standard error, its chance level and its items."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from lm_eval.api.task import Task
from transformers import PreTrainedTokenizerBase

from genesis_hf.evaluation.results import Evaluation
from genesis_hf.evaluation.ties import choice_tokens, guessed
from genesis_hf.uncertainty import linearize, standard_error

CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics of lm-eval's multiple-choice tasks in which a guesser is right once in so many choices."""


def score_task(
    task: Task, results: dict[str, Any], samples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lm-eval's figures of one task → metrics with their errors and chance levels, and the items of each."""
    metrics, lines = {}, []
    higher, aggregations = task.higher_is_better(), task.aggregation()
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    tokens = choice_tokens(tokenizer, samples) if task.OUTPUT_TYPE == "multiple_choice" else []
    for metric, name, filtered, value in numeric_metrics(results):
        kept = [number for number, sample in enumerate(samples) if sample["filter"] == filtered]
        mine = [samples[number] for number in kept]
        values = [sample[metric] for sample in mine]
        aggregation = getattr(aggregations.get(metric), "__name__", "unknown")
        scores = linearize(aggregation, values)
        if scores is not None and not math.isclose(scores.mean(), value, rel_tol=1e-6, abs_tol=1e-9):
            scores = None  # the task means something else by this name
        metrics[name] = {
            "value": value,
            "stderr": standard_error(scores),
            "chance": chance_level(task, metric, [sample["doc"] for sample in mine]),
            "n": len(values),
            "higher_is_better": bool(higher.get(metric, True)),
        }
        if aggregation == "perplexity":
            metrics[name]["tokens_per_item"] = target_tokens(tokenizer, mine)
        if scores is not None:
            lines.append({"metric": name, "aggregation": aggregation, "values": values})
        if tokens and scores is not None and metrics[name]["chance"] is not None:
            metrics[name].update(length_figures(task, metric, mine, [tokens[number] for number in kept], scores))
    return metrics, lines


def length_figures(
    task: Task, metric: str, samples: list[dict[str, Any]], tokens: list[list[int]], scores: np.ndarray
) -> dict[str, float | None]:
    """`by_length`, what length alone scores, and the standard error of the distance from it; `ties`, the share of items
    with one, and the value with ties shared. Empty where the task scores in another way."""
    found = guessed(task, metric, samples, tokens)
    if found is None or not np.array_equal(found.first, scores):
        return {}
    return {
        "by_length": float(found.by_length.mean()),
        "by_length_stderr": standard_error(found.shared - found.by_length),
        "ties": float(found.tied.mean()),
        "value_ties_shared": float(found.shared.mean()),
    }


def target_tokens(tokenizer: PreTrainedTokenizerBase, samples: list[dict[str, Any]]) -> float | None:
    """Mean tokens of what a log-likelihood task asks for."""
    counts = [sum(tokens) for tokens in choice_tokens(tokenizer, samples)]
    return sum(counts) / len(counts) if counts else None


def score_group(results: dict[str, Any], tasks: list[str], evaluation: Evaluation) -> dict[str, Any]:
    """A group's metrics; where one is the mean over all items or over the tasks, with standard error and chance."""
    metrics = {}
    for _, name, _, value in numeric_metrics(results):
        parts = [evaluation.values["tasks"][task][name] for task in tasks if name in evaluation.values["tasks"][task]]
        if not parts:
            continue
        counts = np.array([part["n"] for part in parts], dtype=np.float64)
        weights = next((w for w in (counts, np.ones(len(parts))) if is_mean(value, parts, w / w.sum())), None)
        metrics[name] = {
            "value": value,
            "stderr": None,
            "chance": None,
            "n": sum(part["n"] for part in parts),
            "higher_is_better": parts[0]["higher_is_better"],
        }
        if weights is not None:
            metrics[name].update(group_figures(parts, weights / weights.sum()))
            lines = [evaluation.items.get((task, name), {}) for task in tasks]
            values = [value for line in lines if line.get("aggregation") == "mean" for value in line["values"]]
            if weights is counts and len(values) == counts.sum():  # the spread between the tasks counts, too
                metrics[name]["stderr"] = standard_error(linearize("mean", values))
    return metrics


def is_mean(value: float, parts: list[dict[str, Any]], weights: np.ndarray) -> bool:
    return math.isclose(value, float(weights @ [part["value"] for part in parts]), rel_tol=1e-6)


def group_figures(parts: list[dict[str, Any]], weights: np.ndarray) -> dict[str, float | None]:
    """The weighted means of the tasks' figures; standard errors add in squares. A figure that one lacks is left out."""
    figures: dict[str, float | None] = {}
    for key in ("chance", "by_length", "ties", "value_ties_shared", "stderr", "by_length_stderr"):
        values = [part.get(key) for part in parts]
        if None in values:
            figures |= {key: None} if key in ("chance", "stderr") else {}
        elif key.endswith("stderr"):
            figures[key] = math.sqrt(float(weights**2 @ np.square(values)))
        else:
            figures[key] = float(weights @ values)
    return figures


def numeric_metrics(results: dict[str, Any]) -> Iterable[tuple[str, str, str, float]]:
    """(metric, name in the table, filter, value): `acc,none` is called `acc`, other filters stay in the name."""
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield metric, metric if filtered == "none" else key, filtered, float(value)


def chance_level(task: Task, metric: str, docs: list[dict[str, Any]]) -> float | None:
    """What guessing among the choices scores on these items; None where the task doesn't say (not: zero)."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in CHOICE_METRICS or not docs:
        return None
    if callable(task.config.process_results):  # the task has a score of its own
        return None
    shares = []
    for doc in docs:
        right = task.doc_to_target(doc) if task.multiple_target else [None]
        shares.append(len(right) / len(task.doc_to_choice(doc)))
    return sum(shares) / len(shares)
