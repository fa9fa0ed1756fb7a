"""What a guesser who knows nothing but the length of the choices scores, and what ties are worth.

A model that gives every token the same probability does not guess among the choices: it takes the one of fewest tokens
(`acc`), or of most letters a token (`acc_norm`). Where right answers are longer or shorter than wrong ones, that scores
away from one over the number of choices. Among equals lm-eval takes the first, which is right as often as the authors
put the right answer first; here a tie is worth the share of right choices in it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.task import Task
from transformers import PreTrainedTokenizerBase

METRICS = {
    "acc": lambda choice: 1.0,
    "acc_norm": lambda choice: float(len(choice)),
    "acc_bytes": lambda choice: float(len(choice.encode("utf-8"))),
}
"""By metric: what lm-eval divides a choice's log-likelihood by."""

TIED = 1e-6
"""Scores that differ by less than this share of themselves are equal but for rounding."""


@dataclass
class Guessed:
    """A task's items under one metric, in the items' order."""

    first: np.ndarray
    """(items,) float64: the model's score, a tie given to the first choice, as lm-eval does"""
    shared: np.ndarray
    """the same, a tie shared"""
    tied: np.ndarray
    """(items,) bool"""
    by_length: np.ndarray
    """the score of equal probabilities for all tokens, ties shared"""


def guessed(task: Task, metric: str, samples: list[dict[str, Any]], tokens: list[list[int]]) -> Guessed | None:
    """Scores of a multiple-choice task's samples; None where its metric is another one than lm-eval's usual.

    Args:
        samples: lm-eval's.
        tokens: of the choices of each, see `choice_tokens`.
    """
    if metric not in METRICS or callable(task.config.process_results) or not samples:
        return None
    rows = []
    for sample, lengths in zip(samples, tokens, strict=True):
        choices = task.doc_to_choice(sample["doc"])
        if len(sample["filtered_resps"]) != len(choices):  # choices are asked for without their context, too
            return None
        right = right_choices(task, sample["doc"], choices)
        size = np.array([METRICS[metric](choice) for choice in choices])
        scores = np.array([likelihood for likelihood, _ in sample["filtered_resps"]], dtype=np.float64) / size
        best = winners(scores)
        alone = winners(-np.array(lengths, dtype=np.float64) / size)
        rows.append(
            (float(scores.argmax() in right), worth(best, right), float(len(best) > 1), worth(alone, right)),
        )
    first, shared, tied, by_length = np.array(rows).T
    return Guessed(first, shared, tied.astype(bool), by_length)


def winners(scores: np.ndarray) -> np.ndarray:
    """Numbers of the best choices: one, or those that are tied."""
    return np.flatnonzero(scores >= scores.max() - TIED * abs(scores.max()))


def worth(best: np.ndarray, right: set[int]) -> float:
    return sum(int(number) in right for number in best) / len(best)


def right_choices(task: Task, doc: dict[str, Any], choices: list[str]) -> set[int]:
    """Numbers of a document's right choices, by lm-eval's rules."""
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(target, str):
        return {choices.index(target)} if target in choices else set()
    return set(target) if isinstance(target, list) else {int(target)}


def choice_tokens(tokenizer: PreTrainedTokenizerBase, samples: list[dict[str, Any]]) -> list[list[int]]:
    """Tokens of each choice of each sample, as lm-eval counts them: spaces before a choice are the choice's."""
    pairs = [pair for sample in samples for pair in sample["arguments"]]
    contexts = list(dict.fromkeys(context.rstrip() for context, *_ in pairs))
    before = dict(zip(contexts, token_counts(tokenizer, contexts), strict=True))
    whole = token_counts(tokenizer, [context + choice for context, choice, *_ in pairs])
    counts = iter(n - before[context.rstrip()] for n, (context, *_) in zip(whole, pairs, strict=True))
    return [[next(counts) for _ in sample["arguments"]] for sample in samples]


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
