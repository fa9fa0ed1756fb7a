"""The one definition of how a conversation becomes tokens: ChatML and Alpaca, their masks, and their lint.

The `.jinja` files beside this module are the formats. `render_jinja_template` lays out a conversation's turns with
placeholders for the contents, so that only the template's own text is searched for special tokens: what somebody
typed is encoded as plain text, and `<|im_end|>` in it stays six or so ordinary tokens.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import encode_documents

Message = dict[str, Any]
ChatFormat = Literal["chatml", "alpaca"]

IM_START, IM_END, THINK, END_THINK = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
CHAT_TOKENS = (IM_START, IM_END, THINK, END_THINK)
"""Appended at V, V+1, V+2, V+3 after a base vocabulary of V."""

INPUT_MARK = "\n\n### Input:\n"
"""Stands between instruction and context in the content of an Alpaca user turn."""

ROLES = ("system", "user", "assistant", "tool")


# ---------------------------------------------------------------------------------------------------------
# A base model becomes a chat model
# ---------------------------------------------------------------------------------------------------------


def prepare_for_chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat = "chatml"
) -> None:
    """Give a base model and its tokenizer a chat format, in place; a model that has it stays as it is.

    ChatML appends four tokens. Their rows of the embedding, and of the output matrix where it is not tied, are the
    fp32 mean of the old rows, so that their first logits are ordinary ones; old rows keep every bit. The stop token
    (`<|im_end|>`; in Alpaca the base's own eos) becomes eos everywhere, pad stays the base's.

    Raises:
        UserError: the tokenizer doesn't fit the model.
    """
    rows, ids = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if rows != ids:
        raise UserError(
            f"the tokenizer has {ids:,} tokens and the model {rows:,} rows of embedding: "
            "give the tokenizer that the model was trained with"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no eos token, which a conversation has to end or be padded with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_format == "chatml":
        add_chat_tokens(model, tokenizer)
        tokenizer.eos_token = IM_END
    tokenizer.chat_template = read_template(chat_format)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def add_chat_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Append the four tokens to the tokenizer and a row for each to the model."""
    vocabulary = tokenizer.get_vocab()
    present = [token for token in CHAT_TOKENS if token in vocabulary]
    if present == list(CHAT_TOKENS):
        return
    if present:
        raise UserError(f"the tokenizer has {', '.join(present)} already, but not all of {', '.join(CHAT_TOKENS)}")
    base = len(tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CHAT_TOKENS], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) != list(range(base, base + len(CHAT_TOKENS))):
        raise UserError(f"the tokenizer's ids have gaps: the chat tokens do not land at {base:,} … {base + 3:,}")
    model.resize_token_embeddings(base + len(CHAT_TOKENS), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = layer.weight
            weight[base:] = weight[:base].float().mean(dim=0).to(weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[base:] = layer.bias[:base].mean()


def read_template(chat_format: ChatFormat) -> str:
    """The Jinja text of a format."""
    return (resources.files("genesis_hf") / "assets" / f"{chat_format}.jinja").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------
# Conversations to tokens
# ---------------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A conversation as the model trains on it."""

    input_ids: list[int]
    labels: list[int]
    """The same ids where they are trained, -100 elsewhere; not shifted."""


class Segment(NamedTuple):
    """Part of a rendered conversation: a special token of the format, or text that can hold none."""

    text: str
    special: bool
    trained: bool


@dataclass(frozen=True)
class Slot:
    """Where the content of a turn goes."""

    turn: int
    trained: bool


def encode_conversation(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> Encoded:
    """Ids and labels of one conversation; trained are the assistant's contents and their stop tokens.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses a role.
    """
    return encode_conversations(tokenizer, [messages])[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[Message]]
) -> list[Encoded]:
    """As `encode_conversation`, all texts in one batch."""
    vocabulary = special_ids(tokenizer)
    segments = [split_segments(tokenizer, vocabulary, messages) for messages in conversations]
    encoded = []
    for parts, ids in zip(segments, encode_segments(tokenizer, vocabulary, segments), strict=True):
        labels = [i if part.trained else IGNORE_INDEX for part, piece in zip(parts, ids, strict=True) for i in piece]
        encoded.append(Encoded([i for piece in ids for i in piece], labels))
    return encoded


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation so far and the header of the answer to come, exactly as in training."""
    return encode_prompts(tokenizer, [messages])[0]


def encode_prompts(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """As `encode_prompt`, all texts in one batch."""
    vocabulary = special_ids(tokenizer)
    segments = [split_segments(tokenizer, vocabulary, messages, True) for messages in conversations]
    return [[i for piece in ids for i in piece] for ids in encode_segments(tokenizer, vocabulary, segments)]


def encode_segments(
    tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, int], segments: list[list[Segment]]
) -> list[list[list[int]]]:
    """Ids of every segment of every conversation."""
    texts = [part.text for parts in segments for part in parts if not part.special]
    plain = iter(encode_documents(tokenizer, texts))
    return [[[vocabulary[part.text]] if part.special else next(plain) for part in parts] for parts in segments]


def split_segments(
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: dict[str, int],
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
) -> list[Segment]:
    """The rendered conversation, cut where a special token stands and where training begins or ends.

    The header of an assistant's turn is thus encoded apart from its content, as it is when the model answers.
    `vocabulary` holds the special tokens that the format may use, as `special_ids` gives them.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template: give a chat model, or prepare a base model for chat")
    turns = tuple((message["role"], INPUT_MARK in message["content"]) for message in messages)
    layout = lay_out(tokenizer.chat_template, tokenizer.eos_token, tuple(vocabulary), turns, add_generation_prompt)
    segments: list[Segment] = []
    for part in layout:
        if isinstance(part, Segment):
            append_segment(segments, part)
        elif messages[part.turn]["role"] == "assistant":
            for piece in re.split(f"({THINK}|{END_THINK})", messages[part.turn]["content"]):
                special = piece in (THINK, END_THINK) and piece in vocabulary
                append_segment(segments, Segment(piece, special, part.trained))
        else:
            append_segment(segments, Segment(messages[part.turn]["content"], False, part.trained))
    return segments


def append_segment(segments: list[Segment], new: Segment) -> None:
    """Add a segment; text joins the text before it where both are trained or neither is."""
    if not new.text:
        return
    last = segments[-1] if segments else None
    if last and not (last.special or new.special) and last.trained == new.trained:
        segments[-1] = last._replace(text=last.text + new.text)
    else:
        segments.append(new)


@functools.lru_cache(maxsize=4096)
def lay_out(
    template: str,
    eos_token: str,
    special_tokens: tuple[str, ...],
    turns: tuple[tuple[str, bool], ...],
    add_generation_prompt: bool,
) -> list[Segment | Slot]:
    """The template's own text and the slots for contents, for turns given by role and whether a context is marked.

    The contents themselves are never rendered. A template may look for `INPUT_MARK` in a content, nothing else.
    """
    placeholders = [
        {"role": role, "content": f"\0{turn}{INPUT_MARK if marked else ''}\0"}
        for turn, (role, marked) in enumerate(turns)
    ]
    try:
        texts, spans = render_jinja_template(
            conversations=[placeholders],
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            eos_token=eos_token,
        )
    except TemplateError as error:
        raise UserError(f"the chat template can't render this conversation: {error}") from None
    text, spans = texts[0], spans[0]
    pattern = "|".join([r"\0(\d+)[^\0]*\0", *map(re.escape, special_tokens)])
    edges = {0, len(text), *(edge for span in spans for edge in span)}
    edges |= {edge for match in re.finditer(pattern, text) for edge in match.span()}
    layout: list[Segment | Slot] = []
    for start, end in pairwise(sorted(edges)):
        piece = text[start:end]
        trained = any(first <= start < last for first, last in spans)
        slot = re.fullmatch(r"\0(\d+)[^\0]*\0", piece)
        layout.append(Slot(int(slot[1]), trained) if slot else Segment(piece, piece in special_tokens, trained))
    return layout


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The tokens that the format may use: every added special token, by its text."""
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


# ---------------------------------------------------------------------------------------------------------
# Lint
# ---------------------------------------------------------------------------------------------------------

PROBE = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Where is the river?"},
    {"role": "assistant", "content": "Behind the hill."},
    {"role": "user", "content": "And the sea?"},
    {"role": "assistant", "content": "Further south."},
)


def lint_chat(
    tokenizer: PreTrainedTokenizerFast,
    model_config: PreTrainedConfig | None = None,
    generation_config: GenerationConfig | None = None,
) -> None:
    """Prove on a probe conversation that the format trains what it should; run before any training.

    Checked: the rendering is the template's; every answer and its stop token is trained, and nothing else; the first
    turns are a prefix of the whole; no typed text becomes a special token; eos and pad are the same everywhere.

    Raises:
        UserError: every fault found, in one line.
    """
    faults = [*template_faults(tokenizer), *token_faults(tokenizer, model_config, generation_config)]
    if faults:
        raise UserError(f"chat format: {'; '.join(faults)}")


def template_faults(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What is wrong with the rendering, the masks and the encoding of typed text."""
    faults = []
    vocabulary = special_ids(tokenizer)
    segments = split_segments(tokenizer, vocabulary, PROBE)
    if "".join(s.text for s in segments) != tokenizer.apply_chat_template(list(PROBE), tokenize=False):
        faults.append("the encoded segments are not the template's rendering")
    trained = [segment.text for segment in segments if segment.trained]
    answers = [message["content"] for message in PROBE if message["role"] == "assistant"]
    if not trained:
        faults.append("nothing is trained: the template has no {% generation %} block around the assistant's turn")
    elif trained == answers:
        faults.append(
            f"the stop token {tokenizer.eos_token} is not trained: put it inside the {{% generation %}} block"
        )
    elif trained != [text for answer in answers for text in (answer, tokenizer.eos_token)]:
        faults.append(f"trained are {trained}, not the answers and {tokenizer.eos_token}")
    whole = encode_conversation(tokenizer, PROBE).input_ids
    for turn, message in enumerate(PROBE):
        if message["role"] == "assistant":
            so_far = encode_prompt(tokenizer, PROBE[:turn])
            if whole[: len(so_far)] != so_far:
                faults.append(f"the first {turn} turns are not a prefix of the whole conversation")
    typed = [{"role": "user", "content": " ".join(vocabulary)}, {"role": "assistant", "content": "No."}]
    plain = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "No."}]
    counts = [
        sum(i in vocabulary.values() for i in encode_conversation(tokenizer, messages).input_ids)
        for messages in (typed, plain)
    ]
    if counts[0] != counts[1]:
        faults.append("special tokens typed by a user become real ones")
    return faults


def token_faults(
    tokenizer: PreTrainedTokenizerFast,
    model_config: PreTrainedConfig | None,
    generation_config: GenerationConfig | None,
) -> list[str]:
    """Where eos and pad of tokenizer, model and generation disagree."""
    faults = []
    if tokenizer.pad_token_id is None:
        faults.append("the tokenizer names no pad token")
    if IM_END in special_ids(tokenizer) and tokenizer.eos_token != IM_END:
        faults.append(f"the tokenizer's eos is {tokenizer.eos_token}, not {IM_END}")
    if tokenizer.eos_token == IM_END and tokenizer.pad_token == IM_END:
        faults.append(f"pad is {IM_END}, which has to be learned: keep the base's eos as pad")
    for name, config in (("config.json", model_config), ("generation_config.json", generation_config)):
        for key in ("eos_token_id", "pad_token_id") if config is not None else ():
            theirs, ours = getattr(config, key), getattr(tokenizer, key)
            if theirs != ours:
                faults.append(f"{key} is {theirs} in {name} and {ours} in the tokenizer")
    if model_config is not None and model_config.vocab_size < len(tokenizer):
        faults.append(f"the model has {model_config.vocab_size:,} rows for {len(tokenizer):,} tokens")
    return faults
