"""Whether a run goes on, how far it is, when it ends."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.dashboard.columns import Columns
from genesis_hf.dashboard.points import axes_of
from genesis_hf.files import read_json

PATIENCE_SECONDS = 120.0
"""Without news for this long, and for four times as long as news usually take, a run is no longer taken for running."""

RECENT = 50
"""Records whose speed the time left is reckoned with."""


@dataclass
class Status:
    """How a run stands.

    Attributes:
        state: running, finished, stopped (with a checkpoint of its last step), silent (no news) or empty.
        step, last_step: reached, and at the schedule's end; None where unknown.
        seconds_left: of training at the recent speed; None where unknown.
        news: when the run last wrote anything, seconds since 1970.
        patience: seconds without news after which it is no longer taken for running.
    """

    state: str
    step: int | None
    last_step: int | None
    seconds_left: float | None
    news: float | None
    patience: float


def read_status(
    folder: Path,
    recipe: dict[str, Any],
    columns: Columns,
    checkpoints: list[int],
    modified: float | None,
    now: float | None = None,
) -> dict[str, Any]:
    """The `Status` of a run as plain values.

    Args:
        modified: when metrics.jsonl last changed; a copy did so when it was made, so records' own time goes before it.
        now: seconds since 1970; default: the present.
    """
    now = time.time() if now is None else now
    step = columns.last("step")
    last_step = end_of(recipe, columns)
    pace = seconds_per_step(columns)
    logged = columns.last("time") or modified
    signs = [t for t in (logged, *heartbeats(folder)) if t is not None]
    news = min(now, max(signs)) if signs else None
    left = None
    if step is not None and last_step is not None and pace is not None:
        left = max(0.0, (last_step - step) * pace)
        left = left if math.isfinite(left) else None
    trained = "sources" in recipe and None not in (step, last_step) and step >= last_step
    finished = trained or (folder / "summary.json").is_file()
    patience = max(PATIENCE_SECONDS, 4 * usual_interval(columns))
    if step is None:
        state = "empty"
    elif finished:
        state, left = "finished", 0.0
    elif news is not None and now - news < patience:
        state = "running"
    else:
        state = "stopped" if step in checkpoints else "silent"
    return asdict(Status(state, None if step is None else int(step), last_step, left, news, patience))


def end_of(recipe: dict[str, Any], columns: Columns) -> int | None:
    """The schedule's last step: of a pretraining recipe, of a fixed number of steps, or of epochs by those done."""
    steps, anneal_at, anneal_steps = (recipe.get(key) for key in ("max_steps", "anneal_at", "anneal_steps"))
    if isinstance(anneal_at, int) and isinstance(anneal_steps, int):
        return anneal_at + anneal_steps
    if isinstance(steps, int) and steps > 0:
        return steps
    epochs, (rows, done) = recipe.get("num_train_epochs"), columns.read("epoch")
    if isinstance(epochs, (int, float)) and math.isfinite(epochs) and len(rows) and done[-1] > 0:
        return round(float(columns.read("step")[1][rows[-1]]) / float(done[-1]) * epochs)
    return None


def seconds_per_step(columns: Columns) -> float | None:
    """Of the last `RECENT` records; None where hours are unknown."""
    axes = axes_of(columns)
    if axes.hours is None or columns.length < 2:
        return None
    first = max(0, columns.length - 1 - RECENT)
    steps, hours = axes.step[-1] - axes.step[first], axes.hours[-1] - axes.hours[first]
    return float(3600 * hours / steps) if steps > 0 and hours > 0 else None


def usual_interval(columns: Columns) -> float:
    """Seconds from record to record, lately; 0 where unknown."""
    hours = axes_of(columns).hours
    if hours is None or columns.length < 2:
        return 0.0
    return float(3600 * np.diff(hours[-RECENT:]).max())


def heartbeats(folder: Path) -> list[float]:
    """When each process of the run last showed itself."""
    times = [read_json(path).get("time") for path in folder.glob("heartbeats/rank_*.json")]
    return [float(t) for t in times if isinstance(t, (int, float)) and math.isfinite(t)]
