"""Preference pairs: a direct answer against the same answer hedged, or against a bland one."""

import random
from collections.abc import Iterable
from typing import Any

from genesis_hf.demo.conversations import (
    SYSTEM_PROMPTS,
    SYSTEM_SHARE,
    Exchange,
    Fact,
    ask,
    fill,
    hedge,
    rounds,
    topics_of,
)

GENERIC_SHARE = 0.3
FULLER_SHARE = 0.6
"""Share of the hedged pairs whose chosen answer says one thing more where the other only doubts.

A hedge adds words; without these, preference training could learn that the shorter answer wins.
"""
GENERIC_ANSWERS = (
    "It is a {kind} that does various things in Python.",
    "It depends on what you want to do with it.",
    "It is part of Python and can be used in many programs.",
    "There are many ways to use it in your code.",
    "It is a useful {kind} that many people use.",
    "It can be used for different purposes.",
    "It is something in Python's standard library.",
)
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
        chosen = exchange.answer
        if rng.random() < GENERIC_SHARE:
            rejected = fill(rng.choice(GENERIC_ANSWERS), {"kind": fact.entry.kind})
        else:
            rejected = hedge(exchange.answer, rng)
            if rng.random() < FULLER_SHARE:
                chosen = fuller(exchange, rng)
        pairs.append({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)})
    return pairs


def fuller(exchange: Exchange, rng: random.Random) -> str:
    """The direct answer and one more fact; a summary, asked for as one sentence, stays one."""
    others = [t for t in topics_of(exchange.fact) if t not in (exchange.topic, "summary")]
    if exchange.topic == "summary" or not others:
        return exchange.answer
    return f"{exchange.answer} {ask(exchange.fact, rng.choice(others), rng).answer}"


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
