"""The training rows of one source: documents joined with EOS and cut, or whole documents packed where they fit.

`TextRows` makes them from text as it goes, `PreparedRows` from token shards. Both hand out one row after the other and
keep in `state`, a small JSON value, where the next one begins.
"""

import copy
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source
from genesis_hf.data.documents import BlockLoader, TokenBlock
from genesis_hf.data.order import IndexPermutation, block_permutation
from genesis_hf.data.prepared import PreparedTokens
from genesis_hf.data.records import BadRecord
from genesis_hf.data.selection import Selection
from genesis_hf.errors import UserError

Packing = Literal["concatenate", "best_fit"]
BLOCK_DOCUMENTS = 1024
"""Documents of a block (or of a best-fit window) where they are not permuted."""
PLANNED_ROWS = 4096
"""Rows of token shards looked up at once: numpy's cost of a call is shared by so many."""


@dataclass(slots=True)
class Row:
    """One training row, all of one source.

    Attributes:
        source: its name.
        epoch: the pass over the source that the row begins in; 0 is the first.
        last_epoch: the one it ends in: a row may hold an epoch's last tokens and the next one's first.
        length: its tokens; what is missing to the sequence length is padding.
        starts: positions at which a document (or the rest of one) begins, the first is 0; (documents,) int64.
        read: writes the ids into an integer array of `length`.
    """

    source: str
    epoch: int
    last_epoch: int
    length: int
    starts: np.ndarray
    read: Callable[[np.ndarray], object]


def row_of_parts(source: str, parts: Sequence[np.ndarray], epoch: int = 0, last_epoch: int = 0) -> Row:
    """A row of documents' ids that are in memory."""
    lengths = [len(part) for part in parts]
    return Row(source, epoch, last_epoch, sum(lengths), starts_of(lengths), partial(join, parts))


def starts_of(lengths: Sequence[int]) -> np.ndarray:
    """Where the parts of a row begin."""
    return np.array([0, *itertools.accumulate(lengths[:-1])], dtype=np.int64)


def is_over(epoch: int, max_epochs: int | None) -> bool:
    """Whether no pass is left; a state may be past a limit that was lowered."""
    return max_epochs is not None and epoch >= max_epochs


