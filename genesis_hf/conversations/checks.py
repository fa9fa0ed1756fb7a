"""Whether turns make a conversation that can be trained on, and what is wrong with them."""

from collections.abc import Sequence
from typing import Any

from genesis_hf.chat import ROLES, Message
from genesis_hf.data.records import encodable

Row = dict[str, Any]
"""What stands in one line of a file: values by key."""


class Fault(Exception):
    """A row that can't be used; its text is the kind of fault, under which rows are counted.

    Attributes:
        malformed: whether the row is wrong, and not merely of no use here.
    """

    def __init__(self, kind: str, malformed: bool = True) -> None:
        super().__init__(kind)
        self.malformed = malformed


NOT_TEXT = "a content that is not text"


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `Fault` unless the conversation can be trained on: turns that alternate and end with an answer."""
    check_prompt(messages)
    if messages[-1]["role"] != "assistant":
        raise Fault("ends without an answer")
    if not any(message["role"] == "assistant" and message.get("trained", True) for message in messages):
        raise Fault("nothing to train on", malformed=False)


def check_prompt(messages: Sequence[Message]) -> None:
    """Raise `Fault` unless the turns can follow each other: system first, user and assistant in turn, no empty one."""
    before = None
    for position, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise Fault(f"unknown role {str(role)[:20]!r}")
        if not isinstance(content, str):
            raise Fault(NOT_TEXT)
        if not encodable(content):
            raise Fault("a lone surrogate")
        if not content.strip() and role != "tool":
            raise Fault(f"empty {role} turn")
        if role == "system" and position > 0:
            raise Fault("a system turn that is not the first")
        if role in ("user", "assistant") and role == before:
            raise Fault(f"two {role} turns in a row")
        if role == "assistant" and before in (None, "system"):
            raise Fault("an assistant turn without a question")
        if role == "tool" and before not in ("assistant", "tool"):
            raise Fault("a tool turn that answers nobody")
        before = role
    if before in (None, "system"):
        raise Fault("no turns")
