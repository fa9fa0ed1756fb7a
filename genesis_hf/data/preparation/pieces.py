"""Tokenising one part of a source into pieces, each complete or absent, so that a killed run goes on after the last.

A part is what one worker does: an input file, a run of small ones, or a shard of a Hub dataset. Its pieces follow from
the part and the recipe alone, never from when the run was interrupted or who else is at work.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source, write_text
from genesis_hf.data.blocks import Block, Position, Reader
from genesis_hf.data.documents import token_documents
from genesis_hf.data.hub import HubReader
from genesis_hf.data.prepared import TOKEN_DTYPES
from genesis_hf.data.readers import open_source
from genesis_hf.data.records import BadRecord
from genesis_hf.data.selection import Selection, document_hash
from genesis_hf.errors import UserError
from genesis_hf.files import read_json

READ_DOCUMENTS = 256
"""Documents read and tokenised at a time: some MB of text."""

COUNTS = ("documents", "tokens", "text_bytes", "empty", "filtered", "held_out", "excluded", "bad")
"""What is counted of a piece and of a source: `documents`, `tokens` and `text_bytes` of what may be trained on."""

Counts = dict[str, int]
Piece = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What one worker does: some of a source's input, tokenised into the source's folder.

    Attributes:
        source: the source with this part's files alone; the whole source with a Hub dataset.
        folder: of the source's token shards.
        number: of the part, in the source's order.
        text_bytes: of text in it, a guess.
        hub_shards: how many shards the Hub dataset has; this part is shard `number`.
    """

    source: Source
    folder: Path
    number: int
    text_bytes: int
    hub_shards: int = 0

    def open(self) -> Reader:
        """The reader of this part's documents."""
        return HubShard(self.source, self.hub_shards, self.number) if self.hub_shards else open_source(self.source)

    def name(self, piece: int) -> str:
        return f"{self.number:05d}-{piece:05d}"

    def label(self) -> str:
        """For people."""
        if self.hub_shards:
            return f"dataset {self.source.dataset}, shard {self.number}"
        more = len(self.source.paths) - 1
        return self.source.paths[0] + (f" and {more} more" if more else "")

    def where(self, record: BadRecord) -> str:
        """A Hub dataset's rows are counted in each shard."""
        return f"{record.where} of shard {self.number}" if self.hub_shards else record.where

    def has_enough(self, counts: Counts) -> bool:
        """Whether no more of it can be used in an epoch."""
        caps = ((self.source.max_documents, "documents"), (self.source.max_tokens, "tokens"))
        return any(cap is not None and counts[key] >= cap for cap, key in caps)


class HubShard(HubReader):
    """One shard of a Hub dataset: most often one of its files."""

    def __init__(self, source: Source, num_shards: int, index: int) -> None:
        super().__init__(source)
        self._num_shards, self._index = num_shards, index

    def _load(self) -> Any:
        return super()._load().shard(num_shards=self._num_shards, index=self._index)


def hub_shards(source: Source) -> dict[str, Any]:
    """The `commit` of a Hub dataset (None for a folder) and how many `shards` it has there.

    Raises:
        UserError: as `HubReader.read_block`, which waits for a Hub that doesn't answer.
    """
    reader = HubReader(source)
    reader.read_block(reader.start, 1)
    return {"commit": reader._commit, "shards": reader._dataset.num_shards}


@dataclass(frozen=True)
class Rules:
    """What documents become tokens, and how: the same for each part.

    Attributes:
        shard_tokens: a piece ends before the block of documents that would bring it above so many.
    """

    selection: Selection
    dtype: str
    shard_tokens: int
    max_bad_records: int


