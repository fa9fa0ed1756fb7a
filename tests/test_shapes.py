"""Rows of every shape → the same conversations, preferences and labels; what is wrong with the others, by kind."""

import contextlib
import json
import re
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import turns

from genesis_hf.chat import INPUT_MARK
from genesis_hf.chat_turns import flatten_conversation
from genesis_hf.config import PreferenceSource
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.preferences import PREFERENCES, Labelled, Pair, to_labelled, to_pairs
from genesis_hf.conversations.shapes import SHAPES, to_messages
from genesis_hf.errors import UserError

Messages = list[dict[str, Any]]

NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

# Characters of several scripts, and none that a transcript's marks are made of.
text = (
    st.text(st.sampled_from("abz 019.,!?'\"\n{}éßЖ你好。🙂👩‍👧日"), min_size=1, max_size=20).map(str.strip).filter(bool)
)


@st.composite
def conversations(draw: st.DrawFn, system: bool | None = None) -> Messages:
    contents = draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
    with_system = draw(st.booleans()) if system is None else system
    return turns(*(part for pair in contents for part in pair), system=draw(text) if with_system else None)


def contents(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "system"]


def system_of(messages: Messages) -> dict[str, str]:
    return {"system": messages[0]["content"]} if messages[0]["role"] == "system" else {}


def alpaca_row(messages: Messages) -> dict[str, Any]:
    *history, question, answer = contents(messages)
    pairs = [list(pair) for pair in zip(history[::2], history[1::2], strict=True)]
    return {"instruction": question, "input": "", "output": answer, "history": pairs, **system_of(messages)}


def tree_row(messages: Messages) -> dict[str, Any]:
    """The conversation as a tree's best path, beside worse answers and one that was deleted."""
    node: dict[str, Any] = {}
    for content, role in reversed(
        list(zip(contents(messages), ["prompter", "assistant"] * len(messages), strict=False))
    ):
        replies = [node] if node else []
        if role == "prompter":
            replies = [
                {"text": "worse", "role": "assistant", "rank": 1.0, "replies": []},
                {"text": "deleted", "role": "assistant", "rank": -1, "deleted": True},
                *({**reply, "rank": 0} for reply in replies),
            ]
        node = {"text": content, "role": role, "replies": replies}
    return {"message_tree_id": "x", "prompt": node}


def alpaca_text(messages: Messages) -> str:
    headers = {"user": "### Instruction:\n", "assistant": "### Response:\n", "system": ""}
    return "\n\n".join(headers[message["role"]] + message["content"] for message in messages)


def llama2_text(messages: Messages) -> str:
    system = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n" if messages[0]["role"] == "system" else ""
    said = contents(messages)
    rounds = [f"<s>[INST] {q} [/INST] {a} </s>" for q, a in zip(said[::2], said[1::2], strict=True)]
    return "".join(rounds).replace("[INST] ", f"[INST] {system}", 1)


def named_text(messages: Messages, mark: str, gap: str) -> str:
    return gap.join(f"{mark}{NAMES[message['role']]}: {message['content']}" for message in messages)


