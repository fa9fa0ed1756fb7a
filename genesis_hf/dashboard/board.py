"""Several runs, read in the background."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genesis_hf.dashboard.folders import check_folders, find_runs, run_names
from genesis_hf.dashboard.run import WatchedRun

LOOK_SECONDS = 1.0
"""Between two looks at the files of the known runs."""

SEARCH_LOOKS = 10
"""Looks between two searches for new runs."""


class Board:
    """The runs at or below some folders; those that appear later are found, too.

    Raises:
        UserError: a folder is missing.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = check_folders(folders)
        self.runs: dict[Path, WatchedRun] = {}
        self._over = threading.Event()
        self.search()

    def search(self) -> None:
        """Take up runs that were not there before. What is there stays, even if its metrics.jsonl goes for a while."""
        known = {folder.resolve() for folder in self.runs}
        new = {f: WatchedRun(f) for f in find_runs(self.folders) if f.resolve() not in known}
        self.runs = {**self.runs, **new}

    def read_all(self) -> None:
        """Read every file to its present end."""
        for run in list(self.runs.values()):
            while run.refresh():
                pass

    def watch(self) -> None:
        """Read on until `close`: a piece of each run in turn, so that a long file holds up no other run."""
        looks = 0
        while not self._over.is_set():
            more = [run.refresh() for run in list(self.runs.values())]
            if any(more):
                continue
            self._over.wait(LOOK_SECONDS)
            looks += 1
            if looks % SEARCH_LOOKS == 0:
                self.search()

    def start(self) -> None:
        """`watch` in a thread of its own."""
        threading.Thread(target=self.watch, name="run files", daemon=True).start()

    def close(self) -> None:
        """End `watch`."""
        self._over.set()

    def view(
        self,
        known: dict[str, int] | None = None,
        axis: str = "step",
        span: tuple[float, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Every run's view under its name; of runs whose version the caller knows by name, the status alone."""
        folders = list(self.runs)
        names = run_names(folders)
        views = []
        for folder, name in zip(folders, names, strict=True):
            views.append({"name": name, **self.runs[folder].view((known or {}).get(name), axis, span)})
        return views
