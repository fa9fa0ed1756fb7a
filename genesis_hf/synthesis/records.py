"""Append-only files of JSON lines, what they were made from, and who may write them."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from genesis_hf.answers import differing
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.files import read_json

MADE_FROM = "made_from.json"


class Appender:
    """Appends JSON objects to a file, a line and a write each.

    A line is with the kernel before `add` returns: killing the process loses nothing, a power cut the last seconds.
    Half a last line, which a killed process leaves, is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._size = cut_half_line(self._file)

    def __enter__(self) -> "Appender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, values: Mapping[str, Any]) -> None:
        """Append one object.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        line = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)


def cut_half_line(file: Any) -> int:
    """Cut off what follows the last line end; the size that is left."""
    end = file.seek(0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - (1 << 16))
        file.seek(start)
        if (found := file.read(position - start).rfind(b"\n")) >= 0:
            position = start + found + 1
            break
        position = start
    if position < end:
        file.truncate(position)
    return position


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of such a file one by one, without half a last line; none where it is absent.

    Raises:
        UserError: a line is something else.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                raise UserError(f"{path}, line {number}: not a JSON object; remove the line and give the command again")
            yield values


def finished_numbers(path: Path) -> set[int]:
    """The numbers of the records in a file.

    Raises:
        UserError: a line is no record.
    """
    numbers = set()
    for line, record in enumerate(read_lines(path), 1):
        if not isinstance(record.get("index"), int):
            raise UserError(f"{path}, line {line}: a record without its `index`; remove the line")
        numbers.add(record["index"])
    return numbers


def check_made_from(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write down what a folder's records are made from; where something was paid already, compare.

    Raises:
        UserError: the folder's records were made from something else; says which keys differ.
    """
    path = folder / MADE_FROM
    paid = any(file.stat().st_size for file in folder.glob("*.jsonl"))
    if paid and not path.exists():
        raise UserError(f"{folder}: holds records and no {MADE_FROM} that says what from; choose another output_dir")
    if paid and (other := differing(read_json(path), made_from)):
        raise UserError(
            f"{folder}: holds records made with another {', '.join(other)}; give the same settings to go on, "
            "or choose another output_dir"
        )
    write_text(path, json.dumps(made_from, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; it is given back however the process ends.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing there; let it end, or choose another") from None
        yield
