"""Standard errors, chance levels and paired tests: what a score can and cannot say.

Every score here is a smooth function of per-item values. Its first-order expansion turns each item into one number
whose mean is the score (`linearize`), so that one formula, sd / sqrt(n), gives every standard error, and the same
numbers subtracted item by item give every paired test (the delta method; Wasserman, All of Statistics, 2004, 5.5).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DISTINGUISHABLE = 2.0
"""Standard errors from which a difference is called one: about 95 % two-sided under a normal distribution."""

SIGNIFICANT = 2 * (1 - 0.9772498680518208)
"""The p-value that belongs to it."""


def linearize(aggregation: str, items: Sequence[Any]) -> np.ndarray | None:
    """Per-item numbers whose mean is the score and whose sd / sqrt(n) is its standard error.

    Args:
        aggregation: lm-eval's name. `mean`: items are numbers. `perplexity`: items are log-likelihoods in nats, the
            score is exp(-mean). `bits_per_byte`, `weighted_perplexity`: items are (log-likelihood, weight), the
            rate is r = -Σ log-likelihood / Σ weight and the score r / ln 2 or exp(r).
        items: one value an item.

    Returns:
        (items,) float64; None for an aggregation that has no such form.
    """
    if aggregation == "mean":
        return np.asarray(items, dtype=np.float64)
    if aggregation == "perplexity":
        values = np.asarray(items, dtype=np.float64)
        score = np.exp(-values.mean())
        return score * (1 + values.mean() - values)
    if aggregation in ("bits_per_byte", "weighted_perplexity"):
        losses, weights = -np.asarray(items, dtype=np.float64).T * np.array([[1.0], [-1.0]])
        rate = losses.sum() / weights.sum()
        residuals = (losses - rate * weights) / weights.mean()
        if aggregation == "bits_per_byte":
            return (rate + residuals) / math.log(2)
        return np.exp(rate) * (1 + residuals)
    return None


def standard_error(values: np.ndarray | None) -> float | None:
    """Sample standard deviation over sqrt(n); None below two items."""
    if values is None or len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def standard_errors_above(
    value: float, stderr: float | None, reference: float, higher_is_better: bool, n: int | None = None
) -> float | None:
    """How many standard errors a score is better than a reference; negative where it is worse.

    Where every item scored the same, the sample has no spread: for a share between 0 and 1 of `n` items, the
    standard error of a guesser at the reference level, sqrt(c (1 - c) / n), stands in. None where there is none.
    """
    if not stderr and n and 0 < reference < 1:
        stderr = math.sqrt(reference * (1 - reference) / n)
    if not stderr:
        return None
    return (value - reference) / stderr * (1 if higher_is_better else -1)


def p_value(standard_errors: float) -> float:
    """Two-sided p of a normal deviate."""
    return math.erfc(abs(standard_errors) / math.sqrt(2))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values that count how many tests were made (Holm's step-down method); None stays None and counts for nothing.

    S. Holm: A Simple Sequentially Rejective Multiple Test Procedure. Scandinavian Journal of Statistics 6, 1979.
    """
    known = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, number) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[number] = highest
    return adjusted


def above_chance(entry: dict[str, Any]) -> float | None:
    """Standard errors above the chance level; None where a score has none. Ties count as shared where that is known."""
    if entry.get("chance") is None:
        return None
    value = entry.get("value_ties_shared", entry["value"])
    return standard_errors_above(value, entry.get("stderr"), entry["chance"], entry["higher_is_better"], entry.get("n"))


def chance_p(entry: dict[str, Any]) -> float | None:
    """Two-sided p of a score against its chance level; None where it has none."""
    above = above_chance(entry)
    return None if above is None else p_value(above)


def against_chance(entry: dict[str, Any], p_adjusted: float | None = None) -> str:
    """Words for a score beside its chance level; empty where it has none or no standard error.

    Args:
        entry: `value`, `stderr`, `chance`, `n`, `higher_is_better`; `by_length` and `by_length_stderr`, where it is
            known what a choice by length alone scores on these items; `value_ties_shared`.
        p_adjusted: from `holm`, where this is one of several tests.
    """
    above = above_chance(entry)
    if above is None:
        return ""
    if abs(above) < DISTINGUISHABLE:
        return "not distinguishable from chance"
    found = f"{'above' if above > 0 else 'below'} chance by {abs(above):.1f} standard errors"
    if entry.get("by_length") is not None:
        difference = entry.get("value_ties_shared", entry["value"]) - entry["by_length"]
        stderr = entry.get("by_length_stderr") or 0.0
        if abs(difference) <= DISTINGUISHABLE * stderr:
            return f"not distinguishable from a choice by length alone ({entry['by_length']:.3f}; {found})"
        if above > 0 > difference:
            return f"{found}, but below a choice by length alone ({entry['by_length']:.3f})"
    if p_adjusted is not None and p_adjusted >= SIGNIFICANT:
        return f"not distinguishable from chance ({found}, as some are among so many tests: p = {p_adjusted:.2g})"
    return found


def against_base(
    entry: dict[str, Any], base: dict[str, Any], name: str, differences: np.ndarray | None = None
) -> dict[str, Any]:
    """A score against another model's on the same task.

    Args:
        entry, base: `value`, `stderr`, `higher_is_better`.
        name: of the base, for the words.
        differences: linearized scores minus the base's, item by item (a paired test); without them the two
            standard errors are added in squares, as for independent samples.

    Returns:
        `difference`, `stderr`, `p` (None where unknown), `paired`, `better` (where `p` is known) and `words`.
    """
    difference = entry["value"] - base["value"]
    if differences is not None:
        stderr = standard_error(differences)
    elif entry["stderr"] is None or base["stderr"] is None:
        stderr = None
    else:
        stderr = math.hypot(entry["stderr"], base["stderr"])
    result = {"difference": difference, "stderr": stderr, "p": None, "paired": differences is not None}
    if differences is not None and not differences.any():
        return {**result, "words": f"the same as {name} on every item"}
    above = standard_errors_above(difference, stderr, 0.0, entry["higher_is_better"])
    if above is None:
        return {**result, "words": f"no standard error: nothing can be said against {name}"}
    result["p"] = p_value(above)
    result["better"] = above > 0
    return {**result, "words": base_words(result, name)}


def base_words(result: dict[str, Any], name: str) -> str:
    """What `against_base` found, in words; with `p_adjusted` (from `holm`) that one decides."""
    p, adjusted = result["p"], result.get("p_adjusted")
    if p is None:
        return result["words"]
    how = "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
    if adjusted is not None and adjusted > p and not (p < 1e-4 and adjusted < 1e-4):
        how += f", {adjusted:.2g} among all tests"
    how += ", paired" if result["paired"] else ""
    if (p if adjusted is None else adjusted) > SIGNIFICANT:
        return f"not distinguishable from {name} ({how})"
    return f"{'better' if result['better'] else 'worse'} than {name} ({how})"
