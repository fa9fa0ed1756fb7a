"""Rows of the files and datasets that people bring, each with the place where it stands, in any order."""

import bisect
import glob
import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.config import ConversationSource
from genesis_hf.conversations.checks import Fault, Row
from genesis_hf.conversations.trees import grow_trees, is_message
from genesis_hf.data.readers import COMPRESSIONS, DAMAGE, HASHED_WHOLE, open_arrow, open_decompressed, plain_suffix
from genesis_hf.data.records import reason_of
from genesis_hf.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
NOT_JSON, NOT_UTF8, NOT_OBJECT = "not valid JSON", "not valid UTF-8", "a row that is not a JSON object"
BLOCK = 512
"""Rows of a table turned into objects at once when they are read in order."""


class Rows(Sequence):
    """The rows of a source: `rows[number]` is where one stands and what it holds.

    Raises:
        Fault: at a row that isn't one (not JSON, not an object); the others can be read.
    """

    def __init__(self, parts: "Sequence[Part]") -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        part, inside = self._find(number)
        row = part.row(inside)
        if not isinstance(row, dict):
            raise Fault(NOT_OBJECT)
        return part.where(inside), row

    def where(self, number: int) -> str:
        """File and line, or dataset and row, also of a row that can't be read."""
        part, inside = self._find(number)
        return part.where(inside)

    def _find(self, number: int) -> "tuple[Part, int]":
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        part = bisect.bisect_right(self.ends, number)
        return self.parts[part], number - (self.ends[part - 1] if part else 0)


def read_rows(source: ConversationSource) -> Rows:
    """Every row of a source; Open-Assistant's single messages become a row a tree.

    Raises:
        UserError: no such file, one that can't be read, not one row.
    """
    rows = Rows([HubRows(source)] if source.dataset is not None else [read_file(path) for path in files_of(source)])
    if not len(rows):
        raise UserError(f"source {source.name!r}: not one row in {', '.join(source.paths or [source.dataset])}")
    single_messages = source.format == "open_assistant_messages"
    if single_messages or (source.format == "auto" and all(is_message(row) for row in first_rows(rows))):
        return Rows([ListedRows(grow_trees((rows.where(i), row_or_fault(rows, i)) for i in range(len(rows))))])
    return rows


def row_or_fault(rows: Rows, number: int) -> Row | Fault:
    """A row, or what is wrong with it."""
    try:
        return rows[number][1]
    except Fault as fault:
        return fault


def first_rows(rows: Rows) -> list[Row]:
    """A few readable rows from the start; empty ones of no key where there are none."""
    read = (row_or_fault(rows, number) for number in range(min(len(rows), 100)))
    return list(islice((row for row in read if isinstance(row, dict)), 3)) or [{}]


def files_of(source: ConversationSource) -> list[str]:
    """The files that a source's globs name, sorted, each once.

    Raises:
        UserError: a glob without a match, a suffix that can't be read.
    """
    files: set[str] = set()
    for pattern in source.paths:
        matches = [path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path)]
        if not matches:
            raise UserError(f"source {source.name!r}: no file matches {pattern!r}")
        files.update(matches)
    for path in sorted(files):
        compressed_table = path.endswith(COMPRESSIONS) and plain_suffix(path) in (".parquet", ".arrow")
        if plain_suffix(path) not in SUFFIXES or compressed_table:
            raise UserError(f"source {source.name!r}: {path} is none of .jsonl .json (.gz, .zst) .parquet .arrow")
    return sorted(files)


