"""64-bit hashes of word n-grams, computed with NumPy over whole batches of texts, and an index of them.

Words are runs of letters, marks and digits, whatever their case and width; all else only separates them. Scripts
without spaces have no such words, so each of their characters is a word of its own that counts for less. In the
parallel paragraphs of XQuAD an English word faces 1.65 Chinese characters and 5.6 Thai ones; a Han character therefore
counts as 1/2 word, kana as 1/3, and Thai, Lao, Khmer and Burmese characters as 1/6.
"""

import functools
import hashlib
import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")

WORD = 6
"""Weight of a word of letters; the weights of the other scripts' characters are parts of it."""
SCRIPTS = {
    3: [(0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)],  # Han
    2: [(0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)],  # kana
    1: [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)],  # Thai, Lao, Burmese, Khmer
}
CHUNK = 2**16
"""Characters hashed at a time, so that the arrays stay in the processor's cache."""
CHARACTER_BASE = 0x9E3779B97F4A7C15
WORD_BASE = 0xD1B54A32D192ED03


@dataclass(frozen=True)
class Words:
    """The words of several texts, one after the other.

    Attributes:
        joined: the texts in Unicode's form NFC, one after the other, separated by line breaks.
        hashes: uint64, one for each word.
        weights: uint8, `WORD` or a part of it.
        starts, stops: int64, the words' places in `joined`.
        bounds: int64, one more than there are texts; text i has the words `bounds[i]` to `bounds[i + 1]`.
    """

    joined: str
    hashes: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """First word and the word after the last of each window that weighs `size` words; none spans two texts."""
        need = size * WORD
        if len(self.weights) and self.weights.min() == WORD:
            stops = np.arange(size, len(self.weights) + 1)
        else:
            total = np.concatenate(([0], np.cumsum(self.weights, dtype=np.int64)))
            stops = np.searchsorted(total, total[:-1] + need)
            stops = stops[stops < len(total)]
        ends = np.repeat(self.bounds[1:], np.diff(self.bounds))[: len(stops)]
        starts = np.flatnonzero(stops <= ends)
        return starts, stops[starts]

    def hash_windows(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """uint64 hashes of the words `starts[i]` to `stops[i]`; `starts` ascend."""
        parts = [np.empty(0, dtype=np.uint64)]
        cuts = np.searchsorted(starts, np.arange(0, len(self.hashes) + CHUNK, CHUNK))
        for first, last in itertools.pairwise(cuts):
            if first < last:
                origin, begin, end = starts[first], starts[first:last], stops[first:last]
                parts.append(hash_spans(self.hashes[origin : end.max()], begin - origin, end - origin, WORD_BASE))
        return np.concatenate(parts)

    def text(self, start: int, stop: int) -> str:
        """The words `start` to `stop` as they stand in the text."""
        return self.joined[self.starts[start] : self.stops[stop - 1]]

    def text_of_word(self, words: np.ndarray) -> np.ndarray:
        """Number of the text that each word belongs to."""
        return np.searchsorted(self.bounds, words, side="right") - 1


def split_words(texts: Sequence[str]) -> Words:
    """The words of the texts, hashed."""
    texts = [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]
    joined = "\n".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    values, kinds = character_tables()
    weight = kinds[codes]
    parts, start = [], 0
    while start < len(codes):
        stop = cut_between_words(weight, start, CHUNK)
        parts.append(hash_words(codes[start:stop], weight[start:stop], values, start))
        start = stop
    empty = np.empty(0, dtype=np.int64)
    hashes, starts, stops = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else (empty,) * 3
    text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Words(
        joined=joined,
        hashes=hashes.astype(np.uint64, copy=False),
        weights=weight[starts],
        starts=starts,
        stops=stops,
        bounds=np.searchsorted(starts, text_starts),
    )


def cut_between_words(weight: np.ndarray, start: int, size: int) -> int:
    """Where a chunk of about `size` characters ends so that no word is cut; a longer word makes a longer chunk."""
    while start + size < len(weight):
        apart = np.flatnonzero(weight[start : start + size] != WORD)
        if len(apart):
            return start + int(apart[-1]) + 1
        size *= 2
    return len(weight)


def hash_words(
    codes: np.ndarray, weight: np.ndarray, values: np.ndarray, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, starts, stops) of the words in a chunk that begins at `offset`."""
    letter = weight == WORD
    before = np.concatenate(([False], letter[:-1]))
    after = np.concatenate((letter[1:], [False]))
    starts = np.flatnonzero((weight != 0) & ~(letter & before))
    stops = np.flatnonzero((weight != 0) & ~(letter & after)) + 1
    return mix(hash_spans(values[codes], starts, stops, CHARACTER_BASE)), starts + offset, stops + offset


def hash_spans(values: np.ndarray, starts: np.ndarray, stops: np.ndarray, base: int) -> np.ndarray:
    """Polynomial hashes modulo 2**64 of `values[starts[i]:stops[i]]`, from one pass of prefix sums.

    The base is odd, so it has an inverse and a span's hash does not depend on where the span stands.
    """
    power, inverse = powers(base, max(2 * CHUNK, 1 << len(values).bit_length()))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * power[: len(values)], out=sums[1:])
    return (sums[stops] - sums[starts]) * inverse[starts]


@functools.lru_cache(maxsize=4)
def powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """base**i and base**-i modulo 2**64 for i below `count`."""
    tables = []
    for factor in (base, pow(base, -1, 2**64)):
        table = np.full(count, factor, dtype=np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): spreads every bit over all 64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def character_tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: a random 64-bit value, equal for all cases and widths of a letter, and its weight; 0 elsewhere."""
    lower = np.zeros(sys.maxunicode + 1, dtype=np.uint64)
    weight = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character)[0] in "LMN":
            plain = unicodedata.normalize("NFKC", character)
            lower[code] = ord((plain if len(plain) == 1 else character).lower()[0])
            weight[code] = WORD
    for part, ranges in SCRIPTS.items():
        for first, last in ranges:
            weight[first : last + 1] = np.minimum(weight[first : last + 1], part)
    return np.where(weight > 0, mix(lower), np.uint64(0)), weight


