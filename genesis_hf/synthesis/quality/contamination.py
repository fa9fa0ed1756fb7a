"""Items of evaluation sets in a text, by word n-grams, as scripts/decontaminate.py looks for them."""

from collections.abc import Iterator, Sequence

import numpy as np

from genesis_hf.data.contamination.evaluation_sets import find_sets, read_items
from genesis_hf.data.contamination.ngrams import NgramIndex, split_words

NGRAM, MIN_WORDS, MAX_ITEMS_PER_NGRAM = 13, 8, 20
"""The defaults of scripts/decontaminate.py."""


class EvaluationItems:
    """All items of some evaluation sets, indexed.

    Raises:
        UserError: nothing there, or a file that can't be read.
    """

    def __init__(self, evaluation_sets: Sequence[str]) -> None:
        self.places: list[str] = []
        self.index = NgramIndex.build(self._read(evaluation_sets), NGRAM, MIN_WORDS, MAX_ITEMS_PER_NGRAM)

    def _read(self, evaluation_sets: Sequence[str]) -> Iterator[list[str]]:
        for evaluation_set in find_sets(list(evaluation_sets))[0] if evaluation_sets else []:
            for place, texts in read_items(evaluation_set):
                self.places.append(f"{evaluation_set.name}: {place}")
                yield texts

    def find(self, texts: Sequence[str]) -> tuple[str, str] | None:
        """Where the first item stands that shares an n-gram with the texts, and the n-gram as they have it."""
        if not self.places:
            return None
        words = split_words(texts)
        starts, stops, ngrams = self.index.find(words)
        if not len(starts):
            return None
        _, items = self.index.items_of(ngrams[:1])
        return self.places[int(np.min(items))], words.text(int(starts[0]), int(stops[0]))
