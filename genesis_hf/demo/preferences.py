"""Preference pairs: a direct answer against the same answer hedged, or against a bland one."""

import random
from collections.abc import Iterable
from typing import Any

from genesis_hf.demo.conversations import (
    SYSTEM_PROMPTS,
    SYSTEM_SHARE,
    Fact,
    ask,
    fill,
    hedge,
    rounds,
)

GENERIC_SHARE = 0.3
GENERIC_ANSWERS = (
    "It is a {kind} that does various things in Python programs.",
    "There are many ways to use this {kind} in a program.",
    "It is a useful part of Python that many people like.",
    "It can be used for different purposes in your own code.",
    "This is something that can be helpful in a number of situations.",
    "Python has a lot of things like this, and each is useful.",
    "It does what its name says, as you will see.",
)
"""About as long as a direct answer, so that their length is not what tells them apart."""
Pair = dict[str, list[dict[str, str]]]


def make_preferences(facts: list[Fact], count: int, seed: str, taken: Iterable[str] = ()) -> list[Pair]:
    """Up to `count` pairs of conversational `prompt`, `chosen` and `rejected`.

    Seven in ten rejected answers are the direct one hedged in front, inside or at the end; the others say nothing.

    Args:
        facts: what to ask about; each is used before one is used again.
        taken: questions that must not be asked.
    """
    rng = random.Random(seed)
    used = set(taken)
    pairs: list[Pair] = []
    for fact, topic in rounds(facts, rng):
        if len(pairs) == count:
            break
        exchange = ask(fact, topic, rng)
        if exchange.question in used:
            continue
        used.add(exchange.question)
        prompt = [{"role": "user", "content": exchange.question}]
        if rng.random() < SYSTEM_SHARE:
            prompt.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        if rng.random() < GENERIC_SHARE:
            rejected = fill(rng.choice(GENERIC_ANSWERS), {"kind": fact.entry.kind})
        else:
            rejected = hedge(exchange.answer, rng)
        pairs.append({"prompt": prompt, "chosen": answer(exchange.answer), "rejected": answer(rejected)})
    return pairs


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def describe_preferences(pairs: list[Pair]) -> dict[str, Any]:
    """Mean lengths of both sides in words, and their ratio (null without pairs)."""
    if not pairs:
        return {"pairs": 0, "chosen_words": None, "rejected_words": None, "length_ratio": None}
    chosen = sum(len(p["chosen"][0]["content"].split()) for p in pairs) / len(pairs)
    rejected = sum(len(p["rejected"][0]["content"].split()) for p in pairs) / len(pairs)
    return {
        "pairs": len(pairs),
        "chosen_words": round(chosen, 2),
        "rejected_words": round(rejected, 2),
        "length_ratio": round(chosen / rejected, 3),
    }
