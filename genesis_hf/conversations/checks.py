"""Whether turns make a conversation that can be trained on, and what is wrong with them."""

import re
from collections.abc import Sequence
from typing import Any

from genesis_hf.chat import ROLES, Message


class Fault(Exception):
    """A row that can't be used; its text is the kind of fault, under which rows are counted."""


def text_of(content: Any) -> str:
    """A content's text: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        return "".join(part.get("text", part.get("value")) for part in content)
    raise Fault("a content that is not text")


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `Fault` unless the conversation can be trained on: turns that alternate and end with an answer."""
    check_prompt(messages)
    if messages[-1]["role"] != "assistant":
        raise Fault("ends without an answer")


def check_prompt(messages: Sequence[Message]) -> None:
    """Raise `Fault` unless the turns can follow each other: system first, user and assistant in turn, no empty one."""
    before = None
    for position, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise Fault(f"unknown role {str(role)[:20]!r}")
        if not isinstance(content, str):
            raise Fault("a content that is not text")
        if re.search("[\ud800-\udfff]", content):
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
