"""The newest checkpoint brought elsewhere, beside training: late rather than in its way."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from genesis_hf.errors import UserError

PATIENCE = 10.0
"""Seconds until a wait is worth a word."""


class Delivery:
    """A thread that brings finished checkpoints somewhere. While it is busy it remembers the newest one only.

    What fails is one warning line, and the next checkpoint is tried.

    Args:
        aim: what it does, in a word or two, for its lines.
        deliver: brings one checkpoint there; the thread's own work.
    """

    def __init__(self, aim: str, deliver: Callable[[Path], None]) -> None:
        self.aim = aim
        self._deliver = deliver
        self._current: Path | None = None
        self._next: Path | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=aim, daemon=True)
        self._thread.start()

    def offer(self, folder: Path) -> None:
        """Name the newest finished checkpoint."""
        with self._changed:
            self._next = folder
            self._changed.notify()

    @property
    def in_use(self) -> set[Path]:
        """Checkpoints that it still reads."""
        with self._changed:
            return {folder for folder in (self._current, self._next) if folder is not None}

    def close(self) -> None:
        """Wait until the newest one is there, or has failed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        join(self._thread, f"waiting for the {self.aim} of {', '.join(sorted(folder.name for folder in self.in_use))}")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.wait_for(lambda: self._next is not None or self._closing)
                if self._next is None:
                    return
                folder = self._current = self._next
                self._next = None
            try:
                self._deliver(folder)
            except Exception as error:
                words = str(error).strip().split("\n")[0]
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                tqdm.write(f"WARNING: {self.aim} of {folder.name} failed ({kind}{words})")


def join(thread: threading.Thread, line: str, speaks: bool = True) -> None:
    """Wait for a thread; say so when it takes long."""
    begun = time.monotonic()
    while thread.is_alive():
        thread.join(PATIENCE)
        if thread.is_alive() and speaks:
            tqdm.write(f"{line} ({time.monotonic() - begun:.0f} s)")
