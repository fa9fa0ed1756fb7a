"""Prompts with their answers: verdicts and measured style become scores, scores become pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from genesis_hf.answers import Answer
from genesis_hf.style.measures import measure_answers
from genesis_hf.style.text import visible
from genesis_hf.synthesis.candidates import Prompt
from genesis_hf.synthesis.constitution import Category
from genesis_hf.synthesis.judge import Judgement
from genesis_hf.synthesis.pairs import Candidate, Pair, pairs_of
from genesis_hf.synthesis.quality.curation import Filters
from genesis_hf.synthesis.quality.duplicates import Duplicates, compared_turns
from genesis_hf.synthesis.quality.faults import fault_of_answer
from genesis_hf.synthesis.quality.languages import language_of
from genesis_hf.synthesis.recipe import PreferencesRecipe


@dataclass
class Item:
    """A prompt and what came of it.

    Attributes:
        outcome: why no pair came of it; "" as long as one may.
        judgement: on the distinct texts of `candidates`, spread over them.
        options: the pairs that its answers make, the widest margin first.
    """

    prompt: Prompt
    candidates: list[Candidate] = field(default_factory=list)
    judgement: Judgement | None = None
    scores: np.ndarray | None = None
    options: list[Pair] = field(default_factory=list)
    outcome: str = ""


def score(recipe: PreferencesRecipe, filters: Filters, items: Sequence[Item]) -> None:
    """Give each candidate its fault and its score: the judge's, and weighted style in standard deviations."""
    still_open = [item for item in items if not item.outcome]
    style = iter(style_scores(recipe.style, [c for item in still_open for c in item.candidates]))
    for item in still_open:
        category = filters.categories.get(item.prompt.category)
        language = language_of(item.prompt.messages[-1]["content"])
        item.candidates = [
            replace(candidate, fault=candidate.fault or fault_in(candidate.answer, category, language, filters))
            for candidate in item.candidates
        ]
        item.scores = np.array([next(style) for _ in item.candidates])
        if item.judgement is not None:
            item.scores = item.scores + item.judgement.mean()


def fault_in(answer: str, category: Category | None, language: str | None, filters: Filters) -> str | None:
    """Why an answer can't be chosen; None: it can. Its language is that of the question, where that is sure."""
    reason = fault_of_answer(answer, category, filters.settings)
    if reason is None and language is not None:
        reason = filters.language_reason(visible(answer), language)
    reason = reason or filters.contamination([answer])
    return reason and reason[0]


def style_scores(weights: Mapping[str, float], candidates: Sequence[Candidate]) -> np.ndarray:
    """(candidates,): the sum of weight × measure in standard deviations over all of them; unknown is average."""
    scores = np.zeros(len(candidates))
    measured = measured_style(candidates) if weights else {}
    for name, weight in weights.items():
        values = np.array([np.nan if v is None else v for v in measured[name]["values"]], dtype=np.float64)
        known = values[~np.isnan(values)]
        if len(known) and known.std() > 0:
            scores += weight * np.nan_to_num((values - known.mean()) / known.std())
    return scores


def measured_style(candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """All figures of genesis_hf.style over answers."""
    return measure_answers([Answer([], c.answer, c.stopped, c.tokens) for c in candidates])


def pair_up(recipe: PreferencesRecipe, items: Sequence[Item]) -> None:
    """Find the pairs that each prompt's answers make; a conversation like an earlier one makes none."""
    texts: dict[int, list[str]] = {}
    duplicates = Duplicates(recipe.near_duplicates, texts.__getitem__)
    with_tokens = all(candidate.tokens is not None for item in items for candidate in item.candidates)
    for item in items:
        if item.outcome:
            continue
        item.options, item.outcome = pairs_of(
            item.candidates, item.scores, item.judgement, recipe.min_margin, with_tokens
        )
        if item.options:
            answer = item.candidates[item.options[0].chosen].answer
            number = item.prompt.number
            texts[number] = [*compared_turns(item.prompt.messages), visible(answer)]
            if duplicates.find_or_add(number, texts[number]):
                item.outcome = "like an earlier pair"
