"""Items of an iterator made ahead in a thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from genesis_hf.errors import UserError


class Prefetcher:
    """Hands out an iterator's items, `depth` of them made ahead; with depth 0 each is made when it is taken.

    Attributes:
        error: what the user has to mend, once the iterator has failed for that; `take` then gives None.
    """

    def __init__(self, items: Iterator[Any], depth: int = 2) -> None:
        self.error: UserError | None = None
        self._items = items
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True) if depth else None
        if self._thread is not None:
            self._thread.start()

    def take(self) -> Any | None:
        """The next item; None at the end and after an error of the user's, which is then in `error`."""
        if self._ended:
            return None
        item, error = self._queue.get() if self._thread is not None else self._make()
        if error is None:
            return item
        self._ended = True
        if isinstance(error, UserError):
            self.error = error
        elif not isinstance(error, StopIteration):
            raise error
        return None

    def close(self) -> None:
        """Stop the thread; further items are dropped."""
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _make(self) -> tuple[Any, BaseException | None]:
        try:
            return next(self._items), None
        except BaseException as error:
            return None, error

    def _run(self) -> None:
        error = None
        while error is None and not self._closed.is_set():
            item, error = self._make()
            self._queue.put((item, error))