def join(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
    np.concatenate(parts, out=out, casting="unsafe")


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


class TextRows:
    """Rows of a text source, epoch after epoch until `max_epochs`; `seed` may change between two rows.

    Documents are permuted in blocks of `shuffle_block`; an open block keeps the seed that it was opened with.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        *,
        packing: Packing,
        shuffle_block: int,
        max_epochs: int | None,
        selection: Selection,
        seed: int,
        slots: threading.Semaphore | None = None,
        on_bad: Callable[[str, list[BadRecord]], None] = lambda name, records: None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            slots: for threads that read and tokenise ahead; None reads when it is asked.
            on_bad: told the source's name and the unreadable records of each block that is opened.
            state: an earlier instance's, over the same data.
        """
        self.source = source
        self.loader = BlockLoader(source, tokenizer, selection, shuffle_block or BLOCK_DOCUMENTS, slots)
        self.sequence_length = sequence_length
        self.packing = packing
        self.permuted = shuffle_block > 0
        self.max_epochs = max_epochs
        self.seed = seed
        self.on_bad = on_bad
        beginning = {
            "epoch": 0,
            "block": 0,
            "position": self.loader.reader.start,
            "seed": None,  # of the open block
            "next": 0,  # document of the open block (concatenate) or row of it (best_fit) that comes next …
            "offset": 0,  # … and how far into the document
            "before": {"documents": 0, "tokens": 0},  # of this epoch, in the blocks before the open one
            "counts": {},
        }
        self.state = copy.deepcopy(state) if state else beginning
        self.loader.read_ahead(self.state["position"])
        self._documents: list[np.ndarray] | None = None
        self._bins: list[list[tuple[int, int, int]]] = []
        self._following: Any = None

    def fingerprint(self) -> str:
        """Changes with the data and what is read of it."""
        return self.loader.reader.fingerprint()

    def take(self) -> Row | None:
        """The next row; None when the source is dry."""
        return self._concatenated() if self.packing == "concatenate" else self._fitted()

    def _concatenated(self) -> Row | None:
        state, length = self.state, self.sequence_length
        parts: list[np.ndarray] = []
        epochs: list[int] = []
        filled = 0
        while filled < length and self._ready():
            document = self._documents[state["next"]]
            part = document[state["offset"] : state["offset"] + length - filled]
            parts.append(part)
            epochs.append(state["epoch"])
            filled += len(part)
            state["offset"] += len(part)
            if state["offset"] == len(document):
                state.update(next=state["next"] + 1, offset=0)
        return row_of_parts(self.source.name, parts, epochs[0], epochs[-1]) if parts else None

    def _fitted(self) -> Row | None:
        if not self._ready():
            return None
        pieces = self._bins[self.state["next"]]
        self.state["next"] += 1
        parts = [self._documents[index][start:stop] for index, start, stop in pieces]
        return row_of_parts(self.source.name, parts, self.state["epoch"], self.state["epoch"])

    def _ready(self) -> bool:
        """Open the block that `state` points into; False when the source is dry."""
        while self._documents is None or self.state["next"] >= self._units():
            if self._documents is not None:
                self._close_block()
            if is_over(self.state["epoch"], self.max_epochs):
                return False
            self._open_block()
        return True

    def _units(self) -> int:
        return len(self._documents if self.packing == "concatenate" else self._bins)

    def _open_block(self) -> None:
        state = self.state
        block = self.loader.load(state["position"])
        documents, ended = self._capped(block.documents)
        self._following = None if ended else block.following
        first_opened = state["seed"] is None
        if first_opened:
            state["seed"] = self.seed
        if self.permuted:
            order = block_permutation(len(documents), state["seed"], self.source.name, state["epoch"], state["block"])
            documents = [documents[i] for i in order]
        if self.packing == "best_fit":
            self._bins = best_fit([len(document) for document in documents], self.sequence_length)
        self._documents = documents
        # In other data that was accepted, the place may lie beyond its document's end, or the block's (`_ready`).
        if state["next"] < len(documents) and state["offset"] >= len(documents[state["next"]]):
            state.update(next=state["next"] + 1, offset=0)
        if first_opened:
            self._count(block)

    def _capped(self, documents: list[np.ndarray]) -> tuple[list[np.ndarray], bool]:
        """The block's documents up to the source's caps, and whether they end the epoch."""
        source, before = self.source, self.state["before"]
        if source.max_documents is not None and before["documents"] + len(documents) >= source.max_documents:
            return documents[: max(0, source.max_documents - before["documents"])], True
        if source.max_tokens is not None:
            ends = before["tokens"] + np.cumsum([len(document) for document in documents])
            if len(ends) and ends[-1] >= source.max_tokens:
                return documents[: int(np.searchsorted(ends, source.max_tokens)) + 1], True
        return documents, False

    def _count(self, block: TokenBlock) -> None:
        packed = {}
        if self.packing == "best_fit":
            packed = packed_counts([len(d) for d in self._documents], len(self._bins), self.sequence_length)
        counts = self.state["counts"]
        for kind, number in {**block.counts, **packed}.items():
            counts[kind] = counts.get(kind, 0) + number
        if block.bad:
            self.on_bad(self.source.name, block.bad)

    def _close_block(self) -> None:
        state, before = self.state, self.state["before"]
        before["documents"] += len(self._documents)
        before["tokens"] += sum(len(document) for document in self._documents)
        if self._following is not None:
            state.update(block=state["block"] + 1, position=self._following)
        else:
            if before["documents"] == 0:
                raise UserError(f"source {self.source.name!r}: no document to train on ({found(state['counts'])})")
            state.update(
                epoch=state["epoch"] + 1,
                block=0,
                position=self.loader.reader.start,
                before={"documents": 0, "tokens": 0},
            )
        state.update(next=0, offset=0, seed=None)
        self._documents = None


def found(counts: dict[str, int]) -> str:
    """`3 empty, 2 filtered`"""
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.items() if number) or "nothing in its files"


# ---------------------------------------------------------------------------------------------------------
# Token shards
# ---------------------------------------------------------------------------------------------------------


