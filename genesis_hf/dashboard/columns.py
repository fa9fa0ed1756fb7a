"""The numbers of a metrics.jsonl by key."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

EXACT = {"step", "tokens_seen", "num_tokens", "time"}
"""Keys that need all digits; other values are kept in single precision, more than a curve shows."""

LEFT_OUT = {"records", "repeated_since"}
"""Counters by source that no curve shows: four of five numbers of a run with many sources."""

BLOCK = 4 << 20
"""Bytes that pyarrow gives to one thread."""

LONG_LINE = 2000
"""Bytes up to which a line can't nest deeply enough to do harm."""

DEEPEST = 100
"""Levels that a longer line may nest; tens of thousands end the process inside pyarrow."""

MANY_PARTS = 64
"""Pieces of a column from which on they are joined."""

Numbers = dict[str, np.ndarray]
"""By key, nested ones joined with `/`: a float64 for each record, NaN where it has none."""


class Columns:
    """For each key, the records that have a finite value, and the values.

    Records are numbered in the file's order; those without a `step` are left out and counted as unreadable.

    Attributes:
        start: the step after which the file begins: a fork's, else 0.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.length = 0
        self.unreadable = 0
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, lines: bytes) -> None:
        """Append the records of complete lines."""
        numbers, unreadable = parse_lines(lines)
        self.unreadable += unreadable
        steps = numbers.get("step", np.empty(0))
        kept = np.isfinite(steps)
        self.unreadable += int(len(kept) - kept.sum())
        count = int(kept.sum())
        shared: dict[bytes, np.ndarray] = {}  # rows of keys that the same records have are held once
        for key, values in numbers.items():
            with np.errstate(over="ignore"):  # beyond single precision a value is as infinite as one that says so
                values = values[kept].astype(np.float64 if key in EXACT else np.float32)
            finite = np.isfinite(values)
            if not finite.any():
                continue
            rows = shared.setdefault(finite.tobytes(), (np.flatnonzero(finite) + self.length).astype(np.int32))
            parts = self._parts.setdefault(key, [])
            parts.append((rows, values[finite]))
            if len(parts) > MANY_PARTS:
                parts[:] = [join(parts)]
        self.length += count

    def __iter__(self) -> Iterator[str]:
        """Keys with a value, in the order in which they came."""
        return iter(self._parts)

    def __contains__(self, key: str) -> bool:
        return key in self._parts

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the records that have it, ascending; their values); both empty for an unknown key."""
        return join(self._parts.get(key, []))

    def last(self, key: str) -> float | None:
        """The newest value."""
        parts = self._parts.get(key)
        return float(parts[-1][1][-1]) if parts else None


def join(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not parts:
        return np.empty(0, np.int32), np.empty(0, np.float32)
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([values for _, values in parts])


def parse_lines(lines: bytes) -> tuple[Numbers, int]:
    """The numbers of JSON lines, and how many lines are no JSON objects.

    pyarrow reads hundreds of MB in seconds, without holding up other threads, but takes a piece only whole; one with a
    damaged line, a NaN or a key that is now a number, now a text, is read line by line.
    """
    lines, deep = without_deep_lines(lines)
    if not lines.strip():
        return {}, deep
    try:
        options = pyarrow.json.ReadOptions(block_size=BLOCK)
        table = pyarrow.json.read_json(pa.BufferReader(lines), read_options=options)
        names = [name for name in table.column_names if name not in LEFT_OUT]
        columns = [flat_columns(name, table.column(name)) for name in names]
        return {key: values for column in columns for key, values in column}, deep
    except (pa.ArrowException, RecursionError):
        numbers, unreadable = parse_slowly(lines)
        return numbers, unreadable + deep


def without_deep_lines(lines: bytes) -> tuple[bytes, int]:
    """The lines that can be given to a parser, and how many nest too deeply for that."""
    split = lines.split(b"\n")
    kept = [line for line in split if len(line) <= LONG_LINE or depth(line) <= DEEPEST]
    return (lines, 0) if len(kept) == len(split) else (b"\n".join(kept), len(split) - len(kept))


def depth(line: bytes) -> int:
    """Levels of brackets, those in texts among them."""
    characters = np.frombuffer(line, np.uint8)
    opened, closed = np.isin(characters, list(b"[{")), np.isin(characters, list(b"]}"))
    return int(np.cumsum(opened.astype(np.int32) - closed).max())


def flat_columns(name: str, column: pa.ChunkedArray) -> Iterator[tuple[str, np.ndarray]]:
    """(key, float64 values) of a column of numbers, or of the numbers inside it."""
    if pa.types.is_struct(column.type):
        for index, field in enumerate(column.type):
            yield from flat_columns(f"{name}/{field.name}", pc.struct_field(column, [index]))
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
        yield name, values.to_numpy()


def parse_slowly(lines: bytes) -> tuple[Numbers, int]:
    """As `parse_lines`, with no demands on the lines."""
    records, unreadable = [], 0
    for line in io.BytesIO(lines):
        try:
            record = json.loads(line)
            numbers = dict(flat_numbers(record)) if isinstance(record, dict) else None
        except (ValueError, OverflowError, RecursionError):
            numbers = None
        if numbers is not None:
            records.append(numbers)
        elif line.strip():
            unreadable += 1
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: np.array([record.get(key, np.nan) for record in records], np.float64) for key in keys}, unreadable


def flat_numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict):
            if prefix or key not in LEFT_OUT:
                yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, float(value)
