"""Several runs, read in the background."""

import os
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
        self.failed: dict[Path, str] = {}
        self._over = threading.Event()
        self.search()

    def search(self) -> None:
        """Take up new runs, read anew those that failed, drop those whose folder is gone.

        A run stays even if its metrics.jsonl goes for a while.
        """
        kept = {f: run for f, run in self.runs.items() if os.path.isdir(f) and f not in self.failed}
        known = {os.path.realpath(folder) for folder in kept}
        new = {f: WatchedRun(f) for f in find_runs(self.folders) if os.path.realpath(f) not in known}
        self.runs, self.failed = {**kept, **new}, {}

    def read_all(self) -> None:
        """Read every file to its present end."""
        for folder in list(self.runs):
            while self.refresh(folder):
                pass

    def refresh(self, folder: Path) -> bool:
        """Read a piece of what is new of a run; whether there may be more. One that can't be read holds up no other."""
        if folder in self.failed:
            return False
        try:
            return self.runs[folder].refresh()
        except Exception as error:
            self.failed[folder] = said(error)
            return False

    def watch(self) -> None:
        """Read on until `close`: a piece of each run in turn, so that a long file holds up no other run."""
        looks = 0
        while not self._over.is_set():
            more = [self.refresh(folder) for folder in list(self.runs)]
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
        """Every run's view under its name; of runs whose version the caller knows by name, the status alone.

        Of a run that can't be shown: its name, and the `error`.
        """
        runs = self.runs  # the search replaces it
        views = []
        for (folder, run), name in zip(runs.items(), run_names(list(runs)), strict=True):
            try:
                error = self.failed.get(folder)
                view = {"error": error} if error else run.view((known or {}).get(name), axis, span)
            except Exception as failure:
                view = {"error": said(failure)}
            views.append({"name": name, **view})
        return views


def said(error: Exception) -> str:
    """An error in a row of the page."""
    return f"{type(error).__name__}: {error}"[:200]
