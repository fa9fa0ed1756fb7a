"""What happened once in a run: resumes, skipped steps, spikes, memory, data that repeats."""

from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.dashboard.columns import Columns
from genesis_hf.dashboard.samples import json_lines
from genesis_hf.dashboard.tail import Tail

SHOWN = 500
"""Events that the page shows, the newest; of a kind that comes by the thousand, all others' are still among them."""

EACH_KIND = 200
"""The newest events of one kind that are kept."""

LAST_TIME = 8.64e12
"""Seconds since 1970 up to which a browser knows dates."""

CHARACTERS = 600
"""Of an event's text."""


class Events:
    """events.jsonl as it grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tail = Tail(folder / "events.jsonl")
        self._start_over()

    def refresh(self) -> bool:
        """Read what is new; whether anything was."""
        lines, anew = self.tail.read()
        if anew:
            self._start_over()
        for record in json_lines(lines):
            step, kind, seconds = record.get("step"), str(record.get("event", "event"))[:40], record.get("time")
            self.counts[kind] += 1
            kept = self.kept.setdefault(kind, deque(maxlen=EACH_KIND))
            kept.append(
                {
                    "step": step if isinstance(step, int) else 0,
                    "kind": kind,
                    "text": str(record.get("text", ""))[:CHARACTERS],
                    "time": seconds if isinstance(seconds, (int, float)) and 0 < seconds < LAST_TIME else None,
                }
            )
        return bool(lines) or anew

    def view(self, columns: Columns) -> dict[str, Any]:
        """`shown`, by step, with what follows from other files; `counts` of each kind, in all."""
        shown = [event for kept in self.kept.values() for event in kept]
        counts = Counter(self.counts)
        for event in [*lost_losses(columns), *hangs(self.folder, columns)]:
            shown.append(event)
            counts[event["kind"]] += 1
        shown.sort(key=lambda event: event["step"])
        return {"shown": shown[-SHOWN:], "counts": dict(counts)}

    def _start_over(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: dict[str, deque[dict[str, Any]]] = {}


def lost_losses(columns: Columns) -> list[dict[str, Any]]:
    """Records of a training step whose loss is null: it was not finite."""
    trained, losses = columns.read("learning_rate")[0], columns.read("loss")[0]
    if len(trained) == len(losses):
        return []
    lost = columns.read("step")[1][np.setdiff1d(trained, losses)][-EACH_KIND:]
    text = "the loss was not finite"
    return [{"step": int(step), "kind": "not finite", "text": text, "time": None} for step in lost]


def newest_loss_is_lost(columns: Columns) -> bool:
    """Whether the newest record of a training step has no finite loss."""
    trained, losses = columns.read("learning_rate")[0], columns.read("loss")[0]
    return len(trained) > 0 and (not len(losses) or losses[-1] < trained[-1])


def hangs(folder: Path, columns: Columns) -> list[dict[str, Any]]:
    """Stacks that a process left behind when it stood still."""
    found = []
    for path in sorted(folder.glob("hangs/rank_*.txt")):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_size:
            text = f"a process stood still and was ended; its stacks are in hangs/{path.name}"
            step = int(columns.last("step") or 0)
            found.append({"step": step, "kind": "hang", "text": text, "time": status.st_mtime})
    return found
