"""Documents of a source, in the files' order, from any position.

A reader hands out blocks: `read_block(position, count)` gives the next documents and the position after them. The
position is a small JSON value, so a stream that keeps it can go on in a new process without reading from the start.

What can't be read is never raised: it stands in the block's `bad`, and reading goes on after it.
"""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import string
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.config import Source
from genesis_hf.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")
MAX_BLOCK_CHARACTERS = 16 * 2**20
"""A block ends after the document that passes this, so that a shuffle block of very long ones still fits in memory."""

HUB_TRIES = 8
"""How often a block is asked of the Hub; the waits between double from 1 s to `HUB_LONGEST_WAIT`, two minutes in all.
Each try holds `huggingface_hub`'s own: up to 6 of a request within half a minute."""
HUB_LONGEST_WAIT = 60.0
HUB_TIMEOUT = 60.0
"""Seconds without a byte after which a request to the Hub counts as lost."""

DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading a cut or damaged file raises."""

Position = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadRecord:
    """What could not be read.

    Attributes:
        where: file and line or row (both count from 1), or dataset and row.
        reason: what is wrong with it.
        count: records it stands for.
    """

    where: str
    reason: str
    count: int = 1


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


Item = str | BadRecord | None
"""A record's text, what is wrong with it, or None where the filters leave it out."""


class Reader:
    """Blocks of what `_open` gives; an iterator that stands at the position asked for is used again."""

    start: Position

    def __init__(self, source: Source) -> None:
        """Raises `UserError`: a template or filter that can't be understood."""
        self.source = source
        self.extract = Extractor(source)
        self._items: Iterator[Item] | None = None
        self._expected: Position | None = None

    def fingerprint(self) -> str:
        """Changes with what the source reads."""
        raise NotImplementedError

    def _open(self, position: Position) -> Iterator[Item]:
        """Every record from a position on."""
        raise NotImplementedError

    def _position(self) -> Position:
        """Where the item after the one last taken stands."""
        raise NotImplementedError

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


# ---------------------------------------------------------------------------------------------------------
# A record's text
# ---------------------------------------------------------------------------------------------------------

SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
"""ShareGPT's `from` → role; names that are roles already stand for themselves."""


class Unusable(Exception):
    """A record that can't be used; its text is the reason."""


class Extractor:
    """Takes a record's text, its `text_column` or rendered `text_template`, if the `filters` let it through.

    Attributes:
        columns: what it looks at in a record.
    """

    def __init__(self, source: Source) -> None:
        self.filters = {column: check_filter(source, column, rule) for column, rule in source.filters.items()}
        self.template = parse_template(source) if source.text_template is not None else None
        self.text_column = source.text_column
        columns = [column for _, column in self.template if column] if self.template else [self.text_column]
        self.columns = list(dict.fromkeys([*self.filters, *columns]))
        self.fingerprint = [source.text_column, source.text_template, source.filters]

    def item(self, record: Any, where: str) -> Item:
        """What a block takes of a record."""
        try:
            return self.text(record)
        except Unusable as error:
            return BadRecord(where, str(error))

    def text(self, record: Any) -> str | None:
        """The text; None where the filters leave it out.

        Raises:
            Unusable: no such key, a value that isn't text, a lone surrogate (no UTF-8 can hold it).
        """
        if not isinstance(record, dict):
            raise Unusable(f"a record is a JSON object, not {type_name(record)}")
        missing = self.missing(record, "key")
        if missing:
            raise Unusable(missing)
        if not all(fits(rule, column, record[column]) for column, rule in self.filters.items()):
            return None
        if self.template is None:
            text, what = record[self.text_column], repr(self.text_column)
        else:
            text, what = self._render(record), "the rendered text"
        if not isinstance(text, str):
            raise Unusable(f"{what} is {type_name(text)}, not text")
        if not encodable(text):
            raise Unusable(f"{what} holds a lone surrogate, which is not text")
        return text

    def missing(self, names: Iterable[str], noun: str) -> str | None:
        """What to say when not all of `columns` are among the names."""
        for column in self.columns:
            if column not in names:
                found = shorten(", ".join(names))
                if column in self.filters:
                    return f"no {noun} {column!r} to filter by (found {found})"
                mend = "text_template" if self.template else "text_column"
                return f"no {noun} {column!r} (found {found}); set {mend}"
        return None

    def _render(self, record: dict[str, Any]) -> str:
        parts = []
        for literal, column in self.template:
            parts.append(literal)
            if column is not None:
                if record[column] is None:
                    raise Unusable(f"{column!r} is null, not text")
                parts.append(as_text(record[column]))
        return "".join(parts)


