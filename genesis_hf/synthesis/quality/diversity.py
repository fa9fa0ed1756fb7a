"""How varied conversations are: distinct n-grams, openings, coverage of what was asked for, lengths."""

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from genesis_hf.style.text import visible, words_of
from genesis_hf.synthesis.constitution import Constitution

OPENING = 4
"""Words of an opening."""

SAMPLED = 1000
"""Conversations whose n-grams are counted: distinct-n falls with the amount of text, so it is always the same one."""

SHOWN = 20
"""Openings, missing topics and samples that a report lists."""


class Diversity:
    """Conversations counted one by one; of their texts it holds a sample."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: dict[str, Counter] = {
            key: Counter() for key in ("category", "topic", "persona", "language", "turns", "thinking", "combination")
        }
        self.openings: Counter[str] = Counter()
        self.lengths = array("l")
        self._sample: list[tuple[bytes, int, dict[str, Any]]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Count one conversation with its `index`, `messages` and what was asked for."""
        answers = answers_of(record)
        for answer in answers:
            words = words_of(visible(answer))
            self.lengths.append(len(words))
            self.openings[" ".join(words[:OPENING])] += 1
        category, topic, persona = (record.get(key) for key in ("category", "topic", "persona"))
        self.counts["category"][category] += 1
        self.counts["topic"][category, topic] += 1
        self.counts["persona"][persona] += 1
        self.counts["language"][record.get("language")] += 1
        self.counts["turns"][len(answers)] += 1
        self.counts["thinking"][category] += bool(record.get("thinking"))
        self.counts["combination"][category, topic, persona] += 1
        # The smallest hashes: a sample that doesn't depend on the order. The greatest of them is replaced first.
        digest = hashlib.sha256(f"{self.seed} {record['index']}".encode()).digest()
        entry = (bytes(255 - byte for byte in digest), record["index"], record)
        if len(self._sample) < SAMPLED:
            heapq.heappush(self._sample, entry)
        elif entry > self._sample[0]:
            heapq.heapreplace(self._sample, entry)

    def sample(self, count: int = SHOWN) -> list[dict[str, Any]]:
        """Conversations drawn with the seed."""
        return [record for _, _, record in sorted(self._sample, key=lambda entry: entry[:2], reverse=True)[:count]]

    def figures(self, constitution: Constitution) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "distinct": self._distinct(),
            "openings": self._openings(),
            "lengths": describe_lengths(self.lengths),
            "coverage": self._coverage(constitution),
        }

    def _distinct(self) -> dict[str, Any]:
        answers = [words_of(visible(a)) for record in self.sample(SAMPLED) for a in answers_of(record)]
        words = sum(map(len, answers))
        shares = {f"distinct_{n}": distinct_share(answers, n) for n in (1, 2, 3)}
        return {"conversations": len(self._sample), "words": words, **shares}

    def _openings(self) -> dict[str, Any]:
        total = self.openings.total()
        most = sorted(self.openings.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        return {
            "answers": total,
            "distinct": len(self.openings),
            "most_common_share": most[0][1] / total if total else None,
            "most_common": [{"words": words, "answers": count} for words, count in most],
        }

    def _coverage(self, constitution: Constitution) -> dict[str, Any]:
        topics = {(c.name, topic) for c in constitution.categories for topic in c.topics or constitution.topics}
        used = {pair for pair in self.counts["topic"] if pair in topics}
        missing = sorted(f"{category}: {topic}" for category, topic in topics - used)
        personas = set(constitution.personas)
        return {
            "topics": {"asked": len(topics), "found": len(used), "missing": missing[:SHOWN]},
            "personas": {"asked": len(personas), "found": len(personas & set(self.counts["persona"]))},
            "combinations": len(self.counts["combination"]),
            "most_of_one_combination": max(self.counts["combination"].values(), default=0),
        }


def answers_of(record: dict[str, Any]) -> list[str]:
    """The assistant's contents."""
    return [message["content"] for message in record["messages"] if message["role"] == "assistant"]


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Distinct word n-grams over all of them; None without any (distinct-n of Li et al., 2016, arXiv:1510.03055)."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Mean, quantiles and a histogram of words an answer."""
    if not len(lengths):
        return {"answers": 0}
    values = np.array(lengths)
    counts, edges = np.histogram(values, bins=min(40, max(1, int(np.ptp(values)))))
    quantiles = {f"p{q}": float(np.percentile(values, q)) for q in (5, 50, 95)}
    histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
    return {"answers": len(values), "mean": float(values.mean()), **quantiles, "histogram": histogram}