WRITERS: dict[str, Callable[[Messages], dict[str, Any]]] = {
    "messages": lambda m: {"messages": m, "prompt": m[0]["content"], "tools": None},
    "messages as JSON": lambda m: {"messages": json.dumps(m)},
    "content parts": lambda m: {
        "messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in m]
    },
    "columns of a table": lambda m: {
        "messages": {"role": [t["role"] for t in m], "content": [t["content"] for t in m]},
        "conversations": None,
    },
    "sharegpt": lambda m: {"conversations": [{"from": SHAREGPT[t["role"]], "value": t["content"]} for t in m]},
    "system beside": lambda m: {
        "conversation": [{"role": t["role"], "content": t["content"]} for t in m if t["role"] != "system"],
        **system_of(m),
    },
    "rounds": lambda m: {
        "conversation": [{"input": q, "output": a} for q, a in zip(contents(m)[::2], contents(m)[1::2], strict=True)],
        **system_of(m),
    },
    "texts in turn": lambda m: {"data": contents(m), **system_of(m)},
    "alpaca": alpaca_row,
    "prompt and completion": lambda m: {"prompt": m[:-1], "completion": m[-1:]},
    "completion with the prompt": lambda m: {"prompt": m[:-1], "completion": m},
    "chatml": lambda m: {"text": "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in m)},
    "alpaca in a text": lambda m: {"text": alpaca_text(m)},
    "alpaca in a prompt": lambda m: {
        "prompt": alpaca_text(m[:-1]) + "\n\n### Response:\n",
        "response": m[-1]["content"],
    },
    "### Human in a text": lambda m: {"text": named_text(m, "### ", "")},
    "Human in a text": lambda m: {"text": "\n\n" + named_text(m, "", "\n\n")},
    "Human in a prompt": lambda m: {
        "prompt": "\n\n" + named_text(m[:-1], "", "\n\n") + "\n\nAssistant:",
        "response": m[-1]["content"],
    },
    "llama 2": lambda m: {"text": llama2_text(m)},
    "moss": lambda m: {
        "meta_instruction": system_of(m).get("system"),
        "chat": {
            f"turn_{i + 1}": {
                "Human": f"<|Human|>: {q}<eoh>\n",
                "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                "Commands": "<|Commands|>: None<eoc>\n",
                "Tool Responses": "<|Results|>: None<eor>\n",
                "MOSS": f"<|MOSS|>: {a}<eom>\n",
            }
            for i, (q, a) in reversed(list(enumerate(zip(contents(m)[::2], contents(m)[1::2], strict=True))))
        },
    },
    "glaive": lambda m: {
        "system": "SYSTEM: " + system_of(m).get("system", ""),
        "chat": "\n\n\n".join(
            f"{'USER' if i % 2 == 0 else 'ASSISTANT'}: {content}{' <|endoftext|>' if i % 2 else ''}"
            for i, content in enumerate(contents(m))
        ),
    },
}
WITHOUT_SYSTEM: dict[str, Callable[[Messages], dict[str, Any]]] = {
    "tree": tree_row,
    "dialogue": lambda m: {
        "turns": [{"speaker": ("USER", "SYSTEM")[i % 2], "utterance": content} for i, content in enumerate(contents(m))]
    },
}


@pytest.mark.parametrize("shape", [*WRITERS, *WITHOUT_SYSTEM])
@settings(max_examples=20)
@given(st.data())
def test_a_conversation_is_the_same_in_every_shape(shape: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(system=False if shape in WITHOUT_SYSTEM else None))
    assert to_messages({**WRITERS, **WITHOUT_SYSTEM}[shape](messages)) == messages


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "context": "c", "response": "b"}, turns(f"a{INPUT_MARK}c", "b")),
        ({"instruction": "a", "context": "", "response": "b", "category": "qa"}, turns("a", "b")),
        ({"instruction": "a", "input": "<noinput>", "output": "b"}, turns("a", "b")),
        ({"query": "a", "response": "b", "type": "x"}, turns("a", "b")),
        ({"question": "a", "answer": "b"}, turns("a", "b")),
        ({"system_prompt": "s", "question": "a", "response": "b"}, turns("a", "b", system="s")),
        ({"problem": "a", "solution": "b"}, turns("a", "b")),
        (
            {"prompt": "Below is an instruction that describes a task, paired with an input.\n\n### Instruction:\na\n\n"
             "### Input:\nc\n\n### Response:\n", "response": "b"},
            turns(f"a{INPUT_MARK}c", "b"),
        ),
        ({"text": "Hi. USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>"}, turns("a", "b", "c", "d", system="Hi.")),
        ({"messages": [{"role": "developer", "content": "s"}, *turns("a", "b")]}, turns("a", "b", system="s")),
        ({"conversations": [{"from": "Human", "value": "a"}, {"from": "bot", "value": "b"}]}, turns("a", "b")),
        ({"messages": turns("a", "b", "c")}, turns("a", "b")),
    ],
)  # fmt: skip
def test_rows_that_people_have_become_messages(row: dict, expected: list) -> None:
    assert to_messages(row, input_mark=INPUT_MARK) == expected


def test_what_a_row_takes_out_of_training_is_context() -> None:
    for mark in ({"loss_weight": 0.0}, {"weight": 0}, {"train": False}, {"trained": False}):
        first, last = turns("a", "b"), [{**turns("c")[0], **mark}, turns("c", "d")[1]]
        read = to_messages(
            {"messages": [first[0], {**first[1], **mark}, last[0], {**last[1], "weight": 1, "train": None}]}
        )
        assert read == [first[0], {**first[1], "trained": False}, *turns("c", "d")]
    with pytest.raises(Fault, match="nothing to train on") as fault:
        to_messages({"messages": [turns("a")[0], {"role": "assistant", "content": "b", "weight": 0}]})
    assert not fault.value.malformed


