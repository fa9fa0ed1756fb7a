"""Rows people have → messages.

A conversation is a list of `{"role", "content"}` with roles system, user, assistant and tool. A reader is one
function from a row to such a list; `SHAPES` says by which keys a row belongs to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from genesis_hf.chat import Message
from genesis_hf.config import nearest
from genesis_hf.conversations.checks import Fault, Row, check_messages, check_prompt
from genesis_hf.conversations.tool_calling import from_bfcl, from_glaive, from_moss, from_sgd, from_xlam
from genesis_hf.conversations.transcripts import read_prompt_text, read_transcript
from genesis_hf.conversations.trees import best_path, is_message, is_tree
from genesis_hf.conversations.turns import flatten, read_conversation, read_text, read_turns
from genesis_hf.errors import UserError

NOT_OF_SHAPE = (KeyError, TypeError, AttributeError, IndexError, StopIteration, ValueError)
"""What a reader raises at a row of another shape."""

TURN_LISTS = ("conversations", "conversation", "data")
SYSTEM_KEYS = ("system", "system_prompt")
CONTEXT_KEYS = ("input", "context")
"""Keys of what an instruction is about: Alpaca's and Dolly's."""
NO_CONTEXT = ("", "<noinput>", "noinput", "nan")
"""What Alpaca's rows say where there is none."""


def to_messages(row: Row, shape: str = "auto", input_mark: str = "\n\n") -> list[Message]:
    """The conversation of a row.

    What follows the last answer, such as a question that nobody answered, is cut off.

    Args:
        row: of one of the `SHAPES`; a key whose value is null counts as absent.
        shape: its name; `auto` goes by the row's keys.
        input_mark: stands between an instruction and its context; `INPUT_MARK` for the Alpaca format.

    Raises:
        Fault: a row that fits no shape, or a conversation that can't be trained on.
        UserError: no shape of this name.
    """
    row = {key: value for key, value in row.items() if value is not None}
    name = detect(row, SHAPES) if shape == "auto" else check_shape(shape, SHAPES)
    try:
        messages = SHAPES[name].read(row, input_mark)
    except NOT_OF_SHAPE:
        raise Fault(f"not of the shape {name}") from None
    end = max((i for i, message in enumerate(messages, 1) if message["role"] == "assistant"), default=len(messages))
    if end < len(messages):
        check_prompt(messages)
    check_messages(messages[:end])
    return messages[:end]


class Shape(NamedTuple):
    """Whether a row is of a shape, and what makes something of it."""

    fits: Callable[[Row], bool]
    read: Callable[[Row, str], Any]


def detect(row: Row, shapes: Mapping[str, Shape]) -> str:
    """The first shape that a row fits; a `Fault` if there is none."""
    name = next((name for name, shape in shapes.items() if shape.fits(row)), None)
    if name is None:
        raise Fault("fits no known shape")
    return name


def check_shape(name: str, shapes: Mapping[str, Shape]) -> str:
    """The name itself; `UserError` where no shape bears it."""
    if name not in shapes:
        raise UserError(f"format: there is no shape {name!r}{nearest(name, {'auto', *shapes})}")
    return name


# ---------------------------------------------------------------------------------------------------------
# Readers
# ---------------------------------------------------------------------------------------------------------


def from_messages(row: Row, input_mark: str) -> list[Message]:
    """`messages`: role and content."""
    return read_conversation(row["messages"], row.get("tools"), system_of(row))


def from_sharegpt(row: Row, input_mark: str) -> list[Message]:
    """`conversations`: from and value, or texts in turn; a `system` and `tools` beside them."""
    turns = next(row[key] for key in TURN_LISTS if key in row)
    return read_conversation(turns, row.get("tools"), system_of(row))


def from_text(row: Row, input_mark: str) -> list[Message]:
    """`text`: a conversation with the marks of a template or names before the turns."""
    messages = read_transcript(read_text(row["text"]), input_mark)
    if messages is None:
        raise Fault("a text without turns")
    return messages


def from_tree(row: Row, input_mark: str) -> list[Message]:
    """`prompt` with nested `replies`: the best-ranked reply each time."""
    return best_path(row)


def single_turn(question: str, answer: str) -> Shape:
    """The shape of rows with a question and an answer under these keys, each text or messages."""

    def read(row: Row, input_mark: str) -> list[Message]:
        prompt = read_question(row, question, input_mark)
        return flatten(prompt + drop_prompt(prompt, read_answer(row[answer])), row.get("tools"))

    return Shape(lambda row: question in row and answer in row, read)


def read_question(row: Row, key: str, input_mark: str) -> list[Message]:
    """What an answer follows: system, history and the question under a key, with its context."""
    value = row[key]
    turns = read_prompt_text(value, input_mark) if isinstance(value, str) else read_turns_or_turn(value)
    context = next((row[key] for key in CONTEXT_KEYS if key in row and not is_no_context(row[key])), None)
    if context is not None and key not in CONTEXT_KEYS:
        turns[-1] = {**turns[-1], "content": turns[-1]["content"] + input_mark + read_text(context)}
    history = row.get("history") or []
    turns = [*read_turns([text for pair in history for text in pair]), *turns]
    system = system_of(row)
    return [{"role": "system", "content": system}, *turns] if system and turns[0]["role"] != "system" else turns


def read_answer(value: Any) -> list[Message]:
    """The turns of an answer: a text, a message or a list of messages."""
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else read_turns_or_turn(value)


def read_turns_or_turn(value: Any) -> list[Message]:
    """Messages of a list of turns or of a single one."""
    if not isinstance(value, (list, Mapping)):
        raise Fault("a content that is not text")
    single = isinstance(value, Mapping) and not isinstance(value.get("role", value.get("from")), list)
    return read_turns([value] if single else value)


def drop_prompt(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """The answer alone, where a row repeats the whole conversation in it."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def system_of(row: Row) -> str | None:
    """The system text that stands beside the turns."""
    system = next((row[key] for key in SYSTEM_KEYS if row.get(key)), None)
    return None if system is None else read_text(system)


def is_no_context(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NO_CONTEXT


SHAPES: dict[str, Shape] = {
    "open_assistant_tree": Shape(is_tree, from_tree),
    "open_assistant_messages": Shape(is_message, from_tree),  # `read_rows` makes trees of them
    "messages": Shape(lambda row: "messages" in row, from_messages),
    "sharegpt": Shape(lambda row: any(key in row for key in TURN_LISTS), from_sharegpt),
    "glaive": Shape(lambda row: isinstance(row.get("chat"), str), from_glaive),
    "moss": Shape(lambda row: isinstance(row.get("chat"), dict), from_moss),
    "schema_guided_dialogue": Shape(lambda row: "turns" in row, from_sgd),
    "bfcl": Shape(lambda row: {"question", "function", "ground_truth"} <= row.keys(), from_bfcl),
    "xlam": Shape(lambda row: {"query", "tools", "answers"} <= row.keys(), from_xlam),
    "alpaca": single_turn("instruction", "output"),
    "dolly": single_turn("instruction", "response"),
    "prompt_completion": single_turn("prompt", "completion"),
    "prompt_response": single_turn("prompt", "response"),
    "query_response": single_turn("query", "response"),
    "question_answer": single_turn("question", "answer"),
    "question_response": single_turn("question", "response"),
    "problem_solution": single_turn("problem", "solution"),
    "text": Shape(lambda row: "text" in row, from_text),
}
