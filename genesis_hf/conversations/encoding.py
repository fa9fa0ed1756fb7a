"""Rows → token ids, for each kind of training, with what can't be used counted by kind."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import Encoded, Message, encode_conversations, encode_prompts, takes_role
from genesis_hf.config import ConversationSource
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.preferences import to_labelled, to_pairs
from genesis_hf.conversations.rows import Row
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.modeling import IGNORE_INDEX

TOO_LONG, NOTHING_TRAINED = "too long", "nothing to train on"
NO_TOOLS = "a tool turn, for which the chat format has no place"


@dataclass(frozen=True)
class EncodingSettings:
    """What of a recipe decides the ids of a row."""

    max_length: int
    overlong: str = "turn"
    input_mark: str = "\n\n"
    train_special_tokens: bool = True


@dataclass
class EncodedRows:
    """What came of a number of rows."""

    columns: dict[str, list[Any]]
    """Of each example: `position` of its row among the rows, the kind's own columns, and `tokens`, `trained`, `cut`
    (tokens lost at the end)."""
    dropped: list[tuple[int, str, bool]] = field(default_factory=list)
    """Position, reason, and whether the row is malformed."""

    @classmethod
    def of(cls, *names: str) -> "EncodedRows":
        """Nothing yet."""
        return cls({name: [] for name in ("position", *names, "tokens", "trained", "cut")})

    def add(self, *values: Any) -> None:
        """An example: a value for each column."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def read(self, rows: Sequence[Row | Fault], reader: Callable[[Row], Any]) -> list[tuple[int, Any]]:
        """The positions of readable rows and what the reader makes of them; the others are dropped."""
        read = []
        for position, row in enumerate(rows):
            try:
                if isinstance(row, Fault):
                    raise row
                read.append((position, reader(row)))
            except Fault as fault:
                self.drop(position, fault)
        return read

    def drop(self, position: int, fault: Fault) -> None:
        """A row that can't be used."""
        self.dropped.append((position, str(fault), fault.malformed))


Encoder = Callable[[PreTrainedTokenizerFast, ConversationSource, EncodingSettings, Sequence[Row | Fault]], EncodedRows]


def encode_conversation_rows(
    tokenizer: PreTrainedTokenizerFast,
    source: ConversationSource,
    settings: EncodingSettings,
    rows: Sequence[Row | Fault],
) -> EncodedRows:
    """`input_ids` and `labels` of each row's conversation."""
    out = EncodedRows.of("input_ids", "labels", "length")
    with_tools = takes_role(tokenizer, "tool")

    def reader(row: Row) -> list[Message]:
        messages = to_messages(row, source.format, settings.input_mark)
        if not with_tools and any(message["role"] == "tool" for message in messages):
            raise Fault(NO_TOOLS, malformed=False)
        return messages

    read = out.read(rows, reader)
    encoded = encode_conversations(tokenizer, [messages for _, messages in read], settings.train_special_tokens)
    for (position, _), conversation in zip(read, encoded, strict=True):
        ids, labels, _ = conversation
        length = length_that_fits(conversation, settings)
        if length == 0:
            out.drop(position, Fault(TOO_LONG, malformed=False))
            continue
        cut = len(ids) - length
        if cut:
            ids, labels = ids[:length], labels[:length]
        trained = length - labels.count(IGNORE_INDEX)
        if trained:
            out.add(position, ids, labels, length, length, trained, cut)
        else:
            out.drop(position, Fault(NOTHING_TRAINED, malformed=False))
    return out


def length_that_fits(conversation: Encoded, settings: EncodingSettings) -> int:
    """The tokens that are kept of a conversation; 0: none."""
    length = len(conversation.input_ids)
    if length <= settings.max_length:
        return length
    if settings.overlong == "tokens":
        return settings.max_length
    if settings.overlong == "turn":
        return max((end for end in conversation.ends if end <= settings.max_length), default=0)
    return 0


def encode_preference_rows(
    tokenizer: PreTrainedTokenizerFast,
    source: ConversationSource,
    settings: EncodingSettings,
    rows: Sequence[Row | Fault],
) -> EncodedRows:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair, an answer's stop token its last."""
    out = EncodedRows.of("prompt_ids", "chosen_ids", "rejected_ids", "length")
    read = [
        (position, pair)
        for position, pairs in out.read(rows, lambda row: to_pairs(row, source, settings.input_mark))
        for pair in pairs
    ]
    prompts = [pair.prompt for _, pair in read]
    prompt_ids = encode_prompts(tokenizer, prompts)
    chosen = encode_answers(tokenizer, prompts, [pair.chosen for _, pair in read], prompt_ids)
    rejected = encode_answers(tokenizer, prompts, [pair.rejected for _, pair in read], prompt_ids)
    for (position, _), prompt, good, bad in zip(read, prompt_ids, chosen, rejected, strict=True):
        length = len(prompt) + max(len(good), len(bad))
        if length > settings.max_length:
            out.drop(position, Fault(TOO_LONG, malformed=False))
        else:
            trained = len(good) + len(bad)
            out.add(position, prompt, good, bad, length, 2 * len(prompt) + trained, trained, 0)
    return out


def encode_labelled_rows(
    tokenizer: PreTrainedTokenizerFast,
    source: ConversationSource,
    settings: EncodingSettings,
    rows: Sequence[Row | Fault],
) -> EncodedRows:
    """`prompt_ids`, `completion_ids` and `label` of each answer that is labelled good or bad."""
    out = EncodedRows.of("prompt_ids", "completion_ids", "label", "length")
    read = [
        (at, answer)
        for at, answers in out.read(rows, lambda row: to_labelled(row, source, settings.input_mark))
        for answer in answers
    ]
    prompts = [answer.prompt for _, answer in read]
    prompt_ids = encode_prompts(tokenizer, prompts)
    answers = encode_answers(tokenizer, prompts, [answer.answer for _, answer in read], prompt_ids)
    for (position, labelled), prompt, answer in zip(read, prompt_ids, answers, strict=True):
        length = len(prompt) + len(answer)
        if length > settings.max_length:
            out.drop(position, Fault(TOO_LONG, malformed=False))
        else:
            out.add(position, prompt, answer, labelled.desirable, length, length, len(answer), 0)
    return out


def encode_answers(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[dict[str, Any]]],
    answers: Sequence[str],
    prompt_ids: Sequence[list[int]],
) -> list[list[int]]:
    """The ids that follow the prompts': those of the answer and its stop token, without what the template adds."""
    dialogues = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    encoded = encode_conversations(tokenizer, dialogues)
    return [whole.input_ids[len(ids) : whole.ends[-1]] for whole, ids in zip(encoded, prompt_ids, strict=True)]


ENCODERS: dict[str, Encoder] = {
    "conversations": encode_conversation_rows,
    "preferences": encode_preference_rows,
    "labelled": encode_labelled_rows,
}
COLUMNS = {
    "conversations": ("input_ids", "labels"),
    "preferences": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "labelled": ("prompt_ids", "completion_ids", "label"),
}
"""What training reads of each kind, beside `length`; an example is what these hold."""


def example_hashes(columns: dict[str, list[Any]], names: Sequence[str]) -> np.ndarray:
    """(examples,) uint64: equal examples have equal ones, others differ but for one in 2^64."""
    hashes = np.empty(len(columns[names[0]]), dtype=np.uint64)
    for number, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        digest = hashlib.blake2b(digest_size=8)
        for value in values:
            digest.update(np.asarray(value, dtype=np.int32).tobytes() + b"|")
        hashes[number] = int.from_bytes(digest.digest(), "little")
    return hashes
