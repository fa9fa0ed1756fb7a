"""Data sets for tool calling, each in its own shape → messages."""

import json
import re
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.conversations.checks import Fault, Row
from genesis_hf.conversations.turns import flatten, read_calls, read_conversation, read_result, read_text

# ---------------------------------------------------------------------------------------------------------
# A question and its calls: xLAM, BFCL
# ---------------------------------------------------------------------------------------------------------


def from_xlam(row: Row, input_mark: str) -> list[Message]:
    """`query`, `tools` and `answers`, the calls."""
    answer = {"role": "assistant", "content": "", "tool_calls": read_calls(row["answers"])}
    return flatten([{"role": "user", "content": read_text(row["query"])}, answer], row["tools"])


def from_bfcl(row: Row, input_mark: str) -> list[Message]:
    """Berkeley's function calling: `question` [[turns]], `function`, and `ground_truth` [{name: {argument: [values]}}].

    Of the acceptable values the first is taken; an argument that may as well be left out (`""` stands first) is.
    """
    if len(row["question"]) != 1:
        raise Fault("a question of several rounds, whose tool results are not in the row", malformed=False)
    required = {tool["name"]: set(tool.get("parameters", {}).get("required") or []) for tool in row["function"]}
    calls = [
        {"name": name, "arguments": first_acceptable(arguments, required.get(name, set()))}
        for call in row["ground_truth"]
        for name, arguments in call.items()
    ]
    turns = [*row["question"][0], {"role": "assistant", "tool_calls": calls}]
    return read_conversation(turns, row["function"])


def first_acceptable(arguments: dict[str, Any], required: set[str] = frozenset()) -> dict[str, Any]:
    """The arguments with the first of their acceptable values; objects inside hold such lists too."""
    values = {
        name: choices[0] if isinstance(choices, list) and choices else choices for name, choices in arguments.items()
    }
    return {name: nested(value) for name, value in values.items() if value != "" or name in required}


def nested(value: Any) -> Any:
    if isinstance(value, list):
        return [nested(item) for item in value]
    return first_acceptable(value) if isinstance(value, dict) else value


# ---------------------------------------------------------------------------------------------------------
# Dialogues: Glaive, the Schema-Guided Dialogue data, MOSS
# ---------------------------------------------------------------------------------------------------------


def from_glaive(row: Row, input_mark: str) -> list[Message]:
    """Glaive's first form: `system` with the tools in it, `chat` of USER:, ASSISTANT: and FUNCTION RESPONSE:."""
    head, *sections = re.split(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):", row["chat"])
    if head.strip():
        raise Fault("not of the shape glaive")
    turns: list[dict[str, Any]] = []
    for name, content in zip(sections[::2], sections[1::2], strict=True):
        content = content.replace("<|endoftext|>", "").strip()
        text, called, call = content.partition("<functioncall>")
        if name == "FUNCTION RESPONSE":
            turns.append({"role": "tool", "content": content})
        elif called:
            turns.append({"role": "assistant", "content": text.strip(), "tool_calls": read_calls(call.strip())})
        else:
            turns.append({"role": name.lower(), "content": content})
    system, tools = split_glaive_system(row.get("system") or "")
    return read_conversation(turns, tools, system)


def split_glaive_system(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The system text and the tools that it lists, one JSON object after the other."""
    text = text.removeprefix("SYSTEM:").strip()
    told, found, listed = text.partition("with access to the following functions. Use them if required -")
    if not found:
        return text, []
    tools, decoder = [], json.JSONDecoder()
    while listed := listed.lstrip(" \n\t,"):
        try:
            tool, end = decoder.raw_decode(listed)
        except (ValueError, RecursionError):
            raise Fault("tools that are not valid JSON") from None
        tools.append(tool)
        listed = listed[end:]
    return told.strip() + ".", tools


def from_sgd(row: Row, input_mark: str) -> list[Message]:
    """Schema-Guided Dialogue: `turns` of speaker and utterance, with service calls and results beside or in `frames`.

    A call is a turn before the utterance that tells of its result. Where the row doesn't hold the result, such an
    utterance is context only: a model must not learn to tell what no tool said.
    """
    turns: list[dict[str, Any]] = []
    for turn in row["turns"]:
        calls, results = service_calls(turn)
        if calls:
            turns.append({"role": "assistant", "content": "", "tool_calls": calls})
            turns.append({"role": "tool", "content": read_result(results) if results is not None else ""})
        role = {"USER": "user", "SYSTEM": "assistant"}[turn["speaker"]]
        known = not calls or results is not None
        turns.append({"role": role, "content": turn["utterance"], **({} if known else {"trained": False})})
    return read_conversation(turns, row.get("tools"))


def service_calls(turn: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The calls of a turn, and what they returned (None: not in the row)."""
    frames = turn.get("frames") or []
    calls = turn.get("service_calls") or [frame["service_call"] for frame in frames if frame.get("service_call")]
    results = turn.get("service_results")
    for frame in frames:
        if frame.get("service_results") is not None:
            results = [*(results or []), *frame["service_results"]]
    return [{"name": call["method"], "arguments": call["parameters"]} for call in calls], results


def from_moss(row: Row, input_mark: str) -> list[Message]:
    """MOSS: `chat` of turn_1, turn_2 …, each with Human, Inner Thoughts, Commands, Tool Responses and MOSS."""
    turns: list[dict[str, Any]] = []
    for name in sorted(row["chat"], key=lambda name: int(name.removeprefix("turn_"))):
        turn = {key: unmark(text) for key, text in row["chat"][name].items() if text is not None}
        turns.append({"role": "user", "content": turn["Human"]})
        thought, command = turn.get("Inner Thoughts"), turn.get("Commands")
        answer = {"role": "assistant", "content": turn["MOSS"]}
        if command:
            turns.append(
                {"role": "assistant", "content": "", "tool_calls": read_commands(command), "thinking": thought}
            )
            turns.append({"role": "tool", "content": turn.get("Tool Responses") or ""})
        elif thought:
            answer["thinking"] = thought
        turns.append(answer)
    return read_conversation(turns, row.get("tools"), (row.get("meta_instruction") or "").strip())


def unmark(text: str) -> str:
    """A field's text without MOSS' marks around it; empty for its `None`."""
    text = re.sub(r"\A\s*<\|[\w ]+\|>:|<eo[a-z]>\s*\Z", "", text).strip()
    return "" if text == "None" else text


def read_commands(text: str) -> list[dict[str, Any]]:
    """MOSS' commands, such as `Search("rivers of France"), Calculate("3*4")`."""
    calls = re.findall(r'(\w+)\("(.*?)"\)(?=\s*(?:,|\Z))', text, re.DOTALL)
    if not calls:
        raise Fault("a tool call that can't be read")
    return [{"name": name, "arguments": {"input": argument}} for name, argument in calls]
