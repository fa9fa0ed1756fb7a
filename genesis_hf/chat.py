"""The one definition of how a conversation becomes tokens: ChatML and Alpaca, and their masks.

The `.jinja` files beside this module are the formats. `render_jinja_template` lays out a conversation's turns with
placeholders for the contents, so that only the template's own text is searched for special tokens: what somebody
typed is encoded as plain text, and `<|im_end|>` in it stays six or so ordinary tokens.
"""

import functools
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import encode_documents

Message = dict[str, Any]
"""`role` and `content`; an assistant's turn with `trained: False` is context only."""

ChatFormat = Literal["chatml", "alpaca"]
FORMATS: tuple[ChatFormat, ...] = ("chatml", "alpaca")

IM_START, IM_END, THINK, END_THINK = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
CHAT_TOKENS = (IM_START, IM_END, THINK, END_THINK)
"""Appended at V, V+1, V+2, V+3 after a base vocabulary of V."""

INPUT_MARK = "\n\n### Input:\n"
"""Stands between instruction and context in the content of an Alpaca user turn."""

ROLES = ("system", "user", "assistant", "tool")

GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")

MAX_UNUSED_ROWS = 512
"""Rows of the embedding beyond the tokenizer's last id that padding explains (to a multiple of 64 … 512)."""


# ---------------------------------------------------------------------------------------------------------
# A base model becomes a chat model
# ---------------------------------------------------------------------------------------------------------


def prepare_for_chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat = "chatml"
) -> None:
    """Give a base model and its tokenizer a chat format, in place; one that has a chat template keeps it.

    ChatML appends four tokens. Their rows of the embedding, and of the output matrix where it is not tied, are the
    fp32 mean of the tokenizer's old rows, so that their first logits are ordinary ones; old rows keep every bit.
    Rows that pad the embedding are taken before new ones are made. The stop token (`<|im_end|>`; in Alpaca the
    base's own eos) becomes eos everywhere, pad stays the base's.

    Raises:
        UserError: the tokenizer doesn't fit the model, or has the other format.
    """
    rows, ids = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if not ids <= rows <= ids + MAX_UNUSED_ROWS:
        raise UserError(
            f"the tokenizer has {ids:,} tokens and the model {rows:,} rows of embedding: "
            "give the tokenizer that the model was trained with"
        )
    prepare_tokenizer(tokenizer, chat_format)
    add_rows(model, ids, len(tokenizer))
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat = "chatml") -> None:
    """Give a tokenizer a chat format, in place: its tokens, stop token, pad and template.

    A template that says what is trained stays. One that doesn't, as many base models bring, makes room for ours, and a
    line says so.

    Raises:
        UserError: it has the other format, or no eos.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no eos token, which a conversation has to end or be padded with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template and GENERATION_MARK.search(tokenizer.chat_template):
        for name in FORMATS:
            if name != chat_format and tokenizer.chat_template == read_template(name):
                raise UserError(
                    f"the tokenizer has the chat format {name} already: set chat_format: {name}, or give a base model"
                )
        return
    if tokenizer.chat_template:
        print(
            "the tokenizer's chat template doesn't say what is trained (no {% generation %} block): "
            f"{chat_format} takes its place",
            file=sys.stderr,
        )
    if chat_format == "chatml":
        add_chat_tokens(tokenizer)
        tokenizer.eos_token = IM_END
    tokenizer.chat_template = read_template(chat_format)


def add_chat_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Append those of the four tokens that a tokenizer lacks; those that it has become special ones."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in CHAT_TOKENS if token not in vocabulary]
    base = len(tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CHAT_TOKENS], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(missing) != list(range(base, base + len(missing))):
        raise UserError(f"the tokenizer's ids have gaps: the chat tokens do not land at {base:,} and behind")


@torch.no_grad()
def add_rows(model: PreTrainedModel, old: int, new: int) -> None:
    """Make rows `old` … `new` - 1 of the embeddings the fp32 mean of the rows before; nothing where there are none."""
    if old == new:
        return
    if model.get_input_embeddings().weight.shape[0] < new:
        model.resize_token_embeddings(new, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = layer.weight
        weight[old:new] = weight[:old].float().mean(dim=0).to(weight.dtype)
        if getattr(layer, "bias", None) is not None:
            layer.bias[old:new] = layer.bias[:old].float().mean().to(layer.bias.dtype)


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
    ends: list[int]
    """For each assistant turn, the number of ids up to and including its stop token."""


class Segment(NamedTuple):
    """Part of a rendered conversation that is encoded by itself."""

    text: str
    ids: list[int] | None
    """None: of text that is yet to be encoded and can hold no special token."""
    trained: bool
    ends_answer: bool = False
    """Whether an assistant's turn ends with it."""


