"""How answers sound, counted: do they end, do they hedge, how long are they, do they repeat themselves."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from genesis_hf.generate import Answer
from genesis_hf.uncertainty import standard_error

HEDGING_PHRASES = (
    *(
        "not sure",
        "not entirely sure",
        "not certain",
        "can't be sure",
        "cannot be sure",
        "hard to say",
        "not an expert",
    ),
    *("might be", "may be", "could be", "i think", "i believe", "i guess", "i suppose", "i would say", "it seems"),
    *("as far as i know", "if i remember", "if i'm not mistaken", "to the best of my knowledge", "don't quote me"),
    *("i could be wrong", "i might be wrong", "i may be wrong", "i'm mistaken", "may be mistaken", "might be mistaken"),
    *("double-check", "double check", "please verify", "you may want to", "you might want to", "consult the"),
    *("it depends", "probably depends", "may depend", "might depend", "someone else knows", "that said"),
    *("in some cases", "to some extent", "more or less", "sort of", "kind of like", "generally speaking"),
)
"""Phrases that take back what is said, in lower case."""

HEDGING_WORDS = (
    *("maybe", "perhaps", "possibly", "probably", "presumably", "apparently", "supposedly", "seemingly", "arguably"),
    *("might", "seems", "seem", "appears", "roughly", "somewhat", "likely", "unsure", "uncertain", "mistaken"),
)
"""Single words that do."""

HEDGING = re.compile(rf"\b(?:{'|'.join(re.escape(p) for p in (*HEDGING_PHRASES, *HEDGING_WORDS))})\b")
WORD = re.compile(r"\w+(?:['’-]\w+)*")
REPETITION_LENGTH = 4
"""Words of the sequences that `repetition` looks for: shorter ones come again in good prose, too."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(text.lower())


def hedges_of(text: str) -> list[str]:
    """The hedging phrases and words in a text, in order, none counted twice."""
    return HEDGING.findall(text.lower().replace("’", "'"))


def repetition(text: str) -> float:
    """Share of a text's four-word sequences that stood in it before (1 - distinct / all); 0 below two of them."""
    words = words_of(text)
    grams = [tuple(words[i : i + REPETITION_LENGTH]) for i in range(len(words) - REPETITION_LENGTH + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def measure_style(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Means over answers, each as `{"value", "stderr"}`.

    Returns:
        `stop_rate` (share that ended by itself), `hedging_rate` (share with a hedge), `hedges_per_100_words` (mean of
        the answers' own rates), `words`, `tokens` (mean lengths), `repetition`, `empty` (share without a word).
    """
    columns: dict[str, list[float]] = {
        "stop_rate": [answer.stopped for answer in answers],
        "hedging_rate": [bool(hedges_of(answer.answer)) for answer in answers],
        "hedges_per_100_words": [
            100 * len(hedges_of(answer.answer)) / max(1, len(words_of(answer.answer))) for answer in answers
        ],
        "words": [len(words_of(answer.answer)) for answer in answers],
        "tokens": [answer.tokens for answer in answers],
        "repetition": [repetition(answer.answer) for answer in answers],
        "empty": [not words_of(answer.answer) for answer in answers],
    }
    figures = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=np.float64)
        figures[name] = {"value": float(values.mean()), "stderr": standard_error(values)}
    return figures


def style_table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as lines of text, shares in percent."""
    shares = ("stop_rate", "hedging_rate", "repetition", "empty")
    lines = []
    for name, figure in figures.items():
        value, error = figure["value"], figure["stderr"] or 0.0
        lines.append(
            f"{name:22} " + (f"{value:8.1%} ± {error:.1%}" if name in shares else f"{value:8.2f} ± {error:.2f}")
        )
    return "\n".join(lines)
