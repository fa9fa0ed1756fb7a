"""A heartbeat of each process, and what happens when it stops."""

import contextlib
import faulthandler
import json
import os
import time
from pathlib import Path

REARM_SECONDS = 1.0
"""Beats closer together than this cost nothing."""

WRITE_SECONDS = 10.0
"""How old a heartbeat file may get while its process is well."""


class Watchdog:
    """Says where each process stands; without progress in `hang_minutes`, leaves its stacks in a file and aborts.

    heartbeats/rank_0.json   step, what it was doing, when, process id; a few seconds old while all is well
    hangs/rank_0.txt         the Python stacks of all threads, written when the process hung; absent otherwise

    The clock is the interpreter's own C thread (`faulthandler`): it runs even while a collective or a driver holds the
    interpreter, and knows nothing of wall-clock time. The exit code is 1, so that `accelerate launch --max_restarts`
    starts the run again.
    """

    def __init__(self, output_dir: str | Path, rank: int, hang_minutes: float | None) -> None:
        self._heartbeat = Path(output_dir) / "heartbeats" / f"rank_{rank}.json"
        self._stacks = Path(output_dir) / "hangs" / f"rank_{rank}.txt"
        self._seconds = 60 * hang_minutes if hang_minutes else None
        self._armed = self._written = float("-inf")

    def __enter__(self) -> "Watchdog":
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._stacks, "a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._stacks.stat().st_size:
            self._stacks.unlink()
            with contextlib.suppress(OSError):  # another process's file is still there
                self._stacks.parent.rmdir()

    def beat(self, step: int, doing: str) -> None:
        """Called at every micro-batch, held-out batch and save."""
        now = time.monotonic()
        if self._seconds is not None and now - self._armed > min(REARM_SECONDS, self._seconds / 10):
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)
            self._armed = now
        if now - self._written > WRITE_SECONDS:
            self._write({"step": step, "doing": doing, "time": time.time(), "pid": os.getpid()})
            self._written = now

    def _write(self, record: dict[str, object]) -> None:
        # Neither flushed to disk nor missed when the disk is full: metrics and checkpoints will say so.
        with contextlib.suppress(OSError):
            self._heartbeat.parent.mkdir(parents=True, exist_ok=True)
            beside = self._heartbeat.with_suffix(".tmp")
            beside.write_text(json.dumps(record) + "\n", encoding="utf-8")
            os.replace(beside, self._heartbeat)