def check_filter(source: Source, column: str, rule: Any) -> Any:
    """The rule itself: a value, a list of values, or {min, max}; `UserError` for anything else."""
    where = f"source {source.name!r}: filters.{column}"
    if isinstance(rule, dict):
        if not rule or not set(rule) <= {"min", "max"} or not all(map(is_number, rule.values())):
            raise UserError(f"{where} must be a value, a list of values or {{min: number, max: number}}, not {rule}")
    elif isinstance(rule, list) and (not rule or any(isinstance(value, (list, dict)) for value in rule)):
        raise UserError(f"{where} must list plain values, not {rule}")
    return rule


def fits(rule: Any, column: str, value: Any) -> bool:
    """Whether a record's value passes a filter.

    Raises:
        Unusable: no number where the filter is a range.
    """
    if isinstance(rule, dict):
        if not is_number(value):
            raise Unusable(f"{column!r} is {type_name(value)}, not a number to filter by")
        return rule.get("min", value) <= value <= rule.get("max", value)
    return value in rule if isinstance(rule, list) else value == rule


def parse_template(source: Source) -> list[tuple[str, str | None]]:
    """`"a {b} c"` → `[("a ", "b"), (" c", None)]`; `UserError` where braces hold anything but a column's name."""
    where = f"source {source.name!r}: text_template"
    try:
        parts = list(string.Formatter().parse(source.text_template))
    except ValueError as error:
        raise UserError(f"{where}: {error}; a brace that is text is written twice") from None
    for _, column, spec, conversion in parts:
        if column is not None and (not column or set(column) & set(".[") or spec or conversion):
            raise UserError(f"{where}: braces hold a column's name and nothing else; a brace that is text is doubled")
    if all(column is None for _, column, _, _ in parts):
        raise UserError(f"{where} names no {{column}}")
    return [(literal, column) for literal, column, _, _ in parts]


def as_text(value: Any) -> str:
    """A column's value inside a template: messages as a paragraph a turn, other text as it is, the rest as JSON."""
    messages = value
    if isinstance(value, str):
        messages = None
        if value.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                messages = json.loads(value)
    turns = read_turns(messages)
    if turns:
        return "\n\n".join(f"{role.replace('_', ' ').capitalize()}: {content}" for role, content in turns if content)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def read_turns(messages: Any) -> list[tuple[str, str]]:
    """(role, content) of each of a list of messages; nothing where it isn't one."""
    turns = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            return []
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        turns.append((SPEAKERS.get(role, role), content))
    return turns


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    return " ".join(text.split())[:200]


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
        """Changes with the files' names, sizes or first and last MiB, and with what is taken from a record.

        Raises:
            UserError: a file that can't be read.
        """
        digest = hashlib.sha256(json.dumps(self.extract.fingerprint, sort_keys=True, default=str).encode())
        for path in self.files:
            try:
                size = os.path.getsize(path)
                digest.update(f"{os.path.basename(path)}\0{size}\0".encode())
                with open(path, "rb") as file:
                    digest.update(file.read(2**20))
                    file.seek(max(0, size - 2**20))
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


def reason_of(error: BaseException) -> str:
    return shorten(getattr(error, "strerror", None) or str(error) or type(error).__name__)


# ---------------------------------------------------------------------------------------------------------
# The Hub
# ---------------------------------------------------------------------------------------------------------


