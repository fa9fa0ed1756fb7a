"""What is asked: a pure function of constitution, seed and number, so that it can be derived again at any time.

Asking for more conversations later adds to what was asked and changes nothing of it.
"""

import functools
import hashlib
import json
from array import array
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from genesis_hf.data.order import IndexPermutation, block_permutation
from genesis_hf.errors import UserError
from genesis_hf.synthesis.constitution import FIELD, Category, Constitution, fields_of

T = TypeVar("T")

STRATUM = 100
"""Conversations of a category within which languages, turns and thinking have their shares, to within one."""


@dataclass(frozen=True)
class Plan:
    """What is decided of a conversation before anybody is asked."""

    index: int
    prompt_seed: int
    """of all that is drawn for it; below 2**31, as the seeds that providers take"""
    category: str
    template: str
    topic: str | None
    persona: str | None
    """who asks, also where the template doesn't say so"""
    language: str
    turns: int
    thinking: bool
    principles: tuple[str, ...]
    """names, in the order in which answers are reviewed by them"""
    opening: str
    """the first question, in the template's language"""


def plan_conversation(constitution: Constitution, seed: int, index: int) -> Plan:
    """Everything decided about conversation number `index`, from 0 on.

    Among the first n conversations, for any n, each category has its share to within one. Its templates take turns
    until one has no combination of topic and persona left; none is asked twice.

    Raises:
        UserError: the category has fewer combinations.
    """
    number, rank = place_in_category(tuple(category.share for category in constitution.categories), index)
    category = constitution.categories[number]
    template, topic, persona = combination(constitution, category, seed, rank)
    prompt_seed = seed_of(seed, index)
    if persona is None and constitution.personas:
        persona = constitution.personas[prompt_seed % len(constitution.personas)]
    names = category.principles or [principle.name for principle in constitution.principles]
    thinking = {True: category.thinking, False: 1 - category.thinking}
    return Plan(
        index=index,
        prompt_seed=prompt_seed,
        category=category.name,
        template=template,
        topic=topic,
        persona=persona,
        language=draw(constitution.languages, rank, seed, category.name, "language"),
        turns=draw(constitution.turns, rank, seed, category.name, "turns"),
        thinking=draw(thinking, rank, seed, category.name, "thinking"),
        principles=tuple(sorted(names, key=lambda name: seed_of(prompt_seed, name))),
        opening=fill(template, topic, persona),
    )


def check_prompts(constitution: Constitution, num_conversations: int) -> None:
    """Raise `UserError` unless every category has enough combinations for so many conversations."""
    shares = tuple(category.share for category in constitution.categories)
    schedule, _ = category_schedule(shares, schedule_size(num_conversations - 1))
    needed = np.bincount(np.frombuffer(schedule[:num_conversations], dtype=np.int32), minlength=len(shares))
    for category, count in zip(constitution.categories, needed.tolist(), strict=True):
        check_combinations(category, sum(combinations(constitution, category)), count)


def check_combinations(category: Category, there: int, needed: int) -> None:
    if needed > there:
        raise UserError(
            f"constitution: category {category.name!r} is asked for {needed:,} conversations and has {there:,} "
            "combinations of template, topic and persona: add to them, lower its share or num_conversations"
        )


def seed_of(*key: Any) -> int:
    """A number below 2**31 that follows from the key."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:4], "little") >> 1


def fill(template: str, topic: str | None, persona: str | None) -> str:
    """A template with its fields filled in; `{{` and `}}` are braces, and braces in a topic stay as they are."""
    values = {"{{": "{", "}}": "}", "{topic}": topic, "{persona}": persona}
    return FIELD.sub(lambda match: values[match[0]], template)


# ---------------------------------------------------------------------------------------------------------
# Which category, which combination, which of several values
# ---------------------------------------------------------------------------------------------------------


def place_in_category(shares: tuple[float, ...], index: int) -> tuple[int, int]:
    """The category of conversation `index`, and how many of that category come before it."""
    categories, ranks = category_schedule(shares, schedule_size(index))
    return categories[index], ranks[index]


def schedule_size(index: int) -> int:
    """A power of two above `index`, so that few schedules are made while numbers grow."""
    return 1 << max(10, index.bit_length())


@functools.lru_cache(maxsize=4)
def category_schedule(shares: tuple[float, ...], size: int) -> tuple[array, array]:
    """For each of the first `size` conversations its category, and how many of that category come before it.

    Every prefix has each category's share to within 1 - 1/(2k - 2), k categories (Tijdeman 1980, "The chairman
    assignment problem").
    """
    slack = 1 / max(2, 2 * len(shares) - 2)
    counts = [0] * len(shares)
    categories, ranks = array("i"), array("i")
    for number in range(1, size + 1):
        # (deadline, category) of those that are due; a share of 0 never is.
        due = [
            ((1 - slack - late) / share, category)
            for category, share in enumerate(shares)
            if share > 0 and (late := share * number - counts[category]) >= slack - 1e-9
        ]
        category = min(due)[1]
        categories.append(category)
        ranks.append(counts[category])
        counts[category] += 1
    return categories, ranks


def combination(
    constitution: Constitution, category: Category, seed: int, rank: int
) -> tuple[str, str | None, str | None]:
    """Template, topic and persona of a category's conversation number `rank`; None for what the template lacks."""
    counts = combinations(constitution, category)
    check_combinations(category, sum(counts), rank + 1)
    number, turn = take_turns(counts, rank)
    template = category.templates[number]
    place = int(IndexPermutation(counts[number], seed, category.name, number)(np.array([turn]))[0])
    topic = persona = None
    if "topic" in fields_of(template):
        topics = category.topics or constitution.topics
        place, chosen = divmod(place, len(topics))
        topic = topics[chosen]
    if "persona" in fields_of(template):
        persona = constitution.personas[place]
    return template, topic, persona


def combinations(constitution: Constitution, category: Category) -> list[int]:
    """How many different first questions each template makes."""
    sizes = {"topic": len(category.topics or constitution.topics), "persona": len(constitution.personas)}
    counts = []
    for template in category.templates:
        fields = fields_of(template)
        counts.append((sizes["topic"] if "topic" in fields else 1) * (sizes["persona"] if "persona" in fields else 1))
    return counts


def take_turns(counts: list[int], rank: int) -> tuple[int, int]:
    """Whose turn number `rank` is, and which of its own: all take turns, and who has had `counts` is out."""
    rounds = 0
    for level in sorted(set(counts)):
        still_in = [number for number, count in enumerate(counts) if count >= level]
        size = (level - rounds) * len(still_in)
        if rank < size:
            turn, place = divmod(rank, len(still_in))
            return still_in[place], rounds + turn
        rank -= size
        rounds = level
    raise IndexError(rank)


def draw(shares: dict[T, float], rank: int, *key: Any) -> T:
    """One of the values, each with its share of every `STRATUM` ranks to within one, in an order of the key's own."""
    stratum, place = divmod(rank, STRATUM)
    goal = stratum_order(*key, stratum)[place]
    bounds = list(accumulate(shares.values()))
    possible = [value for value, share in shares.items() if share > 0]
    return next((v for v, bound in zip(shares, bounds, strict=True) if goal < bound), possible[-1])


@functools.lru_cache(maxsize=1024)
def stratum_order(*key: Any) -> list[float]:
    """`STRATUM` numbers in [0, 1) at equal distances, in an order of the key's own."""
    offset = seed_of(*key) / 2**31
    return [(number + offset) / STRATUM for number in block_permutation(STRATUM, *key).tolist()]
