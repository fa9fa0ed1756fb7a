"""Documents joined with EOS and cut into rows, each token used exactly once; rows permuted inside blocks."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from genesis_hf.data.mixture import Mixture, block_permutation
from genesis_hf.modeling import IGNORE_INDEX


@dataclass
class Row:
    """One training row.

    Attributes:
        input_ids: (sequence_length,) int32.
        starts: positions in the row at which a document (or the rest of one) begins; the first is 0.
        tokens_by_source: tokens of the row by source name.
    """

    input_ids: np.ndarray
    starts: list[int]
    tokens_by_source: dict[str, int]

    def position_ids(self) -> np.ndarray:
        """(sequence_length,) int64, restarting at 0 at each document."""
        positions = np.arange(len(self.input_ids))
        offsets = np.zeros_like(positions)
        offsets[self.starts] = np.diff([0, *self.starts])
        return positions - np.cumsum(offsets)

    def labels(self) -> np.ndarray:
        """(sequence_length,) int64, not shifted; the first token of each document can't be predicted."""
        labels = self.input_ids.astype(np.int64)
        labels[self.starts] = IGNORE_INDEX
        return labels


class Packer:
    """Rows of a mixture in the order of its documents."""

    def __init__(self, mixture: Mixture, sequence_length: int, state: dict[str, Any] | None = None) -> None:
        """
        Args:
            state: an earlier packer's `state()`, over a mixture whose sources were given theirs.
        """
        self.mixture = mixture
        self.sequence_length = sequence_length
        self.position = dict(state["position"]) if state else {"source": None, "offset": 0}

    def state(self) -> dict[str, Any]:
        """What the next row begins with: each source's next document, which source is open, and how far into it."""
        sources = {s.source.name: copy.deepcopy(s.state) for s in self.mixture.sources}
        return {"position": dict(self.position), "sources": sources}

    def __next__(self) -> Row:
        position, length = self.position, self.sequence_length
        row = np.empty(length, dtype=np.int32)
        starts, by_source = [], {}
        filled = 0
        while filled < length:
            if position["source"] is None:
                position.update(source=self.mixture.choose(), offset=0)
            source = self.mixture.sources[position["source"]]
            document = source.current()
            part = document[position["offset"] : position["offset"] + length - filled]
            row[filled : filled + len(part)] = part
            starts.append(filled)
            filled += len(part)
            position["offset"] += len(part)
            source.state["tokens"] += len(part)
            by_source[source.source.name] = by_source.get(source.source.name, 0) + len(part)
            if position["offset"] == len(document):
                source.advance()
                position.update(source=None, offset=0)
        return Row(row, starts, by_source)


class RowShuffle:
    """Rows of a packer, permuted inside blocks.

    A long document fills many rows in a row; without this, a small step would see little else. The state keeps where
    the packer stood when the block began, so going on means packing that one block again.
    """

    def __init__(self, packer: Packer, block_rows: int, seed: int, state: dict[str, Any] | None = None) -> None:
        """
        Args:
            block_rows: rows permuted together; 0 keeps the packer's order.
            state: an earlier shuffle's `state()`, over a packer that was given its `begin`.
        """
        self.packer = packer
        self.block_rows = block_rows
        self.seed = seed
        self.block, self.index = (state["block"], state["index"]) if state else (0, 0)
        self.begin = packer.state()
        self._rows: list[Row] = []

    def state(self) -> dict[str, Any]:
        return {"block": self.block, "index": self.index, "begin": self.begin}

    def __next__(self) -> Row:
        size = self.block_rows or 1
        if not self._rows:
            rows = [next(self.packer) for _ in range(size)]
            order = block_permutation(self.seed, "rows", 0, self.block, size)
            self._rows = [rows[i] for i in order]
        row = self._rows[self.index]
        self.index += 1
        if self.index == size:
            self.block, self.index, self.begin, self._rows = self.block + 1, 0, self.packer.state(), []
        return row
