"""Rows of the files and datasets that people bring, each with the place where it stands."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.config import ConversationSource, Source
from genesis_hf.data.readers import expand, open_binary, parse_json, plain_suffix
from genesis_hf.errors import UserError

Row = dict[str, Any]


def read_rows(source: ConversationSource) -> "list[tuple[str, Row]] | HubRows":
    """Every row of a source with the file and line it stands in.

    Raises:
        UserError: no such file, not valid JSON, a row that is no object.
    """
    if source.dataset is not None:
        return HubRows(source)
    rows: list[tuple[str, Row]] = []
    for path in expand(Source(name=source.name, paths=source.paths)):
        suffix = plain_suffix(path)
        if suffix not in (".jsonl", ".parquet", ".arrow"):
            raise UserError(f"source {source.name!r}: {path} is none of .jsonl (.gz, .zst) .parquet .arrow")
        rows += read_jsonl(path) if suffix == ".jsonl" else read_table(path)
    if not rows:
        raise UserError(f"source {source.name!r}: not one row in {', '.join(source.paths)}")
    return rows


def read_jsonl(path: str) -> Iterator[tuple[str, Row]]:
    with open_binary(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = parse_json(line, f"{path}, line {number}")
                    if not isinstance(row, dict):
                        raise UserError(f"{path}, line {number}: a row is an object, not a {type(row).__name__}")
                    yield f"{path}, line {number}", row
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None


def read_table(path: str) -> Iterator[tuple[str, Row]]:
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(path)
        else:
            with pa.memory_map(path) as file:
                table = pa.ipc.open_stream(file).read_all()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


class HubRows:
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
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"source {source.name!r}: dataset {source.dataset!r} can't be opened ({reason})") from None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[str, Row]:
        return f"{self.name}, row {number + 1}", self.rows[number]
