"""Turns as people write them → messages: role names, parts of a content, reasoning, tool calls."""

import json
import re
from collections.abc import Mapping
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.chat_turns import flatten_conversation
from genesis_hf.conversations.checks import NOT_TEXT, Fault
from genesis_hf.data.records import SHAREGPT_ROLES

ROLE_NAMES = {
    **SHAREGPT_ROLES,
    "developer": "system",
    "instruction": "user",
    "prompter": "user",
    "ai": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "response": "assistant",
    "tool_call": "assistant",
    "function_response": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
"""Role names, in small letters → ours; ours stand for themselves, any other is a fault."""

CALL_ROLES = ("function_call", "tool_call")
"""Role names of turns whose content is a call."""

CONTENT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TRAINED_KEYS = ("loss_weight", "weight", "train", "trained")
"""0 or false under one of these says that an assistant's turn is context only."""

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "function_call", "tool_use")


def read_conversation(turns: Any, tools: Any = None, system: Any = None) -> list[Message]:
    """Messages of a list of turns, with the tools and the system text that stand beside it, as plain text turns.

    Raises:
        Fault: a content that isn't text, a call or tools that aren't JSON.
        KeyError, TypeError, AttributeError, IndexError, StopIteration: no list of turns.
    """
    messages = read_turns(turns)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": read_text(system)})
    return flatten(messages, tools)


def flatten(messages: list[Message], tools: Any = None) -> list[Message]:
    """Tools, calls and reasoning as text in the turns; tools are not written where the system turn lists them."""
    for message in messages:
        if message.get("reasoning_content") and not message["content"] and not message.get("tool_calls"):
            raise Fault("empty assistant turn")
    listed = messages and messages[0]["role"] == "system" and "<tools>" in messages[0]["content"]
    return flatten_conversation(messages, None if listed else read_tools(tools) or None)


def read_turns(turns: Any) -> list[Message]:
    """Messages of a list of turns; texts without a role are the user's and the assistant's in turn."""
    turns = read_json(turns, "turns that are not valid JSON") if isinstance(turns, str) else turns
    if isinstance(turns, Mapping):  # Arrow's way to hold a list of objects: a list for each key
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if turns and isinstance(turns[0], Mapping) and {"input", "output"} <= turns[0].keys():  # Capybara: a round each
        turns = [text for turn in turns for text in (turn["input"], turn["output"])]
    messages: list[Message] = []
    for position, turn in enumerate(turns):
        named = {"role": ("user", "assistant")[position % 2], "content": turn} if isinstance(turn, str) else turn
        message = read_turn(named)
        if messages and is_call_of(messages[-1], message):
            calls = [*messages[-1].get("tool_calls", []), *message["tool_calls"]]
            messages[-1] = {**messages[-1], "tool_calls": calls}
        else:
            messages.append(message)
    return messages


def is_call_of(before: Message, message: Message) -> bool:
    """Whether a turn only holds calls that belong to the assistant's turn before it."""
    return before["role"] == "assistant" and "tool_calls" in message and not message["content"]


def read_turn(turn: Mapping[str, Any]) -> Message:
    """`role` and `content`; `reasoning_content`, `tool_calls` and `trained: False` where the turn has such."""
    name = first_of(turn, "role", "from")
    role = ROLE_NAMES.get(str(name).lower(), str(name).lower())
    calls = turn.get("tool_calls") or turn.get("function_call")
    key = next((key for key in CONTENT_KEYS if turn.get(key) is not None), None)
    if key is None and not calls and not any(key in turn for key in CONTENT_KEYS):
        raise KeyError("content")
    content = turn[key] if key else ""
    message: Message = {"role": role, "content": ""}
    if str(name).lower() in CALL_ROLES:
        message["tool_calls"] = read_calls(content)
    elif isinstance(content, list):
        read_parts(content, message)
    elif role == "tool":
        message["content"] = read_result(content)
    else:
        message["content"] = read_text(content)
    reasoning = next((turn[key] for key in REASONING_KEYS if turn.get(key)), None)
    if reasoning is not None:
        message["reasoning_content"] = read_text(reasoning)
    if calls:
        message["tool_calls"] = [*message.get("tool_calls", []), *read_calls(calls)]
    if role == "assistant" and any(turn.get(key) in (0, False) for key in TRAINED_KEYS if turn.get(key) is not None):
        message["trained"] = False
    return message