def prepare_part(
    part: Part,
    rules: Rules,
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Tokenise what is not finished of a part.

    Args:
        report: called with the counts of each block of documents.

    Returns:
        counts of the whole part.

    Raises:
        UserError: the part's files have changed since its first piece, or too many records can't be read.
    """
    with one_process(part.folder / "pieces" / f"{part.number:05d}.lock"):
        if (part.folder / "index.json").exists():  # another process has finished the source meanwhile
            return add_counts([])
        reader = part.open()
        fingerprint = reader.fingerprint()
        pieces = finished_pieces(part)
        if pieces and pieces[0]["fingerprint"] != fingerprint:
            raise UserError(
                f"{part.label()} has changed since its first piece was written; restore it, or remove {part.folder} "
                "to prepare the source afresh"
            )
        counts = add_counts(piece["counts"] for piece in pieces)
        position = pieces[-1]["position"] if pieces else reader.start
        number = len(pieces)
        writer: PieceWriter | None = None
        while position is not None:
            block = reader.read_block(position, READ_DOCUMENTS)
            tokenised = tokenise(block, tokenizer, rules.selection)
            counts = add_counts([counts, tokenised.counts])
            if counts["bad"] > rules.max_bad_records:
                last = block.bad[-1]
                raise too_many_bad(f"{part.where(last)}: {last.reason}", counts["bad"], rules.max_bad_records)
            if writer and writer.counts["tokens"] + tokenised.counts["tokens"] > rules.shard_tokens:
                writer.finish(position)
                writer, number = None, number + 1
            writer = writer or PieceWriter(part, number, rules.dtype, fingerprint)
            writer.add(tokenised)
            writer.bad += [{"where": part.where(r), "reason": r.reason, "count": r.count} for r in block.bad]
            report(tokenised.counts)
            position = None if part.has_enough(counts) else block.position
        if writer:
            writer.finish(None)
        return counts


@dataclass
class Tokenised:
    """A block after selection: int32 ids and hash of each document to train on, the texts held out, counts."""

    documents: list[np.ndarray]
    hashes: list[int]
    held_out: list[str]
    counts: Counts


def tokenise(block: Block, tokenizer: PreTrainedTokenizerFast, selection: Selection) -> Tokenised:
    """Sort a block's documents by their use and encode those to train on."""
    texts: dict[str, list[str]] = {"train": [], "held_out": [], "excluded": []}
    hashes = []
    for text in block.texts:
        value = document_hash(text)
        use = selection.use_of_hash(value)
        texts[use].append(text)
        if use == "train":
            hashes.append(value)
    documents = token_documents(tokenizer, texts["train"])
    counts = {
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "text_bytes": sum(len(text.encode()) for text in texts["train"]),
        "empty": block.empty,
        "filtered": block.filtered,
        "held_out": len(texts["held_out"]),
        "excluded": len(texts["excluded"]),
        "bad": sum(record.count for record in block.bad),
    }
    return Tokenised(documents, hashes, texts["held_out"], counts)


class PieceWriter:
    """Writes a piece's files beside; `finish` gives them their names, and last of all writes the JSON that makes the
    piece count."""

    def __init__(self, part: Part, number: int, dtype: str, fingerprint: str) -> None:
        self.folder, self.name = part.folder, part.name(number)
        self.dtype, self.fingerprint = TOKEN_DTYPES[dtype], fingerprint
        self.tokens = HashedFile(self.folder, f"{self.name}.bin")
        self.held_out = HashedFile(self.folder, f"pieces/{self.name}.held_out.jsonl")
        self.lengths: list[int] = []
        self.hashes: list[int] = []
        self.bad: list[dict[str, Any]] = []
        self.counts: Counts = add_counts([])

    def add(self, block: Tokenised) -> None:
        if block.documents:
            self.tokens.write(np.concatenate(block.documents).astype(self.dtype).tobytes())
        self.held_out.write(json_lines({"text": text} for text in block.held_out))
        self.lengths += map(len, block.documents)
        self.hashes += block.hashes
        self.counts = add_counts([self.counts, block.counts])

    def finish(self, position: Position | None) -> None:
        """Complete the piece.

        Args:
            position: where the part's next piece begins; None after the last one.
        """
        documents = HashedFile(self.folder, f"pieces/{self.name}.documents")
        documents.write(np.array([self.lengths, self.hashes], dtype="<u8").tobytes())
        piece = {
            "fingerprint": self.fingerprint,
            "position": position,
            "counts": self.counts,
            "bad": self.bad,
            "files": {file.name: file.finish() for file in (self.tokens, self.held_out, documents)},
        }
        write_text(self.folder / "pieces" / f"{self.name}.json", json.dumps(piece) + "\n")


def finished_pieces(part: Part) -> list[Piece]:
    """The part's pieces that are complete, up to the first that isn't; `position` is None in the part's last one."""
    pieces: list[Piece] = []
    while not pieces or pieces[-1]["position"] is not None:
        piece = read_json(part.folder / "pieces" / f"{part.name(len(pieces))}.json")
        if not piece or not all(has_size(part.folder / name, file["bytes"]) for name, file in piece["files"].items()):
            break
        pieces.append(piece)
    return pieces


def is_finished(pieces: list[Piece]) -> bool:
    """Whether a part's pieces reach its end."""
    return bool(pieces) and pieces[-1]["position"] is None


class HashedFile:
    """A file of a source's folder, written beside and hashed on the way; `finish` makes it durable and names it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name
        self._beside = folder / "pieces" / f"{self._path.name}.tmp"
        self._beside.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._beside, "wb")  # noqa: SIM115 - open until `finish`
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def finish(self) -> dict[str, Any]:
        """Its `bytes` and `sha256`."""
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._beside, self._path)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def add_counts(parts: Iterable[Counts]) -> Counts:
    """The sum of counts; every key is there."""
    parts = list(parts)
    return {key: sum(counts[key] for counts in parts) for key in COUNTS}


def too_many_bad(last: str, bad: int, limit: int) -> UserError:
    return UserError(
        f"{last}; that makes {bad:,} unreadable records, more than max_bad_records ({limit:,}): mend "
        "them or allow more; the same command goes on from the last finished piece"
    )


def json_lines(values: Iterable[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Hold a lock, so that runs in the same folder wait for each other, and for the last breath of one just killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"{path} cannot be locked ({error.strerror}); prepare on another file system") from None
        yield