# ---------------------------------------------------------------------------------------------------------
# Tools
# ---------------------------------------------------------------------------------------------------------

WEATHER = {"name": "weather", "description": "It's weather.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"city": "Köln"}}
RICH = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": '{"rain": true}'},
    {"role": "assistant", "content": "Yes."},
]
PLAIN = [RICH[0], {**RICH[1], "reasoning_content": ""}, *RICH[2:]]


def call_text(call: dict[str, Any]) -> str:
    return json.dumps(call, ensure_ascii=False)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": [RICH[0], {"role": "assistant", "content": None, "thinking": "I look.", "tool_calls": [
                {"id": "1", "type": "function", "function": {**CALL, "arguments": '{"city": "Köln"}'}},
                {"name": "weather", "arguments": {"city": "Köln", "zip": None}},
            ]}, {"role": "tool", "tool_call_id": "1", "content": {"rain": True}}, RICH[3]],
             "tools": [{"type": "function", "function": {**WEATHER, "strict": None}}]},
            RICH,
        ),
        (
            {"messages": [RICH[0], {"role": "assistant", "content": [
                {"type": "reasoning", "value": "I look."}, {"type": "tool_call", "value": call_text(CALL)},
                {"type": "tool_call", "value": call_text(CALL)},
            ]}, {"role": "tool", "content": [{"type": "text", "value": '{"rain": true}'}]}, RICH[3]],
             "tools": json.dumps([WEATHER])},
            RICH,
        ),
        (
            {"conversations": [
                {"from": "human", "value": "Rain?"}, {"from": "function_call", "value": call_text(CALL)},
                {"from": "function_call", "value": call_text(CALL)}, {"from": "observation", "value": '{"rain": true}'},
                {"from": "gpt", "value": "Yes."},
            ], "tools": call_text(WEATHER)},
            PLAIN,
        ),
        (
            {"system": "SYSTEM: You help with access to the following functions. Use them if required -\n"
             f"{json.dumps(WEATHER, indent=4)}\n", "chat": "USER: Rain?\n\n\nASSISTANT: <functioncall> "
             """{"name": "weather", "arguments": '{"city": "Köln"}'} <|endoftext|>\n\n\n"""
             'FUNCTION RESPONSE: {"rain": true}\n\n\nASSISTANT: Yes. <|endoftext|>\n\n\n'},
            [{"role": "system", "content": "You help."}, PLAIN[0], {**PLAIN[1], "tool_calls": [CALL]}, *PLAIN[2:]],
        ),
        (
            {"query": "Rain?", "tools": json.dumps([WEATHER]), "answers": json.dumps([CALL, CALL])},
            PLAIN[:2],
        ),
        (
            {"question": [[RICH[0]]], "function": [WEATHER], "ground_truth": [
                {"weather": {"city": ["Köln", "Cologne"], "unit": ["", "C"], "day": [""]}},
                {"weather": {"city": ["Köln"]}},
            ]},
            PLAIN[:2],
        ),
    ],
)  # fmt: skip
def test_tool_calls_read_the_same_in_every_shape(row: dict, expected: Messages) -> None:
    assert to_messages(row) == flatten_conversation(expected, [WEATHER])


def test_acceptable_values_inside_objects() -> None:
    function = {"name": "f", "parameters": {"required": ["note"]}}
    truth = {"f": {"who": [{"name": ["Ann", "Anne"], "age": ["", 3]}], "days": [[1, 2], [3]], "note": [""]}}
    answer = to_messages({"question": [turns("a")], "function": [function], "ground_truth": [truth]})[-1]
    assert '"arguments": {"who": {"name": "Ann"}, "days": [1, 2], "note": ""}' in answer["content"]


def test_tools_that_the_system_turn_lists_are_not_listed_twice() -> None:
    system = "Call these: <tools>weather</tools>"
    row = {
        "conversations": [{"from": "system", "value": system}, {"from": "human", "value": "Rain?"},
                          {"from": "gpt", "value": "<tool_call>\n{}\n</tool_call>"},
                          {"from": "tool", "value": "<tool_response>\nyes\n</tool_response>"},
                          {"from": "gpt", "value": "Yes."}],
        "tools": json.dumps([WEATHER]),
    }  # fmt: skip
    read = to_messages(row)
    assert read[0]["content"] == system
    assert read[3] == {"role": "tool", "content": "yes"}


