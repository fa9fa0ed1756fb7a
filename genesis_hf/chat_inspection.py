"""A conversation as training sees it, token by token: what is trained and what is masked."""

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import (
    Encoded,
    Message,
    Segment,
    encode_segments,
    input_mark_of,
    join_segments,
    prepare_tokenizer,
    special_ids,
)
from genesis_hf.chat_turns import flatten_conversation
from genesis_hf.checkpoint.folders import find_checkpoint
from genesis_hf.config import (
    DPORecipe,
    InspectChatRecipe,
    KTORecipe,
    SFTRecipe,
    build,
    nearest,
    print_help,
    read_yaml,
    set_dotted,
    split_arguments,
)
from genesis_hf.conversations.checks import Fault, check_prompt
from genesis_hf.conversations.encoding import EncodingSettings, length_that_fits
from genesis_hf.conversations.mixture import prepare_conversations, prepare_labelled, prepare_preferences, source_of
from genesis_hf.conversations.preferences import to_labelled, to_pairs
from genesis_hf.conversations.rows import read_rows
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.tokenizer import load_tokenizer, plain_backend


class Token(NamedTuple):
    """A token of a rendered conversation."""

    id: int
    text: str
    """What it adds to the rendering; of a character that several tokens make, the last has all of it."""
    trained: bool
    special: bool = False
    """Not what somebody typed."""


@dataclass(frozen=True)
class Inspected:
    """A conversation as it is trained on."""

    title: str
    tokens: list[Token]
    cut: int = 0
    """Tokens at its end that training leaves out."""


@dataclass(frozen=True)
class InspectionSettings:
    """What of a recipe decides how a conversation is trained."""

    phase: str = "sft"
    """`sft`, `dpo` or `kto`; the latter two train the last answer alone."""
    max_length: int | None = None
    overlong: str = "turn"
    train_special_tokens: bool = True
    seed: int = 42


# ---------------------------------------------------------------------------------------------------------
# The recipe
# ---------------------------------------------------------------------------------------------------------

RECIPES = {"sft": SFTRecipe, "dpo": DPORecipe, "kto": KTORecipe}


def parse_inspection(argv: list[str] | None = None) -> tuple[InspectChatRecipe, Any, InspectionSettings]:
    """The settings of `scripts/inspect_chat.py`, and those of the recipe that it shows examples of, if one is named.

    TRL's keys in the recipe are not looked at, so that TRL needn't be imported.

    Raises:
        UserError: an unknown key on the command line, a value of the wrong type, neither a recipe nor a tokenizer.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print_help((InspectChatRecipe,))
        sys.exit(0)
    path, overrides = split_arguments(argv)
    values = read_yaml(path) if path else {}
    phase = phase_of(path, values) if path else "sft"
    ours, theirs = keys_of(InspectChatRecipe), keys_of(RECIPES[phase]) if path else set()
    for key, value in overrides:
        if key.partition(".")[0] not in ours | theirs:
            raise UserError(f"the command line: unknown key `{key}`{nearest(key, ours | theirs)}")
        set_dotted(values, key, value)
    where = path or "the command line"
    wanted = build(InspectChatRecipe, {key: values[key] for key in ours & values.keys()}, where)
    recipe = build(RECIPES[phase], {key: values[key] for key in theirs & values.keys()}, where) if path else None
    if wanted.row is not None and recipe is None:
        raise UserError("--row needs --config: the recipe whose examples are shown")
    if wanted.model is None and wanted.tokenizer is None:
        raise UserError("give --config, --model or --tokenizer: there is no tokenizer to show tokens of")
    return wanted, recipe, resolve_settings(wanted, recipe, phase)


def keys_of(kind: type) -> set[str]:
    return {f.name for f in fields(kind) if f.init}


def phase_of(path: str, values: dict[str, Any]) -> str:
    """Which phase a recipe is of: by its file's name, or by a key that no other phase has."""
    for phase in ("kto", "dpo"):
        if Path(path).stem.lower().startswith(phase):
            return phase
    if {"desirable_weight", "undesirable_weight"} & values.keys():
        return "kto"
    return "dpo" if {"beta", "loss_type", "length_normalized", "max_displacement"} & values.keys() else "sft"


