"""Open-Assistant's message trees: rows of single messages → trees; the best path; the replies as people ranked them."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.conversations.checks import Fault, Row
from genesis_hf.conversations.turns import ROLE_NAMES, read_text

Node = dict[str, Any]
"""A message: `text`, `role`, `replies`, perhaps `rank` (0 is the best) and `deleted`."""


def is_tree(row: Row) -> bool:
    """Whether a row is a whole tree: a `prompt` with replies."""
    return isinstance(row.get("prompt"), dict) and "text" in row["prompt"]


def is_message(row: Row) -> bool:
    """Whether a row is one message of a tree."""
    return {"message_id", "text", "role"} <= row.keys() and "prompt" not in row


def grow_trees(rows: Iterable[tuple[str, Row | Fault]]) -> list[tuple[str, Row | Fault]]:
    """The trees of rows that hold a message each, where the tree's first row stands; other rows stay as they are.

    A reply to a message that isn't there is a `Fault`.
    """
    rows = list(rows)
    nodes = {row["message_id"]: {**row, "replies": []} for _, row in rows if isinstance(row, dict) and is_message(row)}
    trees: list[tuple[str, Row | Fault]] = []
    for where, row in rows:
        if isinstance(row, Fault) or not is_message(row):
            trees.append((where, row))
        elif row.get("parent_id") is None:
            trees.append((where, {"prompt": nodes[row["message_id"]]}))
        elif row["parent_id"] in nodes:
            nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
        else:
            trees.append((where, Fault("a reply to a message that is missing")))
    return trees


def best_path(row: Row) -> list[Message]:
    """The first prompt and the best-ranked reply each time, as far as the assistant answers.

    Raises:
        Fault: nobody answered.
    """
    path = best_answered(row["prompt"])
    if not path:
        raise Fault("a question that nobody answered", malformed=False)
    return [message_of(node) for node in path]


def best_answered(node: Node) -> list[Node]:
    """The path from a message to an assistant's reply, by the best reply each time; empty where none leads to one.

    Of replies without a rank, as a user's are, the first that the assistant answered counts.
    """
    for reply in sorted_replies(node):
        path = best_answered(reply)
        if path:
            return [node, *path]
    return [node] if role_of(node) == "assistant" else []


def ranked_replies(row: Row) -> Iterator[tuple[list[Message], list[str]]]:
    """Every conversation of the tree that has two ranked answers or more, and those answers, best first."""
    paths = [[row["prompt"]]]
    while paths:
        path = paths.pop()
        replies = sorted_replies(path[-1])
        ranked = [read_text(reply["text"]) for reply in replies if rank_of(reply) < math.inf]
        if role_of(path[-1]) == "user" and len(ranked) > 1:
            yield [message_of(node) for node in path], ranked
        paths += [[*path, reply] for reply in reversed(replies)]


def sorted_replies(node: Node) -> list[Node]:
    """Replies that nobody deleted, best first, those without a rank last."""
    return sorted((reply for reply in node.get("replies") or [] if not reply.get("deleted")), key=rank_of)


def rank_of(node: Node) -> float:
    """0 is the best; infinity where there is none (a table may hold NaN)."""
    rank = node.get("rank")
    return math.inf if rank is None or math.isnan(rank) else rank


def role_of(node: Node) -> str:
    return ROLE_NAMES.get(node["role"], node["role"])


def message_of(node: Node) -> Message:
    return {"role": role_of(node), "content": read_text(node["text"])}