def test_what_no_tool_said_is_not_trained() -> None:
    call = {"method": "FindBus", "parameters": {"to": "Ulm"}}
    rows = [
        {"turns": [{"speaker": "USER", "utterance": "a", "service_calls": []},
                   {"speaker": "SYSTEM", "utterance": "b", "service_calls": [call], **results}]}
        for results in ({}, {"service_results": [{"at": "9"}]})
    ]  # fmt: skip
    rows.append({"turns": [{"speaker": "USER", "utterance": "a", "frames": [{"service": "x"}]}, {
        "speaker": "SYSTEM", "utterance": "b", "frames": [{"service_call": call, "service_results": [{"at": "9"}]}]
    }]})  # fmt: skip
    unknown, known, framed = map(to_messages, rows)
    call_turn = '<tool_call>\n{"name": "FindBus", "arguments": {"to": "Ulm"}}\n</tool_call>'
    assert [message["content"] for message in unknown] == ["a", call_turn, "", "b"]
    assert unknown[-1]["trained"] is False
    assert [message["content"] for message in known] == ["a", call_turn, '[{"at": "9"}]', "b"]
    assert "trained" not in known[-1]
    assert framed == known


def test_commands_of_moss_are_calls() -> None:
    turn = {
        "Human": "<|Human|>: a<eoh>",
        "Inner Thoughts": "<|Inner Thoughts|>: I search.<eot>",
        "Commands": '<|Commands|>: Search("x, y"), Calculate("1+1")<eoc>',
        "Tool Responses": "<|Results|>: Search => z<eor>",
        "MOSS": "<|MOSS|>: b<eom>",
    }
    calls = [{"name": "Search", "arguments": {"input": "x, y"}}, {"name": "Calculate", "arguments": {"input": "1+1"}}]
    assert to_messages({"chat": {"turn_1": turn}}) == flatten_conversation([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "thinking": "I search.", "tool_calls": calls},
        {"role": "tool", "content": "Search => z"},
        {"role": "assistant", "content": "b"},
    ])  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Rows that can't be used
# ---------------------------------------------------------------------------------------------------------