class PreparedRows:
    """Rows of token shards, epoch after epoch until `max_epochs`; `seed` may change between two rows.

    Rows (best_fit: windows of documents) are permuted over the whole index; an epoch keeps the seed that it began with.
    Documents joined epoch after epoch are one endless sequence of tokens, row r its tokens from r × length on; a row
    belongs to the epoch that it begins in.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        *,
        packing: Packing,
        shuffle_block: int,
        max_epochs: int | None,
        selection: Selection,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            state: an earlier instance's, over the same shards.

        Raises:
            UserError: not a folder of token shards, nothing in it, made with another tokenizer or selection.
        """
        self.source = source
        self.tokens = PreparedTokens(source.prepared)
        self.tokens.check(tokenizer, selection)
        self.sequence_length = sequence_length
        self.packing = packing
        self.window = shuffle_block or BLOCK_DOCUMENTS
        self.permuted = shuffle_block > 0
        self.max_epochs = max_epochs
        self.seed = seed
        documents = min(self.tokens.num_documents, source.max_documents or self.tokens.num_documents)
        if source.max_tokens is not None:
            reaching = int(np.searchsorted(self.tokens.ends, np.uint64(source.max_tokens)))
            documents = min(documents, reaching + 1)
        if documents == 0:
            raise UserError(f"source {source.name!r}: {source.prepared} holds no document to train on")
        self.ends = self.tokens.ends[:documents]
        self.num_tokens = int(self.ends[-1])
        self.state = copy.deepcopy(state) if state else {"epoch": 0, "next": 0, "row": 0, "seed": None, "counts": {}}
        self._plan: Iterator[Row] = iter(())  # the rows from `state["next"]` on that were looked up together
        self._bins: list[list[tuple[int, int, int]]] = []

    def fingerprint(self) -> str:
        return self.tokens.fingerprint

    def take(self) -> Row | None:
        """The next row; None when the source is dry."""
        return self._concatenated() if self.packing == "concatenate" else self._fitted()

    # ------------------------------------------------------------------------------------- concatenate

    def _concatenated(self) -> Row | None:
        state = self.state
        while (row := next(self._plan, None)) is None:
            if is_over(state["epoch"], self.max_epochs):
                return None
            first, stop = self._rows_of(state["epoch"])
            if state["next"] >= stop - first:
                state.update(epoch=state["epoch"] + 1, next=0, seed=None)
            else:
                self._plan = self._planned(first, stop - first)
        state["next"] += 1
        return row

    def _rows_of(self, epoch: int) -> tuple[int, int]:
        """First row that begins in an epoch, and the first that begins after it."""
        length = self.sequence_length
        return -(-epoch * self.num_tokens // length), -(-(epoch + 1) * self.num_tokens // length)

    def _planned(self, first: int, size: int) -> Iterator[Row]:
        """The next rows of the epoch, at most `PLANNED_ROWS`, looked up at once and made one by one."""
        state, length, total = self.state, self.sequence_length, self.num_tokens
        if state["seed"] is None:
            state["seed"] = self.seed
        numbers = np.arange(state["next"], min(size, state["next"] + PLANNED_ROWS))
        if self.permuted:
            # The row that goes on into the next epoch stays the last.
            whole = size - ((first + size) * length > (state["epoch"] + 1) * total)
            inside = numbers < whole
            order = IndexPermutation(whole, state["seed"], self.source.name, state["epoch"])
            numbers[inside] = order(numbers[inside])
        begins = (first + numbers) * length - state["epoch"] * total
        # Documents that end inside each row: all their ends in one array, of which each row has a part.
        low = np.searchsorted(self.ends, begins.astype(np.uint64), side="right")
        high = np.searchsorted(self.ends, (begins + length).astype(np.uint64), side="left")
        documents = high - low + 1
        parts = np.concatenate([[0], np.cumsum(documents)])
        ends = np.arange(parts[-1]) + np.repeat(low - 1 - parts[:-1], documents)
        starts = self.ends[ends].astype(np.int64) - np.repeat(begins, documents)
        starts[parts[:-1]] = 0
        name, epoch, parts = self.source.name, state["epoch"], parts.tolist()
        for number, begin in enumerate(begins.tolist()):
            if begin + length > total:
                yield self._over_the_end(begin)
                continue
            read = partial(self.tokens.read, begin, begin + length)
            yield Row(name, epoch, epoch, length, starts[parts[number] : parts[number + 1]], read)

    def _over_the_end(self, begin: int) -> Row:
        """The row that holds an epoch's last tokens and the next one's first."""
        parts, filled, epoch = [], 0, self.state["epoch"]
        while filled < self.sequence_length and epoch != self.max_epochs:
            stop = min(self.num_tokens, begin + self.sequence_length - filled)
            ids = np.empty(stop - begin, dtype=np.int32)
            self.tokens.read(begin, stop, ids)
            i, j = np.searchsorted(self.ends, np.array([begin, stop], dtype=np.uint64), side="right").tolist()
            cuts = self.ends[i:j].astype(np.int64) - begin
            parts += [part for part in np.split(ids, cuts) if len(part)]
            filled += stop - begin
            begin = 0
            epoch += stop == self.num_tokens
        last_epoch = epoch - (stop == self.num_tokens)
        return row_of_parts(self.source.name, parts, self.state["epoch"], last_epoch)

    # ---------------------------------------------------------------------------------------- best_fit

    def _fitted(self) -> Row | None:
        state = self.state
        windows = -(-len(self.ends) // self.window)
        while not self._bins or state["row"] >= len(self._bins):
            if self._bins:
                state.update(next=state["next"] + 1, row=0)
            if state["next"] >= windows:
                state.update(epoch=state["epoch"] + 1, next=0, row=0, seed=None)
            if is_over(state["epoch"], self.max_epochs):
                return None
            self._open_window(windows)
        segments = [(start, stop) for _, start, stop in self._bins[state["row"]]]
        state["row"] += 1
        lengths = [stop - start for start, stop in segments]
        read, epoch = partial(self._read, segments), state["epoch"]
        return Row(self.source.name, epoch, epoch, sum(lengths), starts_of(lengths), read)

    def _open_window(self, windows: int) -> None:
        state = self.state
        if state["seed"] is None:
            state["seed"] = self.seed
        number = state["next"]
        if self.permuted:
            order = IndexPermutation(windows, state["seed"], self.source.name, state["epoch"])
            number = int(order(np.array([number]))[0])
        first = number * self.window
        ends = self.ends[first : first + self.window].astype(np.int64)
        begins = np.concatenate([[self.ends[first - 1] if first else 0], ends[:-1]]).astype(np.int64)
        lengths = (ends - begins).tolist()
        bins = best_fit(lengths, self.sequence_length)
        if state["row"] == 0:
            for kind, count in packed_counts(lengths, len(bins), self.sequence_length).items():
                state["counts"][kind] = state["counts"].get(kind, 0) + count
        self._bins = [[(i, int(begins[i]) + start, int(begins[i]) + stop) for i, start, stop in row] for row in bins]

    def _read(self, segments: list[tuple[int, int]], out: np.ndarray) -> None:
        filled = 0
        for start, stop in segments:
            self.tokens.read(start, stop, out[filled : filled + stop - start])
            filled += stop - start


# ---------------------------------------------------------------------------------------------------------
# Best fit
# ---------------------------------------------------------------------------------------------------------


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    """Best-fit decreasing: the longest piece first, each into the fullest row that still holds it.

    A document longer than a row gives rows of its own and a rest, which is packed like the others (Ding et al. 2024,
    "Fewer truncations improve language modeling").

    Returns:
        rows of pieces (document, start, stop); each token of each document is in exactly one.
    """
    rows: list[list[tuple[int, int, int]]] = []
    rests: list[tuple[int, int, int]] = []
    for document, length in enumerate(lengths):
        full = length - length % capacity
        rows += [[(document, start, start + capacity)] for start in range(0, full, capacity)]
        if full < length:
            rests.append((document, full, length))
    rests.sort(key=lambda piece: piece[1] - piece[2])  # stable: equal lengths stay in order
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # by free tokens: rows, as a heap
    sizes = 0  # bit n: room[n] holds a row
    for piece in rests:
        length = piece[2] - piece[1]
        fitting = sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = heapq.heappop(room[free])
            if not room[free]:
                sizes &= ~(1 << free)
        else:
            rows.append([])
            free, row = capacity, len(rows) - 1
        rows[row].append(piece)
        heapq.heappush(room[free - length], row)
        sizes |= 1 << (free - length)
    return rows


def packed_counts(lengths: Sequence[int], rows: int, capacity: int) -> dict[str, int]:
    """Documents, those of them that no row holds whole, rows, and tokens of padding in these."""
    return {
        "packed": len(lengths),
        "truncated": sum(length > capacity for length in lengths),
        "rows": rows,
        "padding": rows * capacity - sum(lengths),
    }
