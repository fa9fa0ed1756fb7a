"""Documents of a source, in the files' order, from any position.

A reader hands out blocks: `read_block(position, count)` gives the next documents and the position after them. The
position is a small JSON value, so a stream that keeps it can go on in a new process without reading from the start.
"""

import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.config import Source
from genesis_hf.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_BLOCK_CHARACTERS = 64 * 2**20
"""A block ends early here, so that a shuffle block of very long documents still fits in memory."""

Position = dict[str, Any]
Cursor = Iterator[tuple[str, Any]]
"""Yields a document and the position after it inside its file."""


def open_source(source: Source) -> "FileReader | HubReader":
    """The reader of a source.

    Raises:
        UserError: no file matches, a suffix that can't be read.
    """
    return FileReader(source) if source.paths is not None else HubReader(source)


def read_documents(source: Source) -> Iterator[str]:
    """Every document of a source once, in order."""
    reader = open_source(source)
    position = reader.start
    while position is not None:
        documents, position = reader.read_block(position, 256)
        yield from documents


class FileReader:
    """Local files: .txt and .md (a document a file), .jsonl (a line), .parquet and .arrow (a row)."""

    start: Position = {"file": 0, "inside": None}

    def __init__(self, source: Source) -> None:
        self.source = source
        self.files = expand(source)
        self._cursor: Cursor | None = None
        self._expected: Position | None = None

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes or first and last MiB."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{os.path.basename(path)}\0{os.path.getsize(path)}\0".encode())
            with open(path, "rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(0, os.path.getsize(path) - 2**20))
                digest.update(file.read())
        return digest.hexdigest()

    def read_block(self, position: Position, count: int) -> tuple[list[str], Position | None]:
        """Up to `count` documents from `position`, and the position after them; None after the last document."""
        if self._cursor is None or position != self._expected:
            self._cursor = self._open(position["file"], position["inside"])
        file, inside = position["file"], position["inside"]
        documents, characters = [], 0
        while len(documents) < count and characters < MAX_BLOCK_CHARACTERS:
            item = next(self._cursor, None)
            if item is not None:
                text, inside = item
                if text:
                    documents.append(text)
                    characters += len(text)
            elif file + 1 < len(self.files):
                file, inside = file + 1, None
                self._cursor = self._open(file, inside)
            else:
                self._cursor = None
                return documents, None
        self._expected = {"file": file, "inside": inside}
        return documents, self._expected

    def _open(self, file: int, inside: Any) -> Cursor:
        path = self.files[file]
        suffix = plain_suffix(path)
        if suffix in TEXT_SUFFIXES:
            return iterate_text(path, inside)
        if suffix == ".jsonl":
            return iterate_jsonl(path, self.source.text_column, inside)
        return iterate_table(path, self.source.text_column, inside)


class HubReader:
    """A Hub dataset through `datasets` streaming; its own state is the position."""

    start: Position = {}

    def __init__(self, source: Source) -> None:
        self.source = source
        self._rows: Iterator[dict[str, Any]] | None = None
        self._expected: Position | None = None

    @functools.cached_property
    def _dataset(self) -> Any:
        from datasets import load_dataset

        source = self.source
        try:
            return load_dataset(
                source.dataset, source.config, split=source.split, revision=source.revision, streaming=True
            )
        except Exception as error:  # the Hub client raises many kinds, all of them about the name or the network
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"source {source.name!r}: dataset {source.dataset!r} can't be opened ({reason})") from None

    def fingerprint(self) -> str:
        """Names what is asked of the Hub; name a `revision` to have it fixed."""
        source = self.source
        named = [source.dataset, source.config, source.split, source.revision]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def read_block(self, position: Position, count: int) -> tuple[list[str], Position | None]:
        """Up to `count` documents from `position`, and the position after them; None after the last document."""
        if self._rows is None or position != self._expected:
            # A dataset remembers how far it was read, so going elsewhere begins with a new one.
            self.__dict__.pop("_dataset", None)
            if position:
                self._dataset.load_state_dict(json.loads(json.dumps(position)))
            self._rows = iter(self._dataset)
        documents, characters = [], 0
        while len(documents) < count and characters < MAX_BLOCK_CHARACTERS:
            row = next(self._rows, None)
            if row is None:
                self._rows = None
                return documents, None
            text = text_of(row, self.source.text_column, f"dataset {self.source.dataset}")
            if text:
                documents.append(text)
                characters += len(text)
        self._expected = json.loads(json.dumps(self._dataset.state_dict()))
        return documents, self._expected


