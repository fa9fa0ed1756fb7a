"""Files of JSON lines that are too long to hold: read by number, written beside and renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from genesis_hf.errors import UserError


class NumberedLines:
    """The objects of a .jsonl file that hold a number, in that order; the file may be longer than the memory.

    What follows the last line end was being written when its writer was killed, and doesn't count; of several objects
    with the same number the first one does.
    """

    def __init__(self, path: Path, key: str = "index") -> None:
        """
        Raises:
            UserError: no such file, or a line that is no object with a number.
        """
        self.path = path
        try:
            self.file = open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        numbers, offsets = [], []
        for line_number, (offset, line) in enumerate(self._lines(), 1):
            try:
                numbers.append(int(json.loads(line)[key]))
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, line {line_number}: no JSON object with a number `{key}`") from None
            offsets.append(offset)
        self.numbers, firsts = np.unique(np.array(numbers, dtype=np.int64), return_index=True)
        self.offsets = np.array(offsets, dtype=np.int64)[firsts]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        offset = 0
        for line in self.file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.read(int(number)) for number in self.numbers)

    def read(self, number: int) -> dict[str, Any]:
        """The object of that number."""
        self.file.seek(self.offsets[np.searchsorted(self.numbers, number)])
        return json.loads(self.file.readline())

    def __enter__(self) -> "NumberedLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def written_beside(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when all is written, and leaves nothing where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_line(file: TextIO, value: dict[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
