"""Rows people have → preference pairs, or answers labelled good or bad."""

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.config import PreferenceSource
from genesis_hf.conversations.checks import Fault, Row, check_messages
from genesis_hf.conversations.rankings import RANKINGS, Ranking
from genesis_hf.conversations.shapes import NOT_OF_SHAPE, SHAPES, Shape, check_shape, read_answer, to_messages
from genesis_hf.conversations.turns import flatten

LABEL_KEYS = ("label", "kto_tag", "desirable")


@dataclass(frozen=True)
class Pair:
    """A preference: two answers to the same conversation, which ends with a user's or a tool's turn."""

    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None = None
    """By how much chosen is scored above rejected, in the source's own units; None: unknown."""


@dataclass(frozen=True)
class Labelled:
    """An answer that somebody found good or bad."""

    prompt: list[Message]
    answer: str
    desirable: bool


def to_pairs(row: Row, source: PreferenceSource, input_mark: str = "\n\n") -> list[Pair]:
    """The preferences of a row: one, or as `source.pairs` says where it holds more than two answers.

    Raises:
        Fault: a row of no shape; a missing, empty or equal answer; a prompt that doesn't end with a question; scores
            that don't differ by more than `source.min_margin`.
        UserError: no shape of the name `source.format`.
    """
    row = {key: value for key, value in row.items() if value is not None}
    name = detect_preference(row, source)
    if name == LABELLED:
        raise Fault("answers labelled good or bad, which scripts/kto.py trains on")
    try:
        rankings = RANKINGS[name].read(row, input_mark)
    except NOT_OF_SHAPE:
        raise Fault(f"not of the shape {name}") from None
    pairs, faults = [], []
    for ranking in rankings:
        try:
            pairs += pair_up(ranking, source)
        except Fault as fault:
            faults.append(fault)
    if not pairs:
        raise faults[0]
    return pairs


def pair_up(ranking: Ranking, source: PreferenceSource) -> list[Pair]:
    """Pairs of a ranking's ends, of neighbours or of all; those closer than the margin or equal make none."""
    if len(ranking.answers) < 2:
        raise Fault("one answer only", malformed=False)
    for answer in ranking.answers:
        if not answer.strip():
            raise Fault("an empty answer")
        check_messages([*ranking.prompt, {"role": "assistant", "content": answer}])
    places = range(len(ranking.answers))
    choices = {"best_worst": [(0, places[-1])], "adjacent": pairwise(places), "all": combinations(places, 2)}
    pairs = []
    fault = Fault("chosen equals rejected")
    for better, worse in choices[source.pairs]:
        margin = None if ranking.scores is None else ranking.scores[better] - ranking.scores[worse]
        if margin is not None and margin <= source.min_margin:
            fault = Fault("scores that differ by no more than min_margin", malformed=False)
        elif ranking.answers[better] != ranking.answers[worse]:
            pairs.append(Pair(ranking.prompt, ranking.answers[better], ranking.answers[worse], margin))
    if not pairs:
        raise fault
    return pairs


def to_labelled(row: Row, source: PreferenceSource, input_mark: str = "\n\n") -> list[Labelled]:
    """The answer of a labelled row; of a pair, chosen as a good one and rejected as a bad one.

    Raises:
        Fault: as `to_pairs`, or a label that says neither.
        UserError: no shape of the name `source.format`.
    """
    row = {key: value for key, value in row.items() if value is not None}
    if detect_preference(row, source) != LABELLED:
        answers = []
        for pair in to_pairs(row, source, input_mark):
            answers += [Labelled(pair.prompt, pair.chosen, True), Labelled(pair.prompt, pair.rejected, False)]
        return [answer for i, answer in enumerate(answers) if answer not in answers[:i]]
    label = next((row[key] for key in LABEL_KEYS if key in row), None)
    if label not in (0, 1):
        raise Fault("a label that is neither true nor false")
    *prompt, answer = to_messages(
        {key: value for key, value in row.items() if key not in LABEL_KEYS}, input_mark=input_mark
    )
    return [Labelled(prompt, answer["content"], bool(label))]


LABELLED = "labelled"
PREFERENCES = {**RANKINGS, LABELLED: Shape(lambda row: any(key in row for key in LABEL_KEYS), to_labelled)}


def detect_preference(row: Row, source: PreferenceSource) -> str:
    """The name of the shape that a recipe gives, or that a row's keys show."""
    if source.format != "auto":
        return check_shape(source.format, PREFERENCES)
    name = next((name for name, shape in PREFERENCES.items() if shape.fits(row)), None)
    if name is None:
        raise Fault(
            "no chosen and rejected" if any(shape.fits(row) for shape in SHAPES.values()) else "fits no known shape"
        )
    return name


def as_messages(value: Any, role: str) -> list[Message]:
    """Messages of a text (of that role), a message or a list of them, in role/content or from/value form."""
    return [{"role": role, "content": value}] if isinstance(value, str) else flatten(read_answer(value))
