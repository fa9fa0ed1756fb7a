"""Documents joined with EOS and cut into rows, each token used exactly once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genesis_hf.data.mixture import Mixture
from genesis_hf.modeling import IGNORE_INDEX


@dataclass
class Row:
    """One training row.

    Attributes:
        input_ids: (sequence_length,) int32.
        starts: positions in the row at which a document (or the rest of one) begins; the first is 0.
        fresh: for each of `starts`, whether the document begins there, rather than goes on from the row before.
        tokens_by_source: tokens of the row by source name.
    """

    input_ids: np.ndarray
    starts: list[int]
    fresh: list[bool]
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
    """Rows of a mixture. `state` is what the next row begins with: which document, and how far into it."""

    def __init__(self, mixture: Mixture, sequence_length: int, state: dict[str, Any] | None = None) -> None:
        self.mixture = mixture
        self.sequence_length = sequence_length
        self.state = state or {"source": None, "offset": 0}

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        state, length = self.state, self.sequence_length
        row = np.empty(length, dtype=np.int32)
        starts, fresh, by_source = [], [], {}
        filled = 0
        while filled < length:
            if state["source"] is None:
                state.update(source=self.mixture.choose(), offset=0)
            source = self.mixture.sources[state["source"]]
            document = source.current()
            part = document[state["offset"] : state["offset"] + length - filled]
            row[filled : filled + len(part)] = part
            starts.append(filled)
            fresh.append(state["offset"] == 0)
            filled += len(part)
            state["offset"] += len(part)
            source.state["tokens"] += len(part)
            by_source[source.source.name] = by_source.get(source.source.name, 0) + len(part)
            if state["offset"] == len(document):
                source.advance()
                state.update(source=None, offset=0)
        return Row(row, starts, fresh, by_source)