class Gap(NamedTuple):
    """Part of a layout that is encoded by itself once the contents are known."""

    parts: tuple[str | int, ...]
    """The template's own text, and numbers of the turns whose contents stand there."""
    trained: bool
    ends_answer: bool = False


Layout = list[Segment | Gap]


def encode_conversation(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> Encoded:
    """Ids and labels of one conversation; trained are the assistant's contents and their stop tokens.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses a role.
    """
    return encode_conversations(tokenizer, [messages])[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    train_special_tokens: bool = True,
) -> list[Encoded]:
    """As `encode_conversation`, all texts in one batch.

    Args:
        train_special_tokens: False: the stop token, `<think>` and `</think>` are no labels, as in the reference run.
    """
    rendered = encode_segments(tokenizer, conversations, train_special_tokens=train_special_tokens)
    return [join_segments(segments) for segments in rendered]


def join_segments(segments: Sequence[Segment]) -> Encoded:
    """The conversation that segments with their ids make."""
    input_ids: list[int] = []
    labels: list[int] = []
    ends = []
    for _, ids, trained, ends_answer in segments:
        input_ids += ids
        labels += ids if trained else [IGNORE_INDEX] * len(ids)
        if ends_answer:
            ends.append(len(input_ids))
    return Encoded(input_ids, labels, ends)


def input_mark_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """What stands between an instruction and its context in the tokenizer's chat format."""
    return INPUT_MARK if INPUT_MARK.strip() in (tokenizer.chat_template or "") else "\n\n"


def takes_role(tokenizer: PreTrainedTokenizerFast, role: str) -> bool:
    """Whether the chat format has a place for a role's turns."""
    try:
        encode_segments(tokenizer, [[*({"role": r, "content": "-"} for r in ("user", "assistant", role))]])
    except UserError:
        return False
    return True


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation so far and the header of the answer to come, exactly as in training."""
    return encode_prompts(tokenizer, [messages])[0]


def encode_prompts(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """As `encode_prompt`, all texts in one batch.

    A template of others may change contents: Qwen3's drops the thinking of earlier answers. Its own rendering is then
    what is encoded, in which special tokens that somebody typed are text all the same.
    """
    rendered = encode_segments(tokenizer, conversations, add_generation_prompt=True)
    prompts = [[i for segment in segments for i in segment.ids] for segments in rendered]
    if tokenizer.chat_template in map(read_template, FORMATS):
        return prompts
    for number, (messages, segments) in enumerate(zip(conversations, rendered, strict=True)):
        if "".join(segment.text for segment in segments) != render_prompt(tokenizer, messages):
            prompts[number] = encode_rendering(tokenizer, messages)
    return prompts


def render_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str:
    """What the tokenizer's template itself makes of a conversation and the header of the answer to come."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the chat template can't render this conversation: {error}") from None


def encode_rendering(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """Ids of `render_prompt`, special tokens of the contents encoded as text.

    As everywhere, `<think>` and `</think>` are tokens in an assistant's content. A template that looks for another
    special token in a content doesn't find it.
    """
    special = special_ids(tokenizer)
    guarded = []
    for message in messages:
        thinking = (THINK, END_THINK) if message["role"] == "assistant" else ()
        typed = one_of(token for token in special if token not in thinking)
        content = re.sub(typed, lambda match: f"{match[0][:1]}\0{match[0][1:]}", message["content"])
        guarded.append({"role": message["role"], "content": content})
    pieces = re.split(f"({one_of(special)})", render_prompt(tokenizer, guarded))
    texts = iter(encode_documents(tokenizer, [piece.replace("\0", "") for piece in pieces[::2]]))
    return [i for number, piece in enumerate(pieces) for i in ([special[piece]] if number % 2 else next(texts))]


def one_of(tokens: Iterable[str]) -> str:
    """A pattern for any of some tokens, the longest first; for nothing where there are none."""
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"


def encode_segments(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    add_generation_prompt: bool = False,
    train_special_tokens: bool = True,
) -> list[list[Segment]]:
    """The segments of each conversation with their ids; their texts together are the rendered conversation.

    It is cut where a special token stands and where an answer begins or ends: the header of an assistant's turn is
    encoded apart from its content, as it is when the model answers.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template: give a chat model, or prepare a base model for chat")
    special = special_ids(tokenizer)
    thinking = {mark: special[mark] for mark in (THINK, END_THINK) if mark in special}
    layouts: dict[tuple[Turn, ...], Layout] = {}
    rendered = []
    for messages in conversations:
        turns = tuple([(m["role"], INPUT_MARK in m["content"], m.get("trained", True)) for m in messages])
        if turns not in layouts:
            layouts[turns] = lay_out(tokenizer, special, turns, add_generation_prompt, train_special_tokens)
        segments: list[Segment] = []
        for part in layouts[turns]:
            if type(part) is Segment:
                segments.append(part)
            else:
                segments += fill(part, messages, thinking, train_special_tokens)
        rendered.append(segments)
    texts = [segment.text for segments in rendered for segment in segments if segment.ids is None]
    ids = iter(encode_documents(tokenizer, texts))
    return [
        [Segment(s.text, next(ids), s.trained, s.ends_answer) if s.ids is None else s for s in segments]
        for segments in rendered
    ]


def fill(gap: Gap, messages: Sequence[Message], thinking: dict[str, int], train_special_tokens: bool) -> list[Segment]:
    """A gap with its contents; `<think>` and `</think>` in an assistant's are tokens where `thinking` has their ids."""
    text = "".join([part if type(part) is str else messages[part]["content"] for part in gap.parts])
    if not thinking or "think>" not in text:
        return [Segment(text, None, gap.trained, gap.ends_answer)]
    pieces = [""]  # text, and in between the marks
    for part in gap.parts:
        if type(part) is str or messages[part]["role"] != "assistant":
            pieces[-1] += part if type(part) is str else messages[part]["content"]
        else:
            first, *others = re.split(f"({'|'.join(thinking)})", messages[part]["content"])
            pieces[-1] += first
            pieces += others
    segments = []
    for number, piece in enumerate(pieces):
        if number % 2:
            segments.append(Segment(piece, [thinking[piece]], gap.trained and train_special_tokens))
        elif piece:
            segments.append(Segment(piece, None, gap.trained))
    segments[-1] = segments[-1]._replace(ends_answer=gap.ends_answer)
    return segments


# ---------------------------------------------------------------------------------------------------------
# The template's own text
# ---------------------------------------------------------------------------------------------------------

Turn = tuple[str, bool, bool]
"""Role, whether the content marks its context, whether it is trained: all that a layout depends on."""

SLOT = re.compile(r"\0(\d+)[^\0]*\0")
"""Where the content of a turn goes."""


def lay_out(
    tokenizer: PreTrainedTokenizerFast,
    special: dict[str, int],
    turns: tuple[Turn, ...],
    add_generation_prompt: bool,
    train_special_tokens: bool,
) -> Layout:
    """The segments of the template's own text, and the gaps for the contents of turns."""
    variables = tuple((k, v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str))
    placeholders = tuple((role, marked) for role, marked, _ in turns)
    text, spans = render_turns(tokenizer.chat_template, variables, placeholders, add_generation_prompt)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    marks = one_of(special)
    layout: Layout = []
    for number, (start, end) in enumerate(pairwise(edges)):
        answer = number % 2 == 1
        trained = answer and all(turns[int(turn)][2] for turn in SLOT.findall(text[start:end]))
        for piece in re.split(f"({marks})", text[start:end]):
            if piece in special:
                layout.append(Segment(piece, [special[piece]], trained and train_special_tokens))
            elif SLOT.search(piece):
                parts = [int(part) if i % 2 else part for i, part in enumerate(SLOT.split(piece))]
                layout.append(Gap(tuple(part for part in parts if part != ""), trained))
            elif piece:
                layout.append(Segment(piece, encode_documents(tokenizer, [piece])[0], trained))
        if answer and end > start:
            layout[-1] = layout[-1]._replace(ends_answer=True)
    return layout


@functools.lru_cache(maxsize=4096)
def render_turns(
    template: str,
    variables: tuple[tuple[str, str], ...],
    turns: tuple[tuple[str, bool], ...],
    add_generation_prompt: bool,
) -> tuple[str, list[tuple[int, int]]]:
    """The rendering of turns given by role and whether a context is marked, with `SLOT`s, and where answers stand.

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
            **dict(variables),
        )
    except TemplateError as error:
        raise UserError(f"the chat template can't render this conversation: {error}") from None
    return texts[0], spans[0]


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The tokens that the format may use: every added special token, by its text."""
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
