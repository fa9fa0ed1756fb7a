"""Blocks of documents: what every reader hands out.

`read_block(position, count)` gives the next documents and the position after them. The position is a small JSON value,
so a stream that keeps it can go on in a new process without reading from the start.

What can't be read is never raised: it stands in the block's `bad`, and reading goes on after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genesis_hf.config import Source
from genesis_hf.data.records import BadRecord, Extractor, Item

MAX_BLOCK_CHARACTERS = 16 * 2**20
"""A block ends after the document that passes this, so that a shuffle block of very long ones still fits in memory."""

Position = dict[str, Any]


@dataclass
class Block:
    """What stands between two positions of a source.

    Attributes:
        texts: documents that passed the filters, in the files' order; none is empty.
        position: where the next block begins; None after the last document. The last block may hold no texts.
        bad: what could not be read, in order.
        empty: documents of length 0.
        filtered: documents that `filters` left out.
    """

    texts: list[str]
    position: Position | None
    bad: list[BadRecord]
    empty: int = 0
    filtered: int = 0


class Reader(ABC):
    """Blocks of what `_open` gives; an iterator that stands at the position asked for is used again."""

    start: Position

    def __init__(self, source: Source) -> None:
        """Raises `UserError`: a template or filter that can't be understood."""
        self.source = source
        self.extract = Extractor(source)
        self._items: Iterator[Item] | None = None
        self._expected: Position | None = None

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with what the source reads."""

    @abstractmethod
    def _open(self, position: Position) -> Iterator[Item]:
        """Every record from a position on."""

    @abstractmethod
    def _position(self) -> Position:
        """Where the item after the one last taken stands."""

    def read_block(self, position: Position, count: int) -> Block:
        """The next `count` documents; fewer at the source's end, after very long ones and after `count` bad records."""
        if self._items is None or position != self._expected:
            self._items = self._open(position)
        block = Block([], None, [])
        characters = 0
        for item in self._items:
            if isinstance(item, BadRecord):
                block.bad.append(item)
            elif item is None:
                block.filtered += 1
            elif not item:
                block.empty += 1
            else:
                block.texts.append(item)
                characters += len(item)
            if len(block.texts) >= count or len(block.bad) >= count or characters >= MAX_BLOCK_CHARACTERS:
                block.position = self._expected = self._position()
                return block
        self._items = None
        return block
