"""Whether answers repeat themselves."""

import numpy as np

from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.text import visible, words_of

GRAM = 4
"""Words of the sequences looked for: shorter ones come again in good prose, too."""

ROUNDS = 3
"""Times in a row that a block of words stands in a loop; two are a slip or emphasis."""

MAX_WORDS = 4096
"""Words of an answer searched for loops, the last ones, where a model that got stuck is stuck."""


class Repetition(StyleMetric):
    """Repeated four-word sequences, and the longest loop."""

    description = (
        "`repetition`: share of an answer's four-word sequences that stood in it before, 1 - distinct / all "
        "(seq-rep-4 of Welleck et al.), averaged over answers; 0 below two sequences. `longest_loop`: words of the "
        "longest stretch in which the same words come three times in a row or more; 0 without one. In scripts without "
        "spaces a letter counts as a word, so compare such answers only with their like."
    )
    citation = (
        "S. Welleck, I. Kulikov, S. Roller, E. Dinan, K. Cho, J. Weston: Neural Text Generation with Unlikelihood "
        "Training. ICLR 2020."
    )
    figures = (
        Figure("repetition", "four-word sequences repeated", "ratio"),
        Figure("longest_loop", "words in the longest loop", "number"),
    )

    def measure(self, answer: str) -> dict[str, float | None]:
        """`repetition` and `longest_loop`."""
        words = words_of(visible(answer))
        return {"repetition": repeated_share(words), "longest_loop": longest_loop(words)}


def repeated_share(words: list[str]) -> float:
    """Share of the four-word sequences that stood before; 0 below two of them."""
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def longest_loop(words: list[str]) -> int:
    """Words of the longest stretch in which a block of words stands at least three times in a row."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words[-MAX_WORDS:]], dtype=np.int32)
    longest = 0
    for period in range(1, len(ids) // ROUNDS + 1):
        # A stretch of period p is a run of places that equal the place p before them, and the p words it began with.
        ends = np.flatnonzero(np.concatenate(([True], ids[period:] != ids[:-period], [True])))
        run = int(np.diff(ends).max()) - 1
        if run >= (ROUNDS - 1) * period:
            longest = max(longest, run + period)
    return longest