def resolve_settings(wanted: InspectChatRecipe, recipe: Any, phase: str) -> InspectionSettings:
    """What training makes of the recipe's values."""
    length = wanted.max_length
    if length is None and recipe is not None:
        module = importlib.import_module(f"genesis_hf.post_training.{phase}")  # slow: it brings TRL
        length = module.DEFAULTS["max_length"]
    lengths = [length, context_of(wanted.model)]
    return InspectionSettings(
        phase,
        min((length for length in lengths if length), default=None),
        getattr(recipe, "overlong", "turn"),
        getattr(recipe, "train_special_tokens", True),
        wanted.seed,
    )


def context_of(model: str | None) -> int | None:
    """Tokens that a model's config allows; None where there is no config to read."""
    folder = None if model is None else tokenizer_folder(model)
    return None if folder is None else read_json(folder / "config.json").get("max_position_embeddings")


def tokenizer_folder(model: str) -> Path | None:
    """The folder of a model's tokenizer: an export's, a finished run's or a checkpoint's; None: nothing here."""
    path = Path(model).expanduser()
    for folder in (path, path / "final"):
        if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
            return folder
    return find_checkpoint(path) / "tokenizer" if path.is_dir() else None


def load_chat_tokenizer(wanted: InspectChatRecipe) -> PreTrainedTokenizerFast:
    """The tokenizer asked for: a base's gets the chat format, a chat model's keeps its template.

    Raises:
        UserError: no tokenizer there, or one that the format doesn't fit.
    """
    if wanted.tokenizer is not None:
        tokenizer = load_tokenizer(wanted.tokenizer)
    else:
        folder = tokenizer_folder(wanted.model)
        if folder is None and (wanted.model.count("/") != 1 or wanted.model.startswith((".", "~", "/"))):
            raise UserError(f"model {wanted.model}: no such folder; --tokenizer DIR shows tokens without a model")
        tokenizer = load_tokenizer(folder or wanted.model)
    prepare_tokenizer(tokenizer, wanted.chat_format or "chatml")
    return tokenizer


# ---------------------------------------------------------------------------------------------------------
# Tokens and their texts
# ---------------------------------------------------------------------------------------------------------


def inspect_messages(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], settings: InspectionSettings, title: str
) -> Inspected:
    """A conversation's tokens, cut as training cuts it.

    Raises:
        UserError: the template refuses it; it is too long and training drops it.
    """
    if settings.phase != "sft":
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        messages = [m if i == last else {**m, "trained": False} for i, m in enumerate(messages)]
    (segments,) = encode_segments(tokenizer, [messages], train_special_tokens=settings.train_special_tokens)
    tokens = list(tokens_of(tokenizer, segments))
    encoded = join_segments(segments)
    if settings.phase != "sft" and encoded.ends:
        tokens = tokens[: encoded.ends[-1]]  # what the template writes after an answer is not trained
    length = kept_length(encoded, len(tokens), settings)
    if not length:
        raise UserError(
            f"{title}: {len(tokens):,} tokens are more than max_length {settings.max_length:,}, and training drops it "
            f"(overlong: {settings.overlong}); see all of it with --max_length {len(tokens)}"
        )
    return Inspected(title, tokens[:length], len(tokens) - length)


def kept_length(encoded: Encoded, length: int, settings: InspectionSettings) -> int:
    """How many of a conversation's tokens training keeps."""
    if settings.max_length is None or length <= settings.max_length:
        return length
    if settings.phase != "sft":
        return 0
    return length_that_fits(encoded, EncodingSettings(settings.max_length, settings.overlong))


def tokens_of(tokenizer: PreTrainedTokenizerFast, segments: Sequence[Segment]) -> Iterator[Token]:
    """The tokens of segments; their texts together are the segments' texts."""
    backend, special = offset_backend(tokenizer), set(special_ids(tokenizer).values())
    lost = ""  # what a tokenizer's normalizer drops altogether goes to the next token
    for segment in segments:
        texts = [segment.text] if len(segment.ids) == 1 else token_texts(backend, segment.text)
        if len(texts) != len(segment.ids):
            raise RuntimeError(f"{segment.text!r} has {len(texts)} tokens here and {len(segment.ids)} in training")
        if not texts:
            lost += segment.text
        for i, text in zip(segment.ids, texts, strict=True):
            yield Token(i, lost + text, segment.trained, i in special)
            lost = ""


