"""Rows people have → preference pairs."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from genesis_hf.chat import INPUT_MARK, Message
from genesis_hf.conversations.checks import Fault, check_messages
from genesis_hf.conversations.rows import Row
from genesis_hf.conversations.shapes import from_messages, from_sharegpt


@dataclass(frozen=True)
class Pair:
    """A preference: two answers to the same conversation, which ends with a user's or a tool's turn."""

    prompt: list[Message]
    chosen: str
    rejected: str


def to_pair(row: Row) -> Pair:
    """The preference of a row with `chosen` and `rejected`.

    Each is a text, a message or a list of messages. The conversation before them is `prompt` (text or messages),
    `messages` or `conversations`; without one, what the two lists of messages begin with alike.

    Raises:
        Fault: a missing, empty or equal answer; a prompt that doesn't end with a user's or tool's turn.
    """
    if "chosen" not in row or "rejected" not in row:
        raise Fault("no chosen and rejected")
    try:
        chosen, rejected = as_messages(row["chosen"], "assistant"), as_messages(row["rejected"], "assistant")
        key = next((k for k in ("prompt", "messages", "conversations") if row.get(k)), None)
        if key is None:
            prompt = [c for c, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))]
        else:
            prompt = as_messages(row[key], "user")
        chosen, rejected = drop_prompt(prompt, chosen), drop_prompt(prompt, rejected)
        if row.get("system") and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": row["system"]}, *prompt]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise Fault("not of a preference's shape") from None
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise Fault(f"{name} is not one answer")
        if not answer[0]["content"].strip():
            raise Fault(f"empty {name}")
        check_messages([*prompt, *answer])
    if chosen == rejected:
        raise Fault("chosen equals rejected")
    return Pair(prompt, chosen[0]["content"], rejected[0]["content"])


def as_messages(value: Any, role: str) -> list[Message]:
    """Messages of a text (of that role), a message or a list of them, in role/content or from/value form."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    messages = [value] if isinstance(value, dict) else value
    if messages and "from" in messages[0]:
        return from_sharegpt({"conversations": messages}, INPUT_MARK)
    return from_messages({"messages": messages}, INPUT_MARK)


def drop_prompt(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """The answer alone, where a row repeats the whole conversation in it."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
