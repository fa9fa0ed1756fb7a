"""Token documents of a text source: blocks read, selected, tokenised ahead, and permuted."""

import os
import threading
from array import array
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source
from genesis_hf.data.blocks import Block, Position
from genesis_hf.data.prefetch import Background
from genesis_hf.data.readers import open_source
from genesis_hf.data.records import BadRecord
from genesis_hf.data.selection import Selection
from genesis_hf.tokenizer import encode_documents

READING = threading.Semaphore(4)
"""For threads that read records ahead."""

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
        self._ahead: tuple[Position, Background] | None = None  # the block asked for next
        self._read: tuple[Position, Background] | None = None  # the records of the one after it

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

    def _records(self, position: Position) -> Block:
        """Reads the records of a block, and begins with the next one's: reading has one thread, tokenising several."""
        before, self._read = self._read, None
        block = before[1].result() if before is not None else None  # waits even for a wrong guess, as `load` does
        if before is None or before[0] != position:
            block = self.reader.read_block(position, self.documents)
        if self.slots is not None and block.position is not None:
            self._read = (block.position, Background(READING, self.reader.read_block, block.position, self.documents))
        return block

    def _load(self, position: Position) -> TokenBlock:
        read = self._records(position)
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
        overlap = self.slots is not None and available_cores() > 1
        documents = token_documents(self.tokenizer, texts, overlap)
        return TokenBlock(documents, read.position, counts, read.bad)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def token_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str], overlap: bool = False) -> list[np.ndarray]:
    """Each text's int32 ids with EOS at the end.

    With `overlap`, one run of texts is tokenised while the ids of the one before are copied: the tokenizer has several
    threads, the copying one.
    """
    if not overlap:
        return [document for run in chunks(texts) for document in tokenised(tokenizer, run)]
    documents: list[np.ndarray] = []
    both, before = threading.Semaphore(2), None
    for run in chunks(texts):
        task = Background(both, tokenised, tokenizer, run)
        documents += before.result() if before else []
        before = task
    return documents + (before.result() if before else [])


def tokenised(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    documents = []
    for ids in encode_documents(tokenizer, texts):
        ids.append(tokenizer.eos_token_id)
        documents.append(np.frombuffer(array("i", ids), dtype=np.int32))  # a quarter faster than np.fromiter
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