def asked(**turn: Any) -> dict[str, Any]:
    return {"messages": [*turns("a"), {"role": "assistant", **turn}]}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": turns("a")}, "ends without an answer"),
        ({"messages": turns("a", " ")}, "empty assistant turn"),
        ({"messages": turns(" ", "b")}, "empty user turn"),
        (asked(content=None), "empty assistant turn"),
        (asked(content="", thinking="hm"), "empty assistant turn"),
        ({"messages": [*turns("a"), *turns("a", "b")]}, "two user turns in a row"),
        ({"messages": [*turns("a", "b"), *turns("a", "b")[1:]]}, "two assistant turns in a row"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown role 'narrator'"),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]}, "a system turn that is not the first"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "an assistant turn without a question"),
        ({"messages": [*turns("a"), {"role": "tool", "content": "1"}]}, "a tool turn that answers nobody"),
        ({"messages": turns("a", "\ud800")}, "a lone surrogate"),
        (asked(content="", tool_calls=[{"name": "f", "arguments": {"x": "\udfff"}}]), "a lone surrogate"),
        ({"messages": []}, "not of the shape messages|no turns"),
        ({"messages": [{"role": "system", "content": "s"}]}, "no turns"),
        ({"messages": "a"}, "turns that are not valid JSON"),
        ({"messages": [{"role": "user"}]}, "not of the shape messages"),
        ({"messages": [{"content": "a"}]}, "not of the shape messages"),
        (asked(content=1), "a content that is not text"),
        (asked(content=[{"type": "image_url", "image_url": "x"}]), "a content that is not text"),
        (asked(content="", tool_calls=[{"name": "f", "arguments": "{x"}]), "a tool call that is not valid JSON"),
        (asked(content="", tool_calls=[{"arguments": {}}]), "a tool call without a name"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]},
         "a tool call that is not valid JSON"),
        ({"messages": turns("a", "b"), "tools": "{"}, "tools that are not valid JSON"),
        ({"messages": turns("a", "b"), "tools": [1]}, "tools that are not a list of definitions"),
        ({"instruction": "a", "output": None}, "fits no known shape"),
        ({"instruction": "a", "output": 1}, "a content that is not text"),
        ({"question": "a", "answer": ""}, "empty assistant turn"),
        ({"text": "a"}, "a text without turns"),
        ({"chat": "hello"}, "not of the shape glaive"),
        ({"title": "a"}, "fits no known shape"),
        ({"prompt": {"text": "a", "role": "prompter", "replies": []}}, "a question that nobody answered"),
        ({"messages": None}, "fits no known shape"),
    ],
)  # fmt: skip
def test_a_row_that_can_not_be_used_says_why(row: dict, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        to_messages(row)


KEYS = st.sampled_from(["role", "content", "from", "value", "text", "type", "name", "turn_1", "replies"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
ROW_KEYS = ["messages", "conversations", "chat", "turns", "prompt", "response", "question", "function", "ground_truth",
            "text", "tools", "chosen", "rejected", "completions", "output", "label"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(ROW_KEYS), json_values, min_size=1), st.sampled_from([*SHAPES]))
def test_no_row_ends_a_run(row: dict[str, Any], shape: str) -> None:
    readers = (
        lambda row: to_messages(row, shape),
        to_messages,
        lambda row: to_pairs(row, preferences()),
        lambda row: to_labelled(row, preferences()),
    )
    for read in readers:
        with contextlib.suppress(Fault):
            assert read(row)


def documented(heading: str) -> list[tuple[str, dict[str, Any]]]:
    """Format and example of each line of a table in the documentation."""
    page = (Path(__file__).parents[1] / "docs/conversations.md").read_text()
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (?:`(\w+)` )?\| `(\{.*\})` \|$", section, re.MULTILINE)
    names = list(accumulate((name for name, _ in lines), lambda before, name: name or before))
    return [(name, json.loads(row.replace("\\|", "|"))) for name, (_, row) in zip(names, lines, strict=True)]


def test_the_documentation_has_every_shape_and_is_right() -> None:
    assert {name for name, _ in documented("Conversations")} == set(SHAPES)
    assert {name for name, _ in documented("Preferences")} == set(PREFERENCES)
    for name, row in documented("Conversations"):
        assert next(known for known, shape in SHAPES.items() if shape.fits(row)) == name
        if name != "open_assistant_messages":  # a tree has to be made of it first
            assert to_messages(row)[-1]["role"] == "assistant"
    for name, row in documented("Preferences"):
        assert next(known for known, shape in PREFERENCES.items() if shape.fits(row)) == name
        if name not in ("open_assistant_messages", "labelled"):
            assert to_pairs(row, preferences())


def test_a_shape_nobody_knows_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no shape 'sharegtp'; did you mean `sharegpt`\?"):
        to_messages({"conversations": []}, "sharegtp")
    with pytest.raises(UserError, match="did you mean `chosen_rejected`"):
        to_pairs({}, preferences(format="chosen_rejectd"))


# ---------------------------------------------------------------------------------------------------------
# Preferences
# ---------------------------------------------------------------------------------------------------------


def preferences(**settings: Any) -> PreferenceSource:
    return PreferenceSource(name="pairs", paths=["x"], **settings)


def hh_text(messages: Messages) -> str:
    return "\n\n" + named_text(messages, "", "\n\n")


def answered(prompt: Messages, answer: str) -> Messages:
    return [*prompt, {"role": "assistant", "content": answer}]


def chosen_and_rejected(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected}


PAIR_WRITERS: dict[str, Callable[[Messages, str, str], dict[str, Any]]] = {
    "texts": lambda p, good, bad: {"prompt": p, **chosen_and_rejected(good, bad)},
    "messages": lambda p, good, bad: {"prompt": p, **chosen_and_rejected(answered([], good), answered([], bad))},
    "one message": lambda p, good, bad: {
        "conversations": [{"from": SHAREGPT[t["role"]], "value": t["content"]} for t in p],
        **chosen_and_rejected({"from": "gpt", "value": good}, {"from": "gpt", "value": bad}),
    },
    "whole conversations": lambda p, good, bad: chosen_and_rejected(answered(p, good), answered(p, bad)),
    "whole, with the question": lambda p, good, bad: {
        "prompt": contents(p)[-1],
        **chosen_and_rejected(answered(p, good), answered(p, bad)),
    },
    "transcripts": lambda p, good, bad: chosen_and_rejected(hh_text(answered(p, good)), hh_text(answered(p, bad))),
    "transcript of the prompt": lambda p, good, bad: {
        "prompt": hh_text(p) + "\n\nAssistant:",
        **chosen_and_rejected(good, bad),
    },
    "ranked list": lambda p, good, bad: {"messages": p, "output": [good, bad]},
    "scored completions": lambda p, good, bad: {
        "messages": p,
        "completions": [{"response": bad, "overall_score": 2}, {"response": good, "overall_score": 4.5}],
    },
    "aspects": lambda p, good, bad: {
        "messages": p,
        "completions": [
            {"response": good, "annotations": {"honesty": {"Rating": "5"}, "truth": {"Rating": "2"}}},
            {"response": bad, "annotations": {"honesty": {"Rating": "3"}, "truth": {"Rating": "3"}}},
        ],
    },
    "scores in a list": lambda p, good, bad: {"messages": p, "responses": [good, bad], "scores": [0.5, -1]},
    "ranks": lambda p, good, bad: {"messages": p, "answers": [{"answer": bad, "rank": 7}, {"answer": good, "rank": 1}]},
    "AlpacaEval": lambda p, good, bad: {"messages": p, "output_1": bad, "output_2": good, "preference": 1.9},
    "winner": lambda p, good, bad: {"messages": p, "response_a": good, "response_b": bad, "winner": "model_a"},
    "arena": lambda p, good, bad: {
        "conversation_a": answered(p, bad), "conversation_b": answered(p, good), "winner": "model_b",
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", PAIR_WRITERS)
@settings(max_examples=20)
@given(conversations(), text, text)
def test_a_preference_is_the_same_in_every_shape(shape: str, messages: Messages, good: str, bad: str) -> None:
    prompt, bad = messages[:-1], f"{bad}z" if good == bad else bad
    (pair,) = to_pairs(PAIR_WRITERS[shape](prompt, good, bad), preferences())
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, good, bad)


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({"prompt": "a", "chosen": "y", "rejected": "n", "score_chosen": 8.0, "score_rejected": 7.5}, 0.5),
        ({"prompt": "a", "chosen": "y", "rejected": "n", "metadata": {"score_chosen": 3, "score_rejected": 1}}, 2),
        ({"prompt": "a", "chosen": "y", "rejected": "n", "margin": 1.5}, 1.5),
        ({"history": "a", "human_ref_A": "y", "human_ref_B": "n", "labels": 1, "score_A": 9, "score_B": 4}, 5),
        ({"history": "a", "human_ref_A": "n", "human_ref_B": "y", "labels": 0, "score_A": 4, "score_B": 9}, 5),
        ({"instruction": "a", "output_1": "y", "output_2": "n", "preference": 1.25}, 0.5),
        ({"prompt": "a", "chosen": "y", "rejected": "n"}, None),
    ],
)
def test_scores_make_a_margin(row: dict, margin: float | None) -> None:
    assert to_pairs(row, preferences()) == [Pair(turns("a"), "y", "n", margin)]
    if margin is not None:
        with pytest.raises(Fault, match="differ by no more than min_margin") as fault:
            to_pairs(row, preferences(min_margin=margin))
        assert not fault.value.malformed


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 2))
def test_pairs_of_a_scored_list(scores: list[int], min_margin: int) -> None:
    row = {"prompt": "a", "responses": [f"answer {i}" for i in range(len(scores))], "scores": scores}
    best_first = sorted(scores, reverse=True)
    far = {
        "best_worst": [(best_first[0], best_first[-1])],
        "adjacent": list(pairwise(best_first)),
        "all": [(a, b) for i, a in enumerate(best_first) for b in best_first[i + 1 :]],
    }
    for pairs, expected in far.items():
        expected = [a - b for a, b in expected if a - b > min_margin]
        if not expected:
            with pytest.raises(Fault, match="one answer only" if len(scores) == 1 else "no more than min_margin"):
                to_pairs(row, preferences(pairs=pairs, min_margin=min_margin))
            continue
        made = to_pairs(row, preferences(pairs=pairs, min_margin=min_margin))
        assert [pair.margin for pair in made] == expected
        for pair in made:
            chosen, rejected = (scores[int(answer.split()[1])] for answer in (pair.chosen, pair.rejected))
            assert chosen - rejected == pair.margin


