"""Token documents of a text source: blocks read, selected, tokenised ahead, and permuted."""

import threading
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source
from genesis_hf.data.blocks import Position
from genesis_hf.data.prefetch import Background
from genesis_hf.data.readers import open_source
from genesis_hf.data.records import BadRecord
from genesis_hf.data.selection import Selection
from genesis_hf.tokenizer import encode_documents

ENCODE_CHARACTERS = 2**19
"""Text tokenised in one call: enough for the tokenizer's threads; its result takes some 430 bytes a token."""


@dataclass
class TokenBlock:
    """A block of a source's documents.

    Attributes:
        documents: int32 ids of each, EOS at its end, in the files' order.
        following: where the next block begins; None after the last document.
        counts: what came of the records: documents, empty, filtered, held_out, excluded, bad.
        bad: the records that could not be read.
    """

    documents: list[np.ndarray]
    following: Position | None
    counts: dict[str, int]
    bad: list[BadRecord] = field(default_factory=list)


class BlockLoader:
    """Reads and tokenises a source's blocks; with slots for threads, one block ahead of the one asked for."""

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        selection: Selection,
        documents: int,
        slots: threading.Semaphore | None = None,
    ) -> None:
        """
        Args:
            documents: records read for a block; it may hold fewer.
        """
        self.reader = open_source(source)
        self.tokenizer = tokenizer
        self.selection = selection
        self.documents = documents
        self.slots = slots
        self._ahead: tuple[Position, Background] | None = None

    def read_ahead(self, position: Position) -> None:
        """Begin with the block that will be asked for next."""
        if self.slots is not None:
            self._ahead = (position, Background(self.slots, self._load, position))

    def load(self, position: Position) -> TokenBlock:
        """The block that begins at a position.

        Raises:
            UserError: the Hub does not answer.
        """
        ahead, self._ahead = self._ahead, None
        block = ahead[1].result() if ahead is not None else None  # waits even for a wrong guess: one reader, one user
        if ahead is None or ahead[0] != position:
            block = self._load(position)
        if block.following is not None:
            self.read_ahead(block.following)
        return block

    def _load(self, position: Position) -> TokenBlock:
        read = self.reader.read_block(position, self.documents)
        uses = [self.selection.use(text) for text in read.texts]
        texts = [text for text, use in zip(read.texts, uses, strict=True) if use == "train"]
        counts = {
            "documents": len(texts),
            "empty": read.empty,
            "filtered": read.filtered,
            "held_out": uses.count("held_out"),
            "excluded": uses.count("excluded"),
            "bad": sum(record.count for record in read.bad),
        }
        return TokenBlock(token_documents(self.tokenizer, texts), read.position, counts, read.bad)


def token_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Each text's int32 ids with EOS at the end."""
    documents: list[np.ndarray] = []
    for chunk in chunks(texts):
        for ids in encode_documents(tokenizer, chunk):
            ids.append(tokenizer.eos_token_id)
            documents.append(np.fromiter(ids, dtype=np.int32, count=len(ids)))
    return documents


def chunks(texts: list[str]) -> list[list[str]]:
    """Runs of texts of about `ENCODE_CHARACTERS`."""
    runs: list[list[str]] = []
    room = 0
    for text in texts:
        if room <= 0:
            runs.append([])
            room = ENCODE_CHARACTERS
        runs[-1].append(text)
        room -= len(text)
    return runs