def expand(source: Source) -> list[str]:
    """The files a source's globs name, sorted, each once.

    Raises:
        UserError: a glob without a match, an unknown suffix.
    """
    files: set[str] = set()
    for pattern in source.paths:
        matches = [p for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p)]
        if not matches:
            raise UserError(f"source {source.name!r}: no file matches {pattern!r}")
        for path in matches:
            if plain_suffix(path) not in (*TEXT_SUFFIXES, ".jsonl", *TABLE_SUFFIXES):
                raise UserError(
                    f"source {source.name!r}: {path} is none of .txt .md .jsonl (.gz, .zst) .parquet .arrow"
                )
        files.update(matches)
    return sorted(files)


def plain_suffix(path: str) -> str:
    """`.jsonl` of `a.jsonl.gz`."""
    name = Path(path)
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def open_binary(path: str) -> Any:
    """A readable, seekable file of the uncompressed bytes."""
    compression = COMPRESSIONS.get(Path(path).suffix)
    try:
        return fsspec.open(path, "rb", compression=compression).open()
    except ValueError as error:
        raise UserError(f"{path}: {error}; pip install zstandard reads .zst") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def iterate_text(path: str, inside: Any) -> Cursor:
    if inside is not None:
        return
    with open_binary(path) as file:
        try:
            text = file.read().decode("utf-8")
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise UserError(f"{path}: not readable UTF-8 text ({error})") from None
    yield text, "read"


def iterate_jsonl(path: str, column: str, inside: Any) -> Cursor:
    inside = inside or {"byte": 0, "line": 0}
    with open_binary(path) as file:
        file.seek(inside["byte"])
        number, offset = inside["line"], inside["byte"]
        try:
            for line in file:
                number, offset = number + 1, offset + len(line)
                if line.strip():
                    where = f"{path}, line {number}"
                    yield (
                        text_of(parse_json(line, where), column, where),
                        {
                            "byte": offset,
                            "line": number,
                        },
                    )
        except (EOFError, OSError) as error:
            raise UserError(f"{path}, after line {number}: the file is cut or damaged ({error})") from None


def parse_json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def iterate_table(path: str, column: str, inside: Any) -> Cursor:
    row = inside or 0
    try:
        for start, batch in table_batches(path, column, row):
            for offset, text in enumerate(batch.to_pylist()):
                number = start + offset
                if number >= row:
                    yield text_of({column: text}, column, f"{path}, row {number}"), number + 1
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as {Path(path).suffix[1:]} ({reason})") from None


def table_batches(path: str, column: str, row: int) -> Iterator[tuple[int, pa.Array]]:
    """(number of the first row, values) of each batch that reaches `row` or beyond, whole groups skipped unread."""
    if plain_suffix(path) == ".parquet":
        with pq.ParquetFile(path) as file:
            need_column(file.schema_arrow.names, column, path)
            start = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if start + rows > row:
                    position = start
                    for batch in file.iter_batches(1024, row_groups=[group], columns=[column]):
                        if position + len(batch) > row:
                            yield position, batch.column(0)
                        position += len(batch)
                start += rows
        return
    with pa.memory_map(path) as mapped:
        try:
            reader = pa.ipc.open_stream(mapped)
            batches: Iterator[pa.RecordBatch] = iter(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        need_column(reader.schema.names, column, path)
        start = 0
        for batch in batches:
            if start + len(batch) > row:
                yield start, batch.column(column)
            start += len(batch)


def need_column(names: list[str], column: str, path: str) -> None:
    if column not in names:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(names)}; set text_column")


def text_of(row: Any, column: str, where: str) -> str:
    """The text of a record.

    Raises:
        UserError: no such key, a value that isn't text, a lone surrogate (no UTF-8 can hold it).
    """
    if not isinstance(row, dict) or column not in row:
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: no key {column!r} (found {keys}); set text_column")
    text = row[column]
    if not isinstance(text, str):
        raise UserError(f"{where}: {column!r} is {type(text).__name__}, not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {column!r} holds a lone surrogate, which is not text") from None
    return text
