"""Texts that came before, to the letter or nearly: MinHash finds candidates, exact Jaccard similarity decides."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

from genesis_hf.chat import Message
from genesis_hf.data.contamination.ngrams import split_words

GRAM = 5
"""Words of a gram; a turn of fewer is one gram."""

PERMUTATIONS = 128
MISSES_WEIGHT = 0.9
"""Against 0.1 for false candidates, which cost a comparison and nothing else."""


def compared_turns(messages: Sequence[Message]) -> list[str]:
    """What is compared of a conversation: all that was asked and answered."""
    return [message["content"] for message in messages if message["role"] != "system"]


def grams_of(texts: Sequence[str]) -> np.ndarray:
    """Sorted distinct uint64 hashes of the texts' word 5-grams; none spans two texts."""
    words = split_words(texts)
    starts, stops = words.windows(GRAM)
    long = np.isin(np.arange(len(texts)), words.text_of_word(starts))
    firsts, ends = words.bounds[:-1], words.bounds[1:]
    short = ~long & (firsts < ends)
    hashes = [words.hash_windows(starts, stops), words.hash_windows(firsts[short], ends[short])]
    return np.unique(np.concatenate(hashes))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over that of the union of two sorted sets of distinct hashes, not both empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class Duplicates:
    """Texts seen so far, by a number of the caller's.

    It holds a hash and a MinHash signature's bands of each, not the text: 5.0 KB (19,592 texts at a threshold of 0.8).
    There LSH proposes 87 % of the pairs whose similarity is 0.8, 97 % at 0.85 and 99.9 % at 0.9; it misses the others.
    """

    def __init__(self, threshold: float, fetch: Callable[[int], Sequence[str]]) -> None:
        """
        Args:
            threshold: Jaccard similarity from which on two texts count as the same; 1: only equal ones do.
            fetch: the texts that were added under a number.
        """
        self.threshold = threshold
        self.fetch = fetch
        self.exact: dict[bytes, int] = {}
        self.near: MinHashLSH | None = None
        if threshold < 1:
            weights = (1 - MISSES_WEIGHT, MISSES_WEIGHT)
            self.near = MinHashLSH(threshold, PERMUTATIONS, weights=weights)
        self.empty = MinHash(PERMUTATIONS, hashfunc=int)

    def find_or_add(self, number: int, texts: Sequence[str]) -> tuple[int, float] | None:
        """The earlier text that these are a copy of, with their similarity; None: there is none, and they are added."""
        digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self.exact:
            return self.exact[digest], 1.0
        if self.near is not None:
            grams = grams_of(texts)
            signature = self.empty.copy()
            signature.update_batch((grams >> np.uint64(32)).tolist())
            for candidate in sorted(self.near.query(signature)) if len(grams) else ():
                similarity = jaccard(grams, grams_of(self.fetch(candidate)))
                if similarity >= self.threshold:
                    return candidate, similarity
            if len(grams):
                self.near.insert(number, signature)
        self.exact[digest] = number
        return None