def token_texts(backend: Tokenizer, text: str) -> list[str]:
    """The part of a text that each of its tokens ends; a token within a character has none."""
    offsets = backend.encode(text, add_special_tokens=False).offsets
    texts, start = [], 0
    for (_, end), (following, _) in zip(offsets, [*offsets[1:], (len(text), 0)], strict=True):
        # Tokens of one character all reach over it: it belongs to the last.
        end = max(start, min(end, following))
        texts.append(text[start:end])
        start = end
    if texts:
        texts[-1] += text[start:]
    return texts


def offset_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer's backend, with offsets that hold the blanks at the ends of tokens."""
    backend = Tokenizer.from_str(plain_backend(tokenizer).to_str())
    backend.encode_special_tokens = True
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


# ---------------------------------------------------------------------------------------------------------
# Where conversations come from
# ---------------------------------------------------------------------------------------------------------


def read_messages(path: str) -> list[Message]:
    """The conversation of a JSON file: a list of messages, or an object with `messages` and perhaps `tools`.

    Raises:
        UserError: no such file, not JSON, no conversation.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"messages {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"messages {path}: cannot be read ({error})") from None
    except ValueError as error:
        raise UserError(f"messages {path}: not valid JSON ({error})") from None
    messages, tools = (value.get("messages"), value.get("tools")) if isinstance(value, dict) else (value, None)
    if not isinstance(messages, list) or not messages:
        raise UserError(f"messages {path}: a list of objects with role and content is needed")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message or not {"content", "tool_calls"} & message.keys():
            raise UserError(f"messages {path}: turn {number} is no object with role and content")
        if not isinstance(message.get("content") or "", str):
            raise UserError(f"messages {path}: the content of turn {number} is not text")
    try:
        flat = flatten_conversation(messages, tools)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"messages {path}: tools or tool_calls of another shape ({error!r})") from None
    added = len(flat) - len(messages)  # a system turn for the tools
    alone = flat[0]["role"] == "system" and len(flat) > 1  # which by itself is no conversation yet
    for turns in range(1 + alone, len(flat) + 1):
        try:
            check_prompt(flat[:turns])
        except Fault as fault:
            raise UserError(f"messages {path}: turn {turns - added}: {fault}") from None
    return flat


def inspect_example(
    tokenizer: PreTrainedTokenizerFast, recipe: Any, settings: InspectionSettings, number: int
) -> list[Inspected]:
    """Example `number` of a recipe's mixture, from 0 on: a conversation, or the two of a pair.

    The mixture is prepared as for training, in the same cache.

    Raises:
        UserError: the data ends before it, or can't be read.
    """
    prepare = {"sft": prepare_conversations, "dpo": prepare_preferences, "kto": prepare_labelled}[settings.phase]
    dataset, reports = prepare(tokenizer, recipe.mixture, settings.max_length, recipe, settings.seed)
    if number >= len(dataset):
        raise UserError(f"row {number:,}: the mixture has {len(dataset):,} examples, 0 to {len(dataset) - 1:,}")
    example = dataset[number]
    source = source_of(recipe.mixture, reports, number)
    where, row = read_rows(source)[example["row"]]
    title = f"example {number:,} of {len(dataset):,}, {source.name}: {where}"
    for shown in conversations_of(tokenizer, row, source, settings, title):
        if ids_of(example) == [[token.id for token in inspected.tokens] for inspected in shown]:
            return shown
    raise UserError(f"{title}: the cache holds other tokens than the row gives now; was the file changed?")


def ids_of(example: dict[str, Any]) -> list[list[int]]:
    """The ids of each conversation of a prepared example."""
    if "input_ids" in example:
        return [example["input_ids"]]
    answers = [key for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in example]
    return [[*example["prompt_ids"], *example[key]] for key in answers]


def conversations_of(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], source: Any, settings: InspectionSettings, title: str
) -> Iterator[list[Inspected]]:
    """What each example that a row can give shows."""

    def show(prompt: list[Message], answer: str, what: str) -> Inspected:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        return inspect_messages(tokenizer, messages, replace(settings, max_length=None), f"{title}, {what}")

    mark = input_mark_of(tokenizer)
    if settings.phase == "sft":
        messages = to_messages(row, source.format, mark)
        yield [inspect_messages(tokenizer, messages, settings, title)]
    elif settings.phase == "dpo":
        for pair in to_pairs(row, source, mark):
            yield [show(pair.prompt, pair.chosen, "chosen"), show(pair.prompt, pair.rejected, "rejected")]
    else:
        for one in to_labelled(row, source, mark):
            yield [show(one.prompt, one.answer, "desirable" if one.desirable else "undesirable")]
