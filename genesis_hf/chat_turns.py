"""Turns with tools and reasoning → turns of text alone, as `chatml.jinja` renders them."""

import json
from collections.abc import Sequence
from typing import Any

from genesis_hf.chat import END_THINK, THINK, Message

TOOLS_BEFORE = "You can call these functions:\n<tools>\n"
TOOLS_AFTER = (
    "\n</tools>\nA call is a JSON object with the function's name and its arguments, between tags:\n"
    '<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call>'
)
"""Around the functions' JSON schemas, one a line. `chatml.jinja` has the same words; the lint compares them."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's turn that hold what it thought; the first that is there counts."""


def flatten_conversation(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[Message]:
    """A conversation with tools and reasoning as `role` and `content` alone, as the ChatML template renders it.

    Args:
        messages: turns, perhaps with `tool_calls` (name and arguments, or those in `function`; arguments as an object
            or as JSON text, which is kept as it is) and `reasoning_content`, `thinking` or `reasoning`. A content that
            holds `<think>` has its reasoning in it already; None is an empty one, and an object its JSON.
        tools: JSON schemas, bare or in `{"type": "function", "function": …}`; they end the system turn.

    Raises:
        KeyError, TypeError, AttributeError: a turn without a role, a call without a name.
    """
    flat = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = as_json(content)
        if message["role"] == "assistant":
            content = flatten_answer(content, message)
        new = {"role": message["role"], "content": content}
        if message.get("trained") is False:
            new["trained"] = False
        flat.append(new)
    if tools:
        schemas = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
        text = TOOLS_BEFORE + "\n".join(map(as_json, schemas)) + TOOLS_AFTER
        if flat and flat[0]["role"] == "system":
            flat[0]["content"] += "\n\n" + text
        else:
            flat.insert(0, {"role": "system", "content": text})
    return flat


def flatten_answer(content: str, message: Message) -> str:
    """An assistant's content between its reasoning and its calls."""
    reasoning = next((message[key] for key in REASONING if message.get(key)), None)
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or call
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = as_json(arguments or {})
        name = as_json(function["name"])
        calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments or "{}"}}}\n</tool_call>')
    thought = f"{THINK}\n{reasoning}\n{END_THINK}\n\n" if reasoning and THINK not in content else ""
    return thought + "\n".join([content, *calls] if content else calls)


def as_json(value: Any) -> str:
    """JSON as a chat template's `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)