class HubReader(Reader):
    """A Hub dataset through `datasets` streaming; the position holds its state, its commit and the rows read.

    The commit is that of the moment when reading began, so that an update of the dataset doesn't move rows under a
    run that goes on. Each try to read a block begins with the block's first row in a dataset opened anew.
    """

    start: Position = {}

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._dataset: Any = None
        self._commit: str | None = None
        self._row = 0

    def fingerprint(self) -> str:
        """Names what is asked of the Hub; name a `revision` to have it fixed."""
        source = self.source
        named = [source.dataset, source.config, source.split, source.revision, *self.extract.fingerprint]
        return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()

    def read_block(self, position: Position, count: int) -> Block:
        """As every reader's.

        Raises:
            UserError: no such dataset, configuration, split or revision; no access; a Hub that doesn't answer; a file
                there that can't be read.
        """
        where = f"source {self.source.name!r}"
        for tried in range(1, HUB_TRIES + 1):
            try:
                return super().read_block(position, count)
            except Exception as error:  # the Hub's client, its HTTP client, datasets and pyarrow raise many kinds
                self._items = None
                if not is_network_error(error):
                    raise UserError(f"{where}: {self._refusal(error)}") from None
                silent = f"{where}: the Hub does not answer ({shorten(str(root(error)).split(' for url')[0])})"
                if tried == HUB_TRIES:
                    raise UserError(f"{silent}; {HUB_TRIES} tries; check the network and start again") from None
                wait = min(2.0 ** (tried - 1), HUB_LONGEST_WAIT)
                print(f"{silent}; try {tried + 1} of {HUB_TRIES} in {wait:.0f} s", file=sys.stderr, flush=True)
                pause(wait)
        raise AssertionError("unreachable")

    def _refusal(self, error: Exception) -> str:
        place = "can't be opened" if self._dataset is None else f"can't be read after row {self._row}"
        mend = "; pip install zstandard" if "zstd not supported" in str(error) else ""
        return f"dataset {self.source.dataset!r} {place} ({reason_of(error)}){mend}"

    def _open(self, position: Position) -> Iterator[Item]:
        self._row = position.get("rows", 0)
        self._dataset = None
        self._commit = position.get("commit") or self._commit
        self._dataset = self._load()
        if position:
            self._dataset.load_state_dict(json.loads(json.dumps(position["state"])))
        for record in self._dataset:
            self._row += 1
            yield self.extract.item(record, f"dataset {self.source.dataset}, row {self._row}")

    def _position(self) -> Position:
        # Through JSON: the dataset's own state changes as it is read on.
        state = json.loads(json.dumps(self._dataset.state_dict()))
        return {"state": state, "rows": self._row, "commit": self._commit}

    def _load(self) -> Any:
        import datasets
        import huggingface_hub
        from datasets.packaged_modules.cache.cache import Cache
        from huggingface_hub.utils import httpx

        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else each parquet shard's end costs 5 s
        # `read_block` waits and tries again; 20 times that here would be hours.
        for key in [key for key in vars(datasets.config) if key.startswith("STREAMING_")]:
            setattr(datasets.config, key, 1 if key.endswith("MAX_RETRIES") else 0)
        source = self.source
        if not os.path.isdir(source.dataset):
            # Without it, a request that asks for no timeout itself waits for ever.
            huggingface_hub.set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=HUB_TIMEOUT))
            info = huggingface_hub.HfApi().dataset_info(
                source.dataset, revision=self._commit or source.revision, timeout=HUB_TIMEOUT
            )
            self._commit = info.sha
        builder = datasets.load_dataset_builder(source.dataset, source.config, revision=self._commit)
        if isinstance(builder, Cache):
            # What `datasets` falls back on: files that another program downloaded, divided and ordered otherwise.
            raise ConnectionError("only parts of it could be had")
        return builder.as_streaming_dataset(split=source.split)


def is_network_error(error: BaseException | None) -> bool:
    """Whether trying again may help: the network's or the server's fault, not the name's or the file's."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        if isinstance(error, (ConnectionError, TimeoutError, httpx.TransportError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def root(error: BaseException) -> BaseException:
    """What an error was raised from, in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def pause(seconds: float) -> None:
    """Wait; tests put something else here."""
    time.sleep(seconds)
