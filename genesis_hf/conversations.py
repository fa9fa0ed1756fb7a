"""Rows people have → messages and preference pairs, and what is wrong with them.

A conversation is a list of `{"role", "content"}` with roles system, user, assistant and tool. A reader is one
function from a row to such a list; `SHAPES` says by which keys a row belongs to it.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genesis_hf.chat import INPUT_MARK, ROLES, Message
from genesis_hf.config import ConversationSource, Source
from genesis_hf.data.readers import expand, open_binary, parse_json, plain_suffix
from genesis_hf.data.records import SHAREGPT_ROLES
from genesis_hf.errors import UserError

Row = dict[str, Any]

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


class Fault(Exception):
    """A row that can't be used; its text is the kind of fault, under which rows are counted."""


@dataclass(frozen=True)
class Pair:
    """A preference: two answers to the same conversation, which ends with a user's or a tool's turn."""

    prompt: list[Message]
    chosen: str
    rejected: str


# ---------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------


def read_rows(source: ConversationSource) -> "list[tuple[str, Row]] | HubRows":
    """Every row of a source with the file and line it stands in.

    Raises:
        UserError: no such file, not valid JSON, a row that is no object.
    """
    if source.dataset is not None:
        return HubRows(source)
    rows: list[tuple[str, Row]] = []
    for path in expand(Source(name=source.name, paths=source.paths)):
        suffix = plain_suffix(path)
        if suffix not in (".jsonl", ".parquet", ".arrow"):
            raise UserError(f"source {source.name!r}: {path} is none of .jsonl (.gz, .zst) .parquet .arrow")
        rows += read_jsonl(path) if suffix == ".jsonl" else read_table(path)
    if not rows:
        raise UserError(f"source {source.name!r}: not one row in {', '.join(source.paths)}")
    return rows


def read_jsonl(path: str) -> Iterator[tuple[str, Row]]:
    with open_binary(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = parse_json(line, f"{path}, line {number}")
                    if not isinstance(row, dict):
                        raise UserError(f"{path}, line {number}: a row is an object, not a {type(row).__name__}")
                    yield f"{path}, line {number}", row
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None


def read_table(path: str) -> Iterator[tuple[str, Row]]:
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(path)
        else:
            with pa.memory_map(path) as file:
                table = pa.ipc.open_stream(file).read_all()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


class HubRows:
    """Rows of a Hub dataset, read when they are asked for."""

    def __init__(self, source: ConversationSource) -> None:
        from datasets import load_dataset

        self.name = source.dataset
        try:
            self.rows = load_dataset(
                source.dataset,
                source.config,
                data_dir=source.data_dir,
                split=source.split,
                revision=source.revision,
            )
        except Exception as error:  # the Hub client raises many kinds, all of them about the name or the network
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"source {source.name!r}: dataset {source.dataset!r} can't be opened ({reason})") from None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[str, Row]:
        return f"{self.name}, row {number + 1}", self.rows[number]


def read_mixture(sources: Sequence[ConversationSource], seed: int) -> list[tuple[str, list[tuple[str, Row]]]]:
    """The rows of each source by its name, drawn as its `num_examples` or `weight` says.

    Weighted sources give as many rows as their proportions allow with none drawn twice.

    Raises:
        UserError: a source is unreadable or has fewer rows than asked for; a name stands twice.
    """
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise UserError(f"the mixture holds a name twice: {', '.join(names)}")
    rows = [read_rows(source) for source in sources]
    weighted = [len(r) / s.weight for s, r in zip(sources, rows, strict=True) if s.weight is not None]
    drawn = []
    for source, available in zip(sources, rows, strict=True):
        count = len(available)
        if source.num_examples is not None:
            count = source.num_examples
        elif source.weight is not None:
            count = int(min(weighted) * source.weight + 1e-9)
        if count > len(available):
            raise UserError(f"source {source.name!r}: num_examples is {count:,}, but it has {len(available):,} rows")
        numbers = range(len(available))
        if count < len(available):
            numbers = random.Random(f"{seed} {source.name}").sample(numbers, count)
        drawn.append((source.name, [available[number] for number in numbers]))
    return drawn


# ---------------------------------------------------------------------------------------------------------
# A row's conversation
# ---------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------
# A row's preference
# ---------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------
# What came of a mixture
# ---------------------------------------------------------------------------------------------------------


@dataclass
class SourceReport:
    """What a source of the mixture came to."""

    name: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    first_fault: str | None = None
    """The first row that was dropped, and why."""

    def drop(self, reason: str, where: str) -> None:
        """Count a row that isn't used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.first_fault = self.first_fault or f"{where}: {reason}"


def mixture_table(reports: Sequence[SourceReport]) -> str:
    """Source, examples, tokens, trained tokens, their shares, and what was dropped and why."""
    total = sum(report.trained_tokens for report in reports)
    lines = [f"{'source':20} {'examples':>9} {'tokens':>12} {'trained':>12} {'trained %':>9} {'share %':>8}  dropped"]
    for report in reports:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none"
        lines.append(
            f"{report.name:20} {report.examples:9,} {report.tokens:12,} {report.trained_tokens:12,} "
            f"{report.trained_tokens / report.tokens:9.1%} {report.trained_tokens / total:8.1%}  {dropped}"
        )
    if len(reports) > 1:
        tokens = sum(report.tokens for report in reports)
        lines.append(
            f"{'all':20} {sum(r.examples for r in reports):9,} {tokens:12,} {total:12,} {total / tokens:9.1%} "
            f"{1:8.1%}  {sum(sum(r.dropped.values()) for r in reports):,}"
        )
    return "\n".join(lines)
