"""The few models that are in memory; the one that was used longest ago makes room."""

import gc
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from genesis_hf.errors import UserError
from genesis_hf.exporting.live import return_small_memory
from genesis_hf.files import MODEL_FILES
from genesis_hf.playground.catalogue import Entry
from genesis_hf.playground.loading import Speaker, load_entry

Stamp = tuple[tuple[str, int, int], ...]
"""Name, time of change in nanoseconds and bytes of such files."""


class Shelf:
    """Models of a catalogue, loaded when they are asked for.

    Never more than `size` are in memory: who asks for one more waits until another is put back.
    """

    def __init__(self, entries: Sequence[Entry], size: int) -> None:
        self.entries: Mapping[str, Entry] = {entry.key: entry for entry in entries}
        self.size = size
        self._speakers: OrderedDict[str, tuple[Stamp, Speaker]] = OrderedDict()
        self._users: dict[str, int] = {}
        self._changed = threading.Condition()
        self._loading = threading.Lock()

    def update(self, entries: Sequence[Entry]) -> None:
        """Offer these from now on; who has borrowed a model keeps it."""
        self.entries = {entry.key: entry for entry in entries}

    def entry(self, key: object) -> Entry:
        """An entry by its key.

        Raises:
            UserError: the catalogue has none of that name.
        """
        if not isinstance(key, str) or key not in self.entries:
            raise UserError("no such model in this playground (any more); load the page again for the list")
        return self.entries[key]

    def holds(self, key: str) -> bool:
        """Whether a model is in memory now."""
        return key in self._speakers

    @contextmanager
    def borrow(self, *keys: str) -> Iterator[Callable[[str], Speaker]]:
        """Room for models, and a function that gives each of them by its key; they stay in memory meanwhile.

        All of them are reserved at once: two who each held one and waited for another would wait for ever.

        Raises:
            UserError: an unknown key, or more than fit; from the function: one that can't be loaded.
        """
        wanted = {self.entry(key).key for key in keys}
        if len(wanted) > self.size:
            raise UserError(f"{len(wanted)} models at once, where {self.size} fit (max_models_in_memory)")
        with self._changed:
            self._changed.wait_for(lambda: len(wanted | set(self._users)) <= self.size)
            for key in wanted:
                self._users[key] = self._users.get(key, 0) + 1
        try:
            yield self._fetch
        finally:
            with self._changed:
                for key in wanted:
                    self._users[key] -= 1
                    if not self._users[key]:
                        del self._users[key]
                self._changed.notify_all()

    def _fetch(self, key: str) -> Speaker:
        """A reserved model; where it isn't in memory it is loaded, one at a time, after others have made room."""
        if speaker := self._standing(key):
            return speaker
        with self._loading:
            if speaker := self._standing(key):  # somebody else loaded it meanwhile
                return speaker
            self._make_room(key)
            entry = self.entry(key)
            stamp = stamp_of(entry)
            try:
                speaker = load_entry(entry)
            except UserError as error:
                print(f"not loaded: {error}", file=sys.stderr, flush=True)
                raise
            with self._changed:
                self._speakers[key] = stamp, speaker
            return speaker

    def _standing(self, key: str) -> Speaker | None:
        """A model that is in memory as its folder holds it, now the one used last."""
        with self._changed:
            stamp, speaker = self._speakers.get(key, (None, None))
            if speaker is None or stamp != stamp_of(self.entry(key)):
                return None
            self._speakers.move_to_end(key)
            return speaker

    def _make_room(self, wanted: str) -> None:
        """Forget models that nobody uses, the longest unused first, until one more fits; an older `wanted` goes too."""
        with self._changed:
            self._speakers.pop(wanted, None)
            idle = [key for key in self._speakers if key not in self._users]
            for key in idle[: max(0, len(self._speakers) + 1 - self.size)]:
                del self._speakers[key]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return_small_memory()


def stamp_of(entry: Entry) -> Stamp:
    """What changes when a model's folder is written anew; of the Hub's nothing does.

    Raises:
        UserError: the folder is gone, as a run's retention takes checkpoints away.
    """
    if entry.folder is None:
        return ()
    try:
        files = {path for pattern in (*MODEL_FILES, "manifest.json") for path in entry.folder.glob(pattern)}
        found = [(path.name, path.stat()) for path in sorted(files)]
    except FileNotFoundError:
        found = []
    if not found:
        raise UserError(f"{entry.key}: was deleted meanwhile; load the page again for the list")
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)
