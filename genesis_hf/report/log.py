"""What a training logged, read line by line: a run of 500,000 logged steps takes no more memory than a short one."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from genesis_hf.report.curve import Curve, median, number

CURVES = {
    "loss": "loss, nats a token",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "tokens_per_second": "tokens a second",
    "mfu": "model FLOPs utilisation",
    "memory_gib": "peak memory, GiB",
    "eval_loss": "held-out loss, nats a token",
    "rewards/accuracies": "pairs ranked right by gain",
    "rewards/margins": "reward margin, nats",
}
"""Figures of a line that are drawn, in this order, and their titles."""

PREFERENCE = ("rewards/chosen", "rewards/accuracies")
"""A line with such figures is of preference training: its loss is not one of text."""

LAST_STEP = 1e15
"""A line that names a later one is damaged."""

WORTH_A_BAR = 50_000_000
"""Bytes from which on reading shows a progress bar."""


@dataclass
class Log:
    """The lines of a metrics.jsonl, condensed.

    Attributes:
        lines: lines with a loss.
        first, last: the first and the last of them.
        tokens: seen up to the last line; of post-training by its own count, prompts included.
        curves: by the keys of `CURVES`.
        held_out: bits per byte by source. mixture: share of the tokens so far by source.
        tokens_before: those that a fork's parent saw before it; 0 of other runs.
        seconds: inside the loop, saving and evaluating included: new tokens over tokens a second, line by line. What a
            run did again after a crash, and its start-up, are not in it. None where lines don't say.
        joules: by the meters of all processes one after the other; None where it was not readable throughout.
        energy_said: whether lines speak of energy at all.
        unreadable: lines that are no JSON, the last one apart; it is cut while a run writes, or by a crash.
    """

    lines: int = 0
    tokens: float | None = None
    tokens_before: float = 0.0
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    held_out: dict[str, Curve] = field(default_factory=dict)
    mixture: dict[str, Curve] = field(default_factory=dict)
    seconds: float | None = None
    joules: float | None = None
    speed: float | None = None
    memory_gib: float | None = None
    waited: float | None = None
    stalled: float = 0.0
    not_finite: int = 0
    energy_said: bool = False
    unreadable: int = 0

    @property
    def preference(self) -> bool:
        return any(key in self.last for key in PREFERENCE)


def read_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a .jsonl file; None for a line that is none, except where the file ends inside of it."""
    if not path.is_file():
        return
    size = path.stat().st_size
    with (
        open(path, "rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=str(path), disable=size < WORTH_A_BAR, leave=False) as bar,
    ):
        for line in file:
            bar.update(len(line))
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                record = None
            if isinstance(record, dict):
                yield record
            elif line.endswith(b"\n") and line.strip():
                yield None


def read_log(path: Path, resumed_at: list[int], forked_at: int = 0) -> Log:
    """A metrics.jsonl; an empty `Log` where there is none.

    Args:
        resumed_at: steps after which another process went on; its meter begins at 0.
        forked_at: step of its parent at which a fork began.
    """
    start = tokens_at(path, forked_at)
    log, clock, meter, speeds = Log(tokens_before=start), Clock(start), Meter(resumed_at), array("d")
    for record in read_records(path):
        step = record and number(record.get("step"))
        if step is None or not 0 <= step < LAST_STEP:
            log.unreadable += 1
            continue
        for key in CURVES:
            add(log.curves, key, int(step), record.get(key))
        for name, figures in mapping(record.get("held_out")).items():
            add(log.held_out, name, int(step), mapping(figures).get("bits_per_byte"))
        for name, share in mapping(record.get("mixture")).items():
            add(log.mixture, name, int(step), share)
        log.tokens = highest(log.tokens, tokens_of(record))
        if "loss" not in record:
            continue
        log.lines += 1
        log.first = log.first or record
        log.last = record
        log.not_finite += number(record["loss"]) is None
        log.memory_gib = highest(log.memory_gib, number(record.get("memory_gib")))
        log.stalled += number(record.get("save_stall_seconds")) or 0.0
        log.energy_said |= "energy_joules" in record
        speed = number(record.get("tokens_per_second"))
        if speed:
            speeds.append(speed)
        clock.read(record, speed)
        meter.read(int(step), record)
    log.speed = median(speeds)
    log.seconds, log.waited = clock.seconds, clock.waited_share()
    log.joules = meter.joules()
    return log


def add(curves: dict[str, Curve], key: str, step: int, value: object) -> None:
    """A value of a line to the curve of its key, if it is one."""
    known = number(value)
    if known is not None:
        curves.setdefault(key, Curve()).add(step, known)


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def tokens_at(path: Path, step: int) -> float:
    """Tokens seen up to the step at which a fork began: back from its first line, at its own tokens a step."""
    found: list[tuple[float, float]] = []
    for record in read_records(path) if step > 0 else ():
        at, tokens = number(mapping(record).get("step")), tokens_of(mapping(record))
        if at is not None and tokens is not None and at > (found[-1][0] if found else 0):
            found.append((at, tokens))
        if len(found) == 2:
            break
    if not found:
        return 0.0
    first, tokens = found[0]
    # A fork may have other tokens a step than its parent had; only where one line is all there is, they count as one.
    before, seen = found[0] if len(found) == 2 else (0.0, 0.0)
    each = (found[-1][1] - seen) / (found[-1][0] - before)
    return min(tokens, max(0.0, tokens - max(0.0, first - step) * each))


def tokens_of(record: dict[str, Any]) -> float | None:
    return number(record.get("tokens_seen", record.get("num_tokens")))


def highest(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)


class Clock:
    """Seconds of a run's lines: a line gives the speed over the tokens since the one before."""

    def __init__(self, tokens: float) -> None:
        self.seconds: float | None = 0.0
        self._tokens, self._waited, self._said = tokens, 0.0, False

    def read(self, record: dict[str, Any], speed: float | None) -> None:
        tokens = tokens_of(record)
        if not speed or tokens is None:
            self.seconds = None
        if self.seconds is None:
            return
        passed = max(0.0, tokens - self._tokens) / speed
        self.seconds += passed
        waited = number(record.get("data_wait_share"))
        self._waited += passed * (waited or 0.0)
        self._said |= waited is not None
        self._tokens = tokens

    def waited_share(self) -> float | None:
        """Share of that time in which training waited for data; None where no line says."""
        return self._waited / self.seconds if self.seconds and self._said else None


class Meter:
    """Energy of a run's lines: each process counts from 0."""

    def __init__(self, resumed_at: list[int]) -> None:
        self._resumed = sorted(resumed_at)
        self._ended, self._now, self._step = 0.0, 0.0, 0
        self._known = True

    def read(self, step: int, record: dict[str, Any]) -> None:
        joules = number(record.get("energy_joules"))
        if joules is None:
            self._known = False
            return
        another = any(self._step <= at < step for at in self._resumed) or joules < self._now
        if another:
            self._ended += self._now
        self._now, self._step = joules, step

    def joules(self) -> float | None:
        return self._ended + self._now if self._known and self._step else None
