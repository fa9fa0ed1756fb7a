"""Evaluation sets in the form their authors published them: files of records, each an item with some texts."""

import csv
import glob
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.data.readers import open_binary, parse_json, plain_suffix
from genesis_hf.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")


@dataclass
class EvaluationSet:
    """Files that are reported under one name."""

    name: str
    files: list[str] = field(default_factory=list)


def find_sets(names: list[str] | dict[str, list[str]]) -> tuple[list[EvaluationSet], list[str]]:
    """The sets that folders and globs name, and the files of folders left aside because of their kind.

    A mapping gives the sets' names. In a list, each folder or file directly inside a folder is a set of its own, and so
    is each file that a glob matches.

    Raises:
        UserError: nothing matches, a file of another kind.
    """
    sets: dict[str, EvaluationSet] = {}
    aside: list[str] = []
    for given, patterns in names.items() if isinstance(names, dict) else [(None, names)]:
        for pattern in patterns:
            matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            if not matches:
                raise UserError(f"evaluation_sets: nothing matches {pattern!r}")
            for match in map(Path, matches):
                for file in sorted(match.rglob("*")) if match.is_dir() else [match]:
                    if plain_suffix(str(file)) in SUFFIXES and file.is_file():
                        name = given or first_name(file.relative_to(match) if match.is_dir() else file)
                        sets.setdefault(name, EvaluationSet(name)).files.append(str(file))
                    elif not match.is_dir():
                        raise UserError(f"evaluation_sets: {file} is none of {' '.join(SUFFIXES)} (.gz, .zst)")
                    elif file.is_file():
                        aside.append(str(file))
    if not sets:
        raise UserError(f"evaluation_sets: no {' '.join(SUFFIXES)} in {names if isinstance(names, dict) else patterns}")
    return list(sets.values()), aside


def first_name(path: Path) -> str:
    """`arc` of `arc/dev.jsonl.gz`, `piqa` of `piqa.jsonl.gz` and of `/data/piqa.jsonl.gz`."""
    return path.parts[0] if len(path.parts) > 1 and not path.is_absolute() else path.name.split(".")[0]


def read_items(evaluation_set: EvaluationSet) -> Iterator[tuple[str, list[str]]]:
    """(file and number of the record, every text in it) of each item. Numbers count from 1.

    Raises:
        UserError: a record that can't be read, a set without any.
    """
    empty = True
    for file in evaluation_set.files:
        for number, record in enumerate(read_records(file), 1):
            empty = False
            yield f"{file}, record {number}", list(texts_in(record))
    if empty:
        raise UserError(f"evaluation_sets: {evaluation_set.name} is empty ({', '.join(evaluation_set.files)})")


def read_records(file: str) -> Iterator[Any]:
    """Lines of .jsonl and .txt, rows of .csv, .tsv and .parquet (a header is a row, too), elements of a .json list."""
    suffix = plain_suffix(file)
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(1024):
                    yield from batch.to_pylist()
            return
        with open_binary(file) as binary:
            if suffix == ".jsonl":
                for number, line in enumerate(binary, 1):
                    if line.strip():
                        yield parse_json(line, f"{file}, line {number}")
            elif suffix == ".json":
                yield from elements(json.load(binary))
            else:
                text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
                if suffix == ".txt":
                    yield from (line for line in text if line.strip())
                else:
                    csv.field_size_limit(2**30)
                    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
                    yield from csv.reader(text, **(tabs if suffix == ".tsv" else {}))
    except (OSError, EOFError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def elements(value: Any) -> list[Any]:
    """The items of a JSON file: its list, or the only list at the top of its object, else the value itself."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    return value if isinstance(value, list) else [value]


def texts_in(record: Any) -> Iterator[str]:
    """Every string in a record, however deep; keys are no text."""
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict):
        for value in record.values():
            yield from texts_in(value)
    elif isinstance(record, (list, tuple)):
        for value in record:
            yield from texts_in(value)
