"""A few points that keep the extremes of many, and what stands along the axis."""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from genesis_hf.dashboard.columns import Columns

EVEN, GROWING = 800, 300
"""Points of a long series: evenly spread, and ever wider from the start, for a logarithmic axis."""

BEFORE = 100
"""Points in which all that stands before a range is sent along: what smoothing goes on from."""

FLAT = 0.005
"""Where no point's extremes lie further apart than this share of the whole curve's height, there is no band to see."""


@dataclass
class Axes:
    """For each record: its step, tokens so far and hours of training so far; None where the file doesn't say."""

    step: np.ndarray
    tokens: np.ndarray | None
    hours: np.ndarray | None

    def named(self) -> dict[str, np.ndarray]:
        """Those that are known, by name."""
        known = {"step": self.step, "tokens": self.tokens, "hours": self.hours}
        return {name: values for name, values in known.items() if values is not None}


def axes_of(columns: Columns) -> Axes:
    """Hours are training alone: the tokens of each record over its speed, or else times of neighbouring records."""
    if columns not in AXES or len(AXES[columns].step) != columns.length:
        AXES[columns] = make_axes(columns)
    return AXES[columns]


AXES: WeakKeyDictionary[Columns, Axes] = WeakKeyDictionary()
"""As they were when last asked for: the time left and every curve need them."""


def make_axes(columns: Columns) -> Axes:
    """The axes of all records so far."""
    step = columns.read("step")[1]
    tokens = next((spread(columns, key) for key in ("tokens_seen", "num_tokens") if key in columns), None)
    seconds = np.full(columns.length, np.nan)
    if tokens is not None:
        rows, speed = columns.read("tokens_per_second")
        gained = gained_tokens(columns, step, tokens)[rows]
        seconds[rows] = np.divide(gained, speed, out=np.full(len(rows), np.nan), where=speed > 0)
    rows, times = columns.read("time")
    passed = np.full(columns.length, np.nan)
    if len(rows) > 1:
        passed[rows[1:]] = np.diff(times)
    seconds = np.where(np.isfinite(seconds), seconds, passed)
    if not np.isfinite(seconds).any():
        return Axes(step, tokens, None)
    return Axes(step, tokens, np.cumsum(np.maximum(np.nan_to_num(seconds), 0)) / 3600)


def gained_tokens(columns: Columns, step: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens of each record alone. The first one of a fork counts its parent's, too: as many a step as after it."""
    gained = np.diff(tokens, prepend=0.0)
    if columns.start and len(step):
        whole = (step[1] - step[0], gained[1]) if len(step) > 1 and step[1] > step[0] else (step[0], gained[0])
        gained[0] = min(gained[0], max(0.0, step[0] - columns.start) * whole[1] / max(whole[0], 1))
    return gained


def spread(columns: Columns, key: str) -> np.ndarray:
    """A growing count for every record: where one has none, that of the record before; 0 before the first."""
    values = np.zeros(columns.length)
    rows, known = columns.read(key)
    values[rows] = known
    return np.maximum.accumulate(values)


def series(
    columns: Columns, keys: list[str], axis: str = "step", span: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Points of the keys' curves, as plain values.

    Args:
        axis: step, tokens or hours, the one that `span` is about.
        span: only the records between the two, with their neighbours at both sides; None: all.

    Returns:
        `tables`: what stands along the axis for curves that the same records have, how many `records` each point is
        made of, and how many there are in `total`; `curves`, by key: the table, `mean`, and `low` and `high` of each
        point where they tell something. Before a span, `before` of a table are numbers of records, of a curve means.
    """
    along = axes_of(columns).named()
    first, last = 0, columns.length
    if span is not None and axis in along:
        first = max(0, int(np.searchsorted(along[axis], span[0], side="left")) - 1)
        last = min(columns.length, int(np.searchsorted(along[axis], span[1], side="right")) + 1)
    tables: list[dict[str, Any]] = []
    known: dict[int, int] = {}
    curves = {}
    for key in keys:
        rows, values = columns.read(key)
        total, (begin, end) = len(rows), np.searchsorted(rows, (first, last))
        earlier, rows, values = values[:begin], rows[begin:end], values[begin:end]
        if not len(rows):
            continue
        edges = bucket_edges(len(rows))
        edges_before = begin - bucket_edges_before(begin)
        name = hash((total, rows.tobytes()))
        if name not in known:
            known[name] = len(tables)
            middle = rows[(edges[:-1] + edges[1:] - 1) // 2]
            table = {axis_name: plain(positions[middle], 12) for axis_name, positions in along.items()}
            counts = {"records": np.diff(edges).tolist(), "total": total, "before": np.diff(edges_before).tolist()}
            tables.append({**table, **counts})
        curves[key] = {"table": known[name], **reduced(values, edges)}
        if begin:
            curves[key]["before"] = plain(means(earlier, edges_before))
    return {"tables": tables, "curves": curves}


def bucket_edges(count: int) -> np.ndarray:
    """Where the values of each point begin, and the end; one value a point where there are few."""
    if count <= EVEN + GROWING:
        return np.arange(count + 1)
    growing = np.geomspace(1, count, GROWING)
    wide = growing[1:][np.diff(growing) > count / EVEN]  # from there on even ones lie closer
    turn = int(wide[0])
    early = growing[growing < turn].astype(int)
    return np.unique(np.concatenate([[0], early, np.linspace(turn, count, EVEN + 1).astype(int)]))


def bucket_edges_before(count: int) -> np.ndarray:
    """Values from an edge back to each point's begin, and 0: ever more a point, the further back."""
    if not count:
        return np.zeros(1, int)
    return np.append(np.unique(np.geomspace(1, count, BEFORE).astype(int))[::-1], 0)


def means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64, copy=False), edges[:-1]) / np.diff(edges)


def reduced(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float | None]]:
    """Mean, and where it can be seen lowest and highest value, between edges."""
    starts = edges[:-1]
    values = values.astype(np.float64, copy=False)
    found = {"mean": plain(means(values, edges))}
    if len(starts) < len(values):
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        if (high - low).max() > FLAT * (high.max() - low.min()):
            found.update(low=plain(low), high=plain(high))
    return found


def plain(values: np.ndarray, digits: int = 6) -> list[float | None]:
    """Python numbers of so many significant digits; whole ones as such, None for what isn't finite."""
    rounded = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [int(v) if v.is_integer() else v if math.isfinite(v) else None for v in rounded]
