"""Permutations that depend on nothing but a key: the same in every process, on every machine."""

import hashlib
import json
from typing import Any

import numpy as np

ROUNDS = 6


def block_permutation(size: int, *key: Any) -> np.ndarray:
    """A permutation of range(size) (numpy's PCG64, seeded by the key's sha256)."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).permutation(size)


class IndexPermutation:
    """A permutation of range(size) that is computed where it is looked at, so that billions of rows need no table.

    A balanced Feistel network over the smallest even number of bits that holds `size`; a value outside the range is
    sent through again until it falls inside (cycle walking; Black and Rogaway 2002).
    """

    def __init__(self, size: int, *key: Any) -> None:
        self.size = size
        self.half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self.mask = np.uint64((1 << int(self.half)) - 1)
        digest = hashlib.sha512(json.dumps(key).encode()).digest()
        self.keys = np.frombuffer(digest, dtype="<u8")[:ROUNDS].astype(np.uint64)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Where each of the indices goes; (n,) int64."""
        values = self._once(indices.astype(np.uint64))
        while (outside := values >= np.uint64(self.size)).any():
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self.half, values & self.mask
        for key in self.keys:
            left, right = right, left ^ (mix(right ^ key) & self.mask)
        return (left << self.half) | right


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): each input bit reaches each output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
