"""Rows people have → messages.

A conversation is a list of `{"role", "content"}` with roles system, user, assistant and tool. A reader is one
function from a row to such a list; `SHAPES` says by which keys a row belongs to it.
"""

from collections.abc import Callable

from genesis_hf.chat import Message
from genesis_hf.conversations.checks import Fault, check_messages, text_of
from genesis_hf.conversations.rows import Row
from genesis_hf.data.records import SHAREGPT_ROLES

SINGLE_TURNS = (
    ("instruction", "output"),  # Alpaca
    ("instruction", "response"),  # Dolly
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),  # MetaMathQA
    ("question", "answer"),  # GSM8K
)
CONTEXTS = ("input", "context")
"""Keys of what an instruction is about: Alpaca's and Dolly's."""


def to_messages(row: Row, shape: str = "auto", input_mark: str = "\n\n") -> list[Message]:
    """The conversation of a row.

    Args:
        row: of one of the `SHAPES`.
        shape: its name; `auto` goes by the row's keys.
        input_mark: stands between an instruction and its context; `INPUT_MARK` for the Alpaca format.

    Raises:
        Fault: a row that fits no shape, or a conversation that can't be trained on.
    """
    names = [name for name, (fits, _) in SHAPES.items() if fits(row)] if shape == "auto" else [shape]
    if not names:
        raise Fault("fits no known shape")
    try:
        messages = SHAPES[names[0]][1](row, input_mark)
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise Fault(f"not of the shape {names[0]}") from None
    check_messages(messages)
    return messages


def from_messages(row: Row, input_mark: str) -> list[Message]:
    """`messages`: role and content."""
    return [{"role": m["role"], "content": text_of(m["content"])} for m in row["messages"]]


def from_sharegpt(row: Row, input_mark: str) -> list[Message]:
    """`conversations`: from and value; a `system` beside them."""
    messages = [
        {"role": SHAREGPT_ROLES.get(m["from"], m["from"]), "content": text_of(m["value"])} for m in row["conversations"]
    ]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": text_of(row["system"])})
    return messages


def from_single_turn(row: Row, input_mark: str) -> list[Message]:
    """An instruction, perhaps its context, and the answer: Alpaca, Dolly, prompt–completion, query–response."""
    question, answer = next((q, a) for q, a in SINGLE_TURNS if q in row and a in row)
    context = next((row[key] for key in CONTEXTS if row.get(key)), "")
    content = row[question] + (input_mark + context if context else "")
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": row[answer]}]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    return messages


SHAPES: dict[str, tuple[Callable[[Row], bool], Callable[[Row, str], list[Message]]]] = {
    "messages": (lambda row: "messages" in row, from_messages),
    "sharegpt": (lambda row: "conversations" in row, from_sharegpt),
    "single_turn": (lambda row: any(q in row and a in row for q, a in SINGLE_TURNS), from_single_turn),
}
