"""The new lines of a growing file, which may also shrink or be replaced."""

import os
from pathlib import Path
from typing import BinaryIO

CHUNK = 16 << 20
"""Bytes read at once; bounds memory."""

REMEMBERED = 4096
"""Bytes before the place reached that are compared at each reading: several records with speeds, which never recur."""


class Tail:
    """Reads a file of lines from where it was left; a last line without its end waits until it is whole.

    A resume drops the lines after its checkpoint and may have written as many again since the last reading, and a copy
    from another machine is a new file with the old beginning. So what counts is whether the bytes just before the place
    reached are still the same, not the file's number or size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._stamp: tuple[int, int, int] | None = None
        self._at_end = False
        self._start_over()

    def read(self) -> tuple[bytes, bool]:
        """(complete new lines, at most `CHUNK` bytes; whether those read before are no longer the file's).

        A file that is gone is an empty one; one that can't be read now may be at the next call.
        """
        try:
            status = os.stat(self.path)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp == self._stamp and self._at_end:
                return b"", False
            with open(self.path, "rb") as file:
                anew = not self._continues(file)
                if anew:
                    self._start_over()
                file.seek(self.offset)
                chunk = file.read(CHUNK)
        except FileNotFoundError:
            anew = self.offset > 0
            self._start_over()
            self._stamp, self.size = None, 0
            return b"", anew
        except OSError:
            return b"", False
        lines = chunk[: chunk.rfind(b"\n") + 1]
        if not lines and len(chunk) == CHUNK:  # no line is that long: whatever it is, it is left behind
            lines = chunk
        self.offset += len(lines)
        self._last = (self._last + lines[-REMEMBERED:])[-REMEMBERED:]
        self._stamp, self.size, self._at_end = stamp, status.st_size, len(chunk) < CHUNK
        return lines, anew

    @property
    def share(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return 1.0 if self._at_end or not self.size else min(1.0, self.offset / self.size)

    @property
    def modified(self) -> float | None:
        """When the file last changed, seconds since 1970; None where there is none."""
        return self._stamp[2] / 1e9 if self._stamp else None

    def _start_over(self) -> None:
        self.offset, self._last = 0, b""

    def _continues(self, file: BinaryIO) -> bool:
        file.seek(self.offset - len(self._last))
        return file.read(len(self._last)) == self._last