# ---------------------------------------------------------------------------------------------------------
# The index
# ---------------------------------------------------------------------------------------------------------


@dataclass
class NgramIndex:
    """Which items hold which n-grams. An item all of whose texts are shorter than an n-gram is known by those of its
    texts that have at least `min_words` words, each taken whole.

    Attributes:
        sizes: (n, min_words, number of n-grams left out as boilerplate).
        ngrams: uint64, ascending: hashes of n-grams and of whole short texts.
        offsets, items: `items[offsets[i]:offsets[i + 1]]` are the numbers of the items that hold n-gram i.
        beginnings: uint64, ascending: hashes of the first `min_words` words of the short texts.
        lengths: the short texts' different numbers of words.
        totals: n-grams of each item.
        maybe: bool, by a hash's highest bits: whether any hash of the index begins so.
    """

    sizes: np.ndarray
    ngrams: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    beginnings: np.ndarray
    lengths: np.ndarray
    totals: np.ndarray
    maybe: np.ndarray

    @staticmethod
    def build(items: Iterable[Sequence[str]], n: int, min_words: int, max_items: int) -> "NgramIndex":
        """Index the texts of each item; an n-gram of more than `max_items` items is left out as boilerplate."""
        min_words = min(min_words, n)
        hashes, owners, beginnings, lengths = [], [], [], set()
        count = 0
        for batch in batches(items, 2**20, size=lambda texts: sum(map(len, texts))):
            words = split_words([text for texts in batch for text in texts])
            owner = np.repeat(np.arange(count, count + len(batch)), [len(texts) for texts in batch])
            count += len(batch)

            starts, stops = words.windows(n)
            hashes.append(words.hash_windows(starts, stops))
            owners.append(owner[words.text_of_word(starts)])

            heads, head_stops = words.windows(min_words)
            first = np.isin(heads, words.bounds[:-1]) & ~np.isin(owner[words.text_of_word(heads)], owners[-1])
            heads, head_stops = heads[first], head_stops[first]
            texts = words.text_of_word(heads)
            hashes.append(words.hash_windows(heads, words.bounds[texts + 1]))
            owners.append(owner[texts])
            beginnings.append(words.hash_windows(heads, head_stops))
            lengths.update((words.bounds[texts + 1] - heads).tolist())

        ngrams, owner = sorted_pairs(join(hashes, np.uint64), join(owners, np.int64))
        ngrams, firsts, counts = np.unique(ngrams, return_index=True, return_counts=True)
        kept = counts <= max_items
        ngrams, counts, firsts = ngrams[kept], counts[kept], firsts[kept]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        kept_items = owner[np.repeat(firsts - offsets[:-1], counts) + np.arange(offsets[-1])]
        starts = np.unique(join(beginnings, np.uint64))
        bits = min(27, max(16, (32 * len(ngrams)).bit_length()))
        maybe = np.zeros(1 << bits, dtype=bool)
        maybe[np.concatenate((ngrams, starts)) >> np.uint64(64 - bits)] = True
        return NgramIndex(
            sizes=np.array([n, min_words, np.count_nonzero(~kept)]),
            ngrams=ngrams,
            offsets=offsets,
            items=kept_items,
            beginnings=starts,
            lengths=np.array(sorted(lengths), dtype=np.int64),
            totals=np.bincount(kept_items, minlength=count),
            maybe=maybe,
        )

    def find(self, words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first word, word after the last, number of the n-gram) of each n-gram of the index in the texts, by text."""
        n, min_words, _ = self.sizes.tolist()
        starts, stops = words.windows(n)
        where, found = self._look_up(words.hash_windows(starts, stops), self.ngrams)
        hits = [(starts[where], stops[where], found)]
        if len(self.beginnings):
            starts, stops = words.windows(min_words)
            where, _ = self._look_up(words.hash_windows(starts, stops), self.beginnings)
            starts = starts[where]
            text_ends = words.bounds[words.text_of_word(starts) + 1]
            for length in self.lengths:
                begin = starts[starts + length <= text_ends]
                where, found = self._look_up(words.hash_windows(begin, begin + length), self.ngrams)
                hits.append((begin[where], begin[where] + length, found))
        starts, stops, found = (np.concatenate(part) for part in zip(*hits, strict=True))
        order = np.argsort(starts, kind="stable")
        return starts[order], stops[order], found[order]

    def items_of(self, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n-gram, item) pairs of some n-grams' numbers."""
        counts = self.offsets[ngrams + 1] - self.offsets[ngrams]
        skipped = np.cumsum(counts) - counts
        return np.repeat(ngrams, counts), self.items[
            np.repeat(self.offsets[ngrams] - skipped, counts) + np.arange(counts.sum())
        ]

    def _look_up(self, hashes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places in `hashes`, ascending, and in `table`) of the hashes that stand in the table."""
        shift = np.uint64(64 - (len(self.maybe).bit_length() - 1))
        where = np.flatnonzero(self.maybe[hashes >> shift])
        where = where[np.argsort(hashes[where])]  # a binary search for ascending values stays in the cache
        place = np.searchsorted(table, hashes[where])
        same = place < len(table)
        same[same] = table[place[same]] == hashes[where[same]]
        where, place = where[same], place[same]
        order = np.argsort(where)
        return where[order], place[order]

    def digest(self) -> str:
        """sha256 of the index."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write each array as a .npy file, which processes map into memory together."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @staticmethod
    def load(folder: Path) -> "NgramIndex":
        """An index that `save` wrote, memory-mapped."""
        # A plain array over the same memory: slicing np.memmap itself is slow.
        return NgramIndex(
            **{f.name: np.asarray(np.load(folder / f"{f.name}.npy", mmap_mode="r")) for f in fields(NgramIndex)}
        )


def batches(items: Iterable[T], characters: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in groups of about so many characters."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += size(item)
        if total > characters:
            yield group
            group, total = [], 0
    if group:
        yield group


def sorted_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers, ascending, each once."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[new], second[new]


def join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype=dtype)
