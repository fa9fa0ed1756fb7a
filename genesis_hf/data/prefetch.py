"""Results and items made ahead in threads. A process that ends doesn't wait for them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from genesis_hf.errors import UserError


class Background:
    """A function's result, made in a thread as soon as one of the `slots` is free."""

    def __init__(self, slots: threading.Semaphore, function: Callable[..., Any], *arguments: Any) -> None:
        self._slots, self._function, self._arguments = slots, function, arguments
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """What the function returns or raises, once it has."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        with self._slots:
            try:
                self._value = self._function(*self._arguments)
            except BaseException as error:
                self._error = error


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
