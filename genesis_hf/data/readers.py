"""Documents of a source, in the files' order, from any position: of local files here, of the Hub in `hub`."""

import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.config import Source
from genesis_hf.data.blocks import Position, Reader
from genesis_hf.data.hub import HubReader
from genesis_hf.data.records import BadRecord, Extractor, Item, reason_of
from genesis_hf.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")

DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading a cut or damaged file raises."""


def open_source(source: Source) -> Reader:
    """The reader of a source.

    Raises:
        UserError: no file matches, a suffix that can't be read, a template or filter that can't be understood.
    """
    return FileReader(source) if source.paths is not None else HubReader(source)


def read_documents(source: Source) -> Iterator[str]:
    """Every document of a source once, in order.

    Raises:
        UserError: at a record that can't be read.
    """
    reader = open_source(source)
    position: Position | None = reader.start
    while position is not None:
        block = reader.read_block(position, 256)
        if block.bad:
            raise UserError(f"{block.bad[0].where}: {block.bad[0].reason}")
        yield from block.texts
        position = block.position


HASHED_WHOLE = 2**28
"""Bytes up to which a source's fingerprint takes in every byte: a quarter of a second's work."""


# ---------------------------------------------------------------------------------------------------------
# Local files
# ---------------------------------------------------------------------------------------------------------

Cursor = Iterator[tuple[Item, Any]]
"""Yields an item and the position after it inside its file; None says that nothing follows."""


class FileReader(Reader):
    """Local files: .txt and .md (a document a file), .jsonl (a line), .parquet and .arrow (a row)."""

    start: Position = {"file": 0, "inside": None}

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.files = expand(source)
        plain = next((path for path in self.files if plain_suffix(path) in TEXT_SUFFIXES), None)
        if plain and (source.filters or source.text_template):
            raise UserError(
                f"source {source.name!r}: {plain} is plain text without columns; name only .jsonl, .parquet and "
                ".arrow in its paths, or drop filters and text_template"
            )
        self._at = self.start

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and content, and with what is taken from a record.

        Of a source larger than `HASHED_WHOLE` only each file's first and last 64 KiB are looked at: a resume shall not
        read terabytes.

        Raises:
            UserError: a file that can't be read.
        """
        digest = hashlib.sha256(json.dumps(self.extract.fingerprint, sort_keys=True, default=str).encode())
        path = self.files[0]
        try:
            sizes = [os.path.getsize(path := file) for file in self.files]
            whole = sum(sizes) <= HASHED_WHOLE
            for path, size in zip(self.files, sizes, strict=True):
                digest.update(f"{os.path.basename(path)}\0{size}\0".encode())
                with open(path, "rb") as file:
                    if whole:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
                        continue
                    digest.update(file.read(2**16))
                    file.seek(max(0, size - 2**16))
                    digest.update(file.read())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
        return digest.hexdigest()

    def _open(self, position: Position) -> Iterator[Item]:
        inside = position["inside"]
        for number in range(position["file"], len(self.files)):
            for item, after in self._read(self.files[number], inside):
                self._at = {"file": number + (after is None), "inside": after}
                yield item
            inside = None

    def _read(self, path: str, inside: Any) -> Cursor:
        suffix = plain_suffix(path)
        if suffix in TEXT_SUFFIXES:
            return iterate_text(path)
        return (iterate_jsonl if suffix == ".jsonl" else iterate_table)(path, self.extract, inside)

    def _position(self) -> Position:
        return self._at


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
            suffix, compressed = plain_suffix(path), Path(path).suffix in COMPRESSIONS
            if suffix not in (*TEXT_SUFFIXES, ".jsonl") and (suffix not in TABLE_SUFFIXES or compressed):
                raise UserError(
                    f"source {source.name!r}: {path} is none of .txt .md .jsonl (.gz, .zst) .parquet .arrow"
                )
        files.update(matches)
    return sorted(files)


