"""A figure over the steps in little memory, however many were logged."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

MOST_BINS = 500
"""Of a curve: at two points each, more than a screen shows side by side."""


@dataclass
class Bin:
    """What a stretch of steps was like."""

    count: int
    steps: float
    values: float
    low: float
    high: float

    def take(self, other: "Bin") -> None:
        """Another stretch becomes part of this one."""
        self.count += other.count
        self.steps += other.steps
        self.values += other.values
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)


class Curve:
    """Lowest, highest and mean value of stretches of steps; no extreme is ever lost.

    Stretches are one step wide until there are more than `most_bins`; then they join in pairs.
    """

    def __init__(self, most_bins: int = MOST_BINS) -> None:
        self._most, self._width = most_bins, 1
        self._bins: dict[int, Bin] = {}

    def add(self, step: int, value: float) -> None:
        """One logged value, finite."""
        place = step // self._width
        found = self._bins.get(place)
        if found is not None:
            found.take(Bin(1, step, value, value, value))
            return
        self._bins[place] = Bin(1, step, value, value, value)
        while len(self._bins) > self._most:
            self._join()

    def _join(self) -> None:
        self._width *= 2
        joined: dict[int, Bin] = {}
        for place, found in sorted(self._bins.items()):
            if place // 2 in joined:
                joined[place // 2].take(found)
            else:
                joined[place // 2] = found
        self._bins = joined

    def __len__(self) -> int:
        return len(self._bins)

    def bins(self) -> list[Bin]:
        """In the order of the steps."""
        return [found for _, found in sorted(self._bins.items())]

    def line(self) -> tuple[list[float], list[float]]:
        """Steps and values to draw as one line: of a stretch its lowest and its highest value, nearer one first."""
        steps: list[float] = []
        values: list[float] = []
        for found in self.bins():
            ends = [found.low, found.high] if found.high > found.low else [found.low]
            if values and abs(ends[-1] - values[-1]) < abs(ends[0] - values[-1]):
                ends.reverse()
            steps += [found.steps / found.count] * len(ends)
            values += ends
        return steps, values

    def smooth(self, share: float = 0.015) -> tuple[list[float], list[float]]:
        """Steps and values without their noise: the mean of the stretches around each, nearer ones weighing more.

        It looks ahead as far as back, a `share` of the run, so that it doesn't lag behind where a figure falls fast.
        """
        found = self.bins()
        reach = max(2, round(share * len(found)))
        means = [each.values / each.count for each in found]
        values = []
        for place in range(len(found)):
            around = range(max(0, place - reach), min(len(found), place + reach + 1))
            weights = [reach + 1 - abs(place - other) for other in around]
            total = sum(weight * means[other] for weight, other in zip(weights, around, strict=True))
            values.append(total / sum(weights))
        return [each.steps / each.count for each in found], values


def number(value: object) -> float | None:
    """A finite number as it is, anything else as None."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    # An int of 400 digits is no number to reckon with, either; of NaN every comparison is False.
    return value if known and abs(value) <= sys.float_info.max else None


def median(values: Sequence[float]) -> float | None:
    """The upper one of two in the middle."""
    return sorted(values)[len(values) // 2] if len(values) else None