def read_parts(parts: list[Any], message: Message) -> None:
    """Put the parts of a content into a message: texts, reasoning, calls.

    Raises:
        Fault: a part of another kind, such as an image.
    """
    if message["role"] == "tool" and not all(isinstance(part, Mapping) and "type" in part for part in parts):
        message["content"] = read_result(parts)
        return
    for part in parts:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type") or "text"
        if kind in CALL_PARTS:
            message["tool_calls"] = [*message.get("tool_calls", []), *read_calls(first_of(part, "value", default=part))]
        elif kind in (*TEXT_PARTS, *REASONING_PARTS):
            key = "content" if kind in TEXT_PARTS else "reasoning_content"
            message[key] = message.get(key, "") + read_text(first_of(part, "text", "value", "content", kind))
        else:
            raise Fault(NOT_TEXT)


def read_text(value: Any) -> str:
    """A value that must be text."""
    if not isinstance(value, str):
        raise Fault(NOT_TEXT)
    return value


def read_result(value: Any) -> str:
    """What a tool said: text, without the mark that some data sets put around it, or a value as JSON."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    marked = re.fullmatch(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", value, re.DOTALL)
    return marked[1] if marked and "<tool_response>" not in marked[1] else value


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Tool definitions, bare or wrapped as OpenAI does: a list, a definition, or the JSON text of either.

    Raises:
        Fault: something else.
    """
    if isinstance(tools, str):
        tools = read_json(tools, "tools that are not valid JSON") if tools.strip() else []
    tools = [tools] if isinstance(tools, Mapping) else tools or []
    if not isinstance(tools, list):
        raise Fault("tools that are not a list of definitions")
    tools = [read_json(tool, "tools that are not valid JSON") if isinstance(tool, str) else tool for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise Fault("tools that are not a list of definitions")
    return [without_nulls(tool) for tool in tools]


def read_calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls as `{"name", "arguments"}`: of a call, a list of them, or the JSON text of either.

    Raises:
        Fault: text that isn't JSON, a call that names no tool.
    """
    if isinstance(calls, str):
        # Glaive writes the arguments as JSON text in single quotes.
        glaive = re.fullmatch(r"""\s*\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*'(.*)'\s*\}\s*""", calls, re.DOTALL)
        if glaive:
            calls = {"name": glaive[1], "arguments": glaive[2].replace("\\'", "'")}
        else:
            calls = read_json(calls, "a tool call that is not valid JSON")
    read = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call.get("function") or call if isinstance(call, Mapping) else call
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise Fault("a tool call without a name")
        arguments = first_of(call, "arguments", "parameters", "input", default={})
        if isinstance(arguments, str):
            text = arguments or "{}"
            arguments = read_json(text, "a tool call that is not valid JSON")
        else:
            arguments = without_nulls(arguments)
        read.append({"name": call["name"], "arguments": arguments})
    return read


def read_json(text: str, kind: str) -> Any:
    """The value of a JSON text; a `Fault` of this kind if it isn't one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Fault(kind) from None


def without_nulls(value: Any) -> Any:
    """The same without keys that are null: a table gives every object the keys of all of them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def first_of(values: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    """The value of the first of these keys that is there and not null.

    Raises:
        KeyError: none is, and there is no default.
    """
    for key in keys:
        if values.get(key) is not None:
            return values[key]
    if default is None:
        raise KeyError(keys[0])
    return default