def test_every_ranked_question_of_a_tree_gives_pairs() -> None:
    answer = {"text": "good", "role": "assistant", "rank": 0, "replies": [{"text": "b", "role": "prompter", "replies": [
        {"text": "second", "role": "assistant", "rank": 1}, {"text": "first", "role": "assistant", "rank": 0},
        {"text": "unranked", "role": "assistant"},
    ]}]}  # fmt: skip
    row = {
        "prompt": {
            "text": "a",
            "role": "prompter",
            "replies": [{"text": "bad", "role": "assistant", "rank": 1}, answer],
        }
    }
    assert to_pairs(row, preferences()) == [
        Pair(turns("a"), "good", "bad"),
        Pair(turns("a", "good", "b"), "first", "second"),
    ]


ANSWERS = chosen_and_rejected("y", "n")


@pytest.mark.parametrize(
    ("row", "fault", "malformed"),
    [
        ({"prompt": "a", "chosen": "y"}, "no rejected", True),
        ({"prompt": "a", "chosen": None, "rejected": "y"}, "no chosen", True),
        ({"messages": turns("a", "b")}, "no chosen and rejected", True),
        ({"title": "a"}, "fits no known shape", True),
        ({"prompt": "a", **chosen_and_rejected("y", "y")}, "chosen equals rejected", True),
        ({"prompt": "a", **chosen_and_rejected("", "y")}, "empty chosen", True),
        (chosen_and_rejected("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:"), "empty rejected", True),
        ({"prompt": turns("a", "b"), **ANSWERS}, "two assistant turns in a row", True),
        ({"prompt": "a", **chosen_and_rejected(1, "y")}, "a content that is not text", True),
        ({"prompt": "a", **chosen_and_rejected("\udc00", "y")}, "a lone surrogate", True),
        (ANSWERS, "answers without a prompt", True),
        (chosen_and_rejected(turns("a", "y"), turns("b", "n")), "answer different prompts", True),
        (chosen_and_rejected(turns("a", "y", "b", "n"), turns("a", "n")), "answer different prompts", True),
        ({"prompt": "a", **ANSWERS, "score_chosen": 1, "score_rejected": 2}, "rejected is scored above chosen", True),
        ({"prompt": "a", **ANSWERS, "score_chosen": 1, "score_rejected": 1}, "no more than min_margin", False),
        ({"prompt": "a", "output": ["y"]}, "one answer only", False),
        ({"prompt": "a", "output": ["y", " "]}, "an empty answer", True),
        ({"prompt": "a", "responses": ["y", "n"], "scores": [1, "x"]}, "a score that is not a number", True),
        ({"prompt": "a", "response_a": "y", "response_b": "n", "winner": "tie (bothbad)"}, "a tie", False),
        ({"prompt": "a", "completion": "b", "label": True}, "scripts/kto.py", True),
    ],
)
def test_a_preference_that_can_not_be_used_says_why(row: dict, fault: str, malformed: bool) -> None:
    with pytest.raises(Fault, match=fault) as raised:
        to_pairs(row, preferences())
    assert raised.value.malformed is malformed


