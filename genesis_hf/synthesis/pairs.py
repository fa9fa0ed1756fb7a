"""Scored answers → pairs: what may be chosen and rejected, and mean lengths that are alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genesis_hf.style.text import visible, words_of
from genesis_hf.synthesis.judge import Judgement

NOT_FIT, FLIPPED = "no answer fit to be chosen", "the verdict flips with the order"
UNKNOWN, FAILED = "no verdict that can be read", "a call failed"
"""Some of the reasons why no pair came of a prompt."""

JUDGE = -1
"""Instead of a provider's number: the judge, who writes bland answers."""


@dataclass(frozen=True)
class Candidate:
    """An answer to a prompt, with what is known of it.

    Attributes:
        provider: number of who wrote it, in the recipe's order.
        number: which of that provider's answers to the prompt it is.
        stopped: whether it ended by itself; None: unknown.
        tokens: as the provider counts; None: unknown.
        fault: why it can't be chosen; None: it can.
    """

    provider: int
    number: int
    answer: str
    stopped: bool | None
    tokens: int | None
    fault: str | None = None

    @property
    def can_be_chosen(self) -> bool:
        """Nothing is wrong with it, and it was not cut."""
        return self.fault is None and self.stopped is not False


UNITS = ("words", "characters", "tokens")
"""In which lengths are measured; tokens only where every provider counts them."""

Lengths = tuple[int, ...]
"""Of an answer, in each of `UNITS`, or in all but the last."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, by their places among its candidates."""

    chosen: int
    rejected: int
    margin: float
    chosen_lengths: Lengths
    rejected_lengths: Lengths


def lengths_of(candidate: Candidate, with_tokens: bool) -> Lengths:
    """Of what is visible of an answer, in words and characters; and of all of it in tokens."""
    text = visible(candidate.answer)
    return len(words_of(text)), len(text), *((candidate.tokens,) if with_tokens else ())


def pairs_of(
    candidates: Sequence[Candidate],
    scores: np.ndarray,
    judgement: Judgement | None,
    min_margin: float,
    with_tokens: bool = False,
) -> tuple[list[Pair], str]:
    """The pairs that a prompt's answers make, the widest margin first, and why there are none ("" where there are).

    Chosen is an answer without a fault that was not cut, rejected one that isn't empty; the margin exceeds
    `min_margin`, and no order in which the judge saw them turns them round.

    Args:
        scores: (candidates,)
        with_tokens: every candidate's tokens are known and count as lengths, too.
    """
    lengths = [lengths_of(candidate, with_tokens) for candidate in candidates]
    able = [place for place, candidate in enumerate(candidates) if candidate.can_be_chosen]
    if not able:
        return [], NOT_FIT
    if len({candidate.answer for candidate in candidates}) < 2:
        return [], "all answers alike"
    pairs, flips = [], False
    for chosen in able:
        for rejected, other in enumerate(candidates):
            margin = float(scores[chosen] - scores[rejected])
            if margin <= min_margin or not lengths[rejected][1] or other.answer == candidates[chosen].answer:
                continue
            if judgement is not None and judgement.flips(chosen, rejected):
                flips = True
                continue
            pairs.append(Pair(chosen, rejected, margin, lengths[chosen], lengths[rejected]))
    if pairs:
        return sorted(pairs, key=lambda pair: (-pair.margin, pair.chosen, pair.rejected)), ""
    return [], FLIPPED if flips else "margin too small"


# ---------------------------------------------------------------------------------------------------------
# Length
# ---------------------------------------------------------------------------------------------------------


def balance(options: Sequence[Sequence[Pair]], tolerance: float, max_drop: float) -> list[Pair | None]:
    """One pair of each prompt's, or none, so that mean lengths of chosen and rejected are within a tolerance.

    Begins with the widest margins. Where those are out of balance, prompts take another of their pairs, the one that
    loses least margin first; where that isn't enough, pairs are dropped, up to `max_drop` of all, each time the one
    whose loss helps most. What can't be balanced so stays out of balance.

    Args:
        options: each prompt's pairs, at least one, the widest margin first.
        tolerance: of |mean of chosen - mean of rejected| / mean of rejected, in every unit.
    """
    if not options:
        return []
    picked: list[Pair | None] = [pairs[0] for pairs in options]
    sums = np.sum([sides(pair) for pair in picked], axis=0)
    moves = [
        (pairs[0].margin - pair.margin, number, pair) for number, pairs in enumerate(options) for pair in pairs[1:]
    ]
    for _, number, pair in sorted(moves, key=lambda move: move[:2]):
        if imbalance(sums) <= tolerance:
            return picked
        changed = sums - sides(picked[number]) + sides(pair)
        if cost(changed) < cost(sums):
            sums, picked[number] = changed, pair
    each = np.array([sides(pair) for pair in picked])
    for _ in range(int(max_drop * len(picked))):
        if imbalance(sums) <= tolerance:
            break
        without = cost(sums - each)
        without[[number for number, pair in enumerate(picked) if pair is None]] = np.inf
        number = int(without.argmin())
        if without[number] >= cost(sums):
            break
        sums, picked[number] = sums - each[number], None
    return picked


def sides(pair: Pair) -> np.ndarray:
    """(2, units): lengths of chosen and rejected."""
    return np.array([pair.chosen_lengths, pair.rejected_lengths], dtype=np.float64)


def apart(sums: np.ndarray) -> np.ndarray:
    """(…, 2, units) summed lengths → (…, units): how far they lie apart, relative to the rejected ones."""
    chosen, rejected = np.moveaxis(sums, -2, 0)
    return np.abs(chosen - rejected) / np.maximum(rejected, 1)


def imbalance(sums: np.ndarray) -> float:
    """What the tolerance is about: the unit in which they lie apart most."""
    return float(apart(sums).max())


def cost(sums: np.ndarray) -> Any:
    """What is made smaller step by step; of squares, so that a step may help one unit more than it harms another."""
    return (apart(sums) ** 2).sum(axis=-1)


def describe_balance(pairs: Sequence[Pair], tolerance: float) -> dict[str, Any]:
    """Mean lengths of both sides in each unit, and how far they lie apart relative to the rejected ones."""
    if not pairs:
        return {"pairs": 0, "lengths": {}, "balanced": None}
    sums = np.sum([sides(pair) for pair in pairs], axis=0)
    lengths = {}
    for unit, chosen, rejected in zip(UNITS, *sums.tolist(), strict=False):
        means = {"chosen": chosen / len(pairs), "rejected": rejected / len(pairs)}
        lengths[unit] = {**means, "difference": (chosen - rejected) / max(rejected, 1)}
    return {"pairs": len(pairs), "lengths": lengths, "balanced": bool(imbalance(sums) <= tolerance)}


def differences(described: dict[str, Any]) -> str:
    """`words +2.1 %, characters -4.0 %`: what chosen answers have more than rejected ones."""
    return ", ".join(f"{unit} {100 * figures['difference']:+.1f} %" for unit, figures in described["lengths"].items())