def rows_fingerprint(source: ConversationSource) -> str:
    """Changes with the names, sizes and content of a source's files, or with its Hub dataset.

    Of files that are large together, each one's time of change and its first and last 64 KiB stand for its content.

    Raises:
        UserError: a file that can't be read.
    """
    if source.dataset is not None:
        return HubRows(source).rows._fingerprint
    digest, files = hashlib.sha256(), files_of(source)
    path = files[0]
    try:
        whole = sum(os.path.getsize(path) for path in files) <= HASHED_WHOLE
        for path in files:
            status = os.stat(path)
            digest.update(f"{os.path.basename(path)}\0{status.st_size}\0".encode())
            with open(path, "rb") as file:
                if whole:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                    continue
                digest.update(f"{status.st_mtime_ns}\0".encode() + file.read(2**16))
                file.seek(max(0, status.st_size - 2**16))
                digest.update(file.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Files and datasets
# ---------------------------------------------------------------------------------------------------------


class Part(ABC):
    """Rows of one file or dataset."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, number: int) -> Any:
        """What the row holds; `Fault` if it can't be read."""

    @abstractmethod
    def where(self, number: int) -> str:
        """The place of a row, for people."""


def read_file(path: str) -> Part:
    """The rows of a file by its suffix; a .json file holds a list of them, or one in each line.

    Raises:
        UserError: a file that is damaged or holds something else.
    """
    try:
        if plain_suffix(path) in (".parquet", ".arrow"):
            return TableRows(path)
        if plain_suffix(path) == ".json":
            with open_decompressed(path) as file:
                if first_byte(file) == b"[":
                    return ListedRows.of(path, json.load(io.TextIOWrapper(file, encoding="utf-8-sig")))
            lines = JsonLines(path)
            try:
                lines.row(0) if len(lines) else None
            except Fault:
                raise UserError(f"{path}: neither a JSON list of rows nor a row in each line") from None
            return lines
        return JsonLines(path)
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({reason_of(error)})") from None


def first_byte(file: BinaryIO) -> bytes:
    """The first byte that is no space; the file stands at its start again."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return head[:1]


class JsonLines(Part):
    """A row a line: where the lines begin is kept, not what they hold. A compressed file is held unpacked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.unpacked: bytes | None = None
        if path.endswith(COMPRESSIONS):
            with open_decompressed(path) as file:
                self.unpacked = file.read()
        self.starts, self.lines = array("Q", [0]), array("Q")
        with io.BytesIO(self.unpacked) if self.unpacked is not None else open(path, "rb") as file:
            for line in file:
                if not line.isspace():
                    self.lines.append(len(self.starts))
                self.starts.append(self.starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, number: int) -> Any:
        line = self.lines[number]
        start, end = self.starts[line - 1], self.starts[line]
        if self.unpacked is not None:
            content = self.unpacked[start:end]
        else:
            with open(self.path, "rb", buffering=0) as file:
                content = os.pread(file.fileno(), end - start, start)
        try:
            return json.loads(content)
        except UnicodeDecodeError:
            raise Fault(NOT_UTF8) from None
        except (ValueError, RecursionError):
            raise Fault(NOT_JSON) from None

    def where(self, number: int) -> str:
        return f"{self.path}, line {self.lines[number]}"


class ListedRows(Part):
    """Rows that are in memory, with their places; a `Fault` among them is raised when it is read."""

    def __init__(self, rows: Sequence[tuple[str, Any]]) -> None:
        self.rows = rows

    @classmethod
    def of(cls, path: str, rows: list[Any]) -> "ListedRows":
        """The items of a JSON list."""
        return cls([(f"{path}, item {number}", row) for number, row in enumerate(rows, 1)])

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Any:
        row = self.rows[number][1]
        if isinstance(row, Fault):
            raise row
        return row

    def where(self, number: int) -> str:
        return self.rows[number][0]


class TableRows(Part):
    """Rows of a Parquet or Arrow file, kept as columns; a row becomes an object when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        if plain_suffix(path) == ".parquet":
            table = pq.read_table(path)
        else:
            with open_arrow(pa.memory_map(path)) as reader:
                table = reader.read_all()
        self.batches = table.to_batches()
        self.ends = list(accumulate(len(batch) for batch in self.batches))
        self.block: tuple[int, list[Row]] = (0, [])

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, number: int) -> Any:
        first, rows = self.block
        if first <= number < first + len(rows):
            return rows[number - first]
        size = BLOCK if number == first + len(rows) else 1
        part = bisect.bisect_right(self.ends, number)
        inside = number - (self.ends[part - 1] if part else 0)
        try:
            rows = self.batches[part].slice(inside, size).to_pylist()
        except UnicodeDecodeError:
            try:
                rows = self.batches[part].slice(inside, 1).to_pylist()
            except UnicodeDecodeError:
                raise Fault(NOT_UTF8) from None
        self.block = (number, rows)
        return rows[0]

    def where(self, number: int) -> str:
        return f"{self.path}, row {number + 1}"


class HubRows(Part):
    """Rows of a Hub dataset, read when they are asked for."""

    def __init__(self, source: ConversationSource) -> None:
        from datasets import load_dataset

        self.name = source.dataset
        try:
            self.rows = load_dataset(
                source.dataset,
                source.config,
                data_dir=source.data_dir,
                split=source.split,
                revision=source.revision,
            )
        except Exception as error:  # the Hub client raises many kinds, all of them about the name or the network
            raise UserError(
                f"source {source.name!r}: dataset {source.dataset!r} can't be opened ({reason_of(error)})"
            ) from None

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> Any:
        return self.rows[number]

    def where(self, number: int) -> str:
        return f"{self.name}, row {number + 1}"