def test_tools_stand_in_the_prompt_and_a_call_can_be_the_answer() -> None:
    row = {
        "messages": RICH[:1],
        "tools": [WEATHER],
        "chosen": {"role": "assistant", "tool_calls": [CALL]},
        "rejected": "no",
    }
    (pair,) = to_pairs({**row, "chosen": {"role": "assistant", "content": None, "tool_calls": [CALL]}}, preferences())
    assert pair.prompt == flatten_conversation(RICH[:1], [WEATHER])
    assert (
        pair.chosen == flatten_conversation([{"role": "assistant", "content": "", "tool_calls": [CALL]}])[0]["content"]
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("a", "b", "c", "d"), "label": False},
        {"conversations": turns("a", "b", "c", "d"), "kto_tag": 0},
        {"prompt": turns("a", "b", "c"), "completion": "d", "label": False},
    ],
)
def test_labelled_answers(row: dict) -> None:
    assert to_labelled(row, preferences()) == [Labelled(turns("a", "b", "c"), "d", False)]


def test_pairs_are_a_good_and_a_bad_answer() -> None:
    row = {"prompt": "a", "output": ["x", "y", "z"]}
    good_and_bad = [("x", True), ("y", False), ("z", False), ("y", True)]
    assert to_labelled(row, preferences(pairs="all")) == [Labelled(turns("a"), *answer) for answer in good_and_bad]
    with pytest.raises(Fault, match="neither true nor false"):
        to_labelled({"prompt": "a", "completion": "b", "label": "maybe"}, preferences())