def plain_suffix(path: str) -> str:
    """`.jsonl` of `a.jsonl.gz`."""
    name = Path(path)
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def open_binary(path: str) -> BinaryIO:
    """A file of the uncompressed bytes, to be read forwards.

    Raises:
        UserError: no such file, or not readable.
    """
    try:
        return open_decompressed(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None


def open_decompressed(path: str) -> BinaryIO:
    suffix = Path(path).suffix
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".zst":  # pyarrow brings the codec, goes on after a frame's end, and says when the file is cut
        return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return open(path, "rb")


def iterate_text(path: str) -> Cursor:
    try:
        with open_decompressed(path) as file:
            content = file.read()
        yield content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        yield BadRecord(path, f"not valid UTF-8 ({error})"), None
    except DAMAGE as error:
        yield BadRecord(path, f"the file is cut, damaged or gone ({reason_of(error)})"), None


def iterate_jsonl(path: str, extract: Extractor, inside: dict[str, int] | None) -> Cursor:
    """Positions are {"byte", "line"}, both of the uncompressed text."""
    done = inside or {"byte": 0, "line": 0}
    byte, number = 0, 0
    try:
        with open_decompressed(path) as file:
            if Path(path).suffix not in COMPRESSIONS:
                file.seek(done["byte"])
                byte, number = done["byte"], done["line"]
            for line in file:
                byte, number = byte + len(line), number + 1
                # A compressed file is read again from its start, so that damage shows at the same place each time.
                if number > done["line"] and not line.isspace():
                    yield jsonl_item(line, extract, f"{path}, line {number}"), {"byte": byte, "line": number}
    except DAMAGE as error:
        if byte == 0 and isinstance(error, (FileNotFoundError, PermissionError)):
            yield BadRecord(path, f"cannot be read ({reason_of(error)})"), None
        else:
            where = f"{path}, after line {number}"
            yield BadRecord(where, f"the file is cut or damaged ({reason_of(error)})"), None


def jsonl_item(line: bytes, extract: Extractor, where: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(where, json_fault(error))
    return extract.item(record, where)


def parse_json(line: bytes, where: str) -> Any:
    """The value of a line of JSON; `UserError` if it isn't one."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {json_fault(error)}") from None


def json_fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8 ({error})"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg}, column {error.colno})"
    return f"not valid JSON ({error})"


def iterate_table(path: str, extract: Extractor, inside: int | None) -> Cursor:
    """Positions are the number of rows that lie behind."""
    row = inside or 0
    batches = parquet_batches if plain_suffix(path) == ".parquet" else arrow_batches
    for start, batch in batches(path, extract, row):
        if isinstance(batch, BadRecord):
            yield batch, start
            continue
        begin = max(start, row)
        for number, record in enumerate(records_of(batch.slice(begin - start)), begin + 1):
            where = f"{path}, row {number}"
            item = BadRecord(where, f"not valid UTF-8 ({record})") if isinstance(record, UnicodeDecodeError) else None
            yield item or extract.item(record, where), number


Batches = Iterator[tuple[int | None, pa.RecordBatch | BadRecord]]
"""A batch and the rows before it; or what is wrong and the rows up to where reading goes on, None if it doesn't."""


def parquet_batches(path: str, extract: Extractor, row: int) -> Batches:
    """Batches that reach beyond `row` rows; row groups before it are not touched, one that is damaged is left out."""
    try:
        # Pages are read one by one: a row group of a gigabyte never stands in memory.
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True)
    except DAMAGE as error:
        yield None, BadRecord(path, f"cannot be read as parquet ({reason_of(error)})")
        return
    with file:
        missing = extract.missing(file.schema_arrow.names, "column")
        if missing:
            yield None, BadRecord(path, missing, max(1, file.metadata.num_rows))
            return
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if end <= row:
                continue
            try:
                for batch in file.iter_batches(256, row_groups=[group], columns=extract.columns):
                    if start + len(batch) > row:
                        yield start, batch
                    start += len(batch)
            except DAMAGE as error:
                where = f"{path}, rows {max(start, row) + 1} to {end}"
                yield end, BadRecord(where, f"row group {group} is damaged ({reason_of(error)})", end - max(start, row))


def arrow_batches(path: str, extract: Extractor, row: int) -> Batches:
    """Batches that reach beyond `row` rows, of a stream or a file in Arrow's IPC format."""
    start = 0
    try:
        # Read, not memory-mapped: a mapped file that is cut while it is read kills the process.
        with pa.OSFile(path) as file, open_arrow(file) as reader:
            missing = extract.missing(reader.schema.names, "column")
            is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                if not missing and start + len(batch) > row:
                    yield start, batch.select(extract.columns)
                start += len(batch)
        if missing:
            yield None, BadRecord(path, missing, max(1, start))
    except DAMAGE as error:
        if start == 0:
            yield None, BadRecord(path, f"cannot be read as arrow ({reason_of(error)})")
        else:
            yield None, BadRecord(f"{path}, after row {start}", f"the file is cut or damaged ({reason_of(error)})")


def open_arrow(file: pa.NativeFile) -> Any:
    if file.read(6) == b"ARROW1":
        return pa.ipc.open_file(file)
    file.seek(0)
    return pa.ipc.open_stream(file)


def records_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # of one value: find the rows that hold such
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
