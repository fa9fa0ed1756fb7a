"""Answers of a chat model: batched sampling of many, and one token by token for somebody who watches."""

import copy
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from genesis_hf.answers import Answer
from genesis_hf.chat import Message, encode_prompts
from genesis_hf.config import ConversationSource, SampleRecipe
from genesis_hf.conversations.checks import Fault, check_prompt
from genesis_hf.conversations.preferences import as_messages
from genesis_hf.conversations.rows import read_rows
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.export import resolve_model
from genesis_hf.post_training.models import load_model, refuse_other_weights
from genesis_hf.tokenizer import load_tokenizer

STYLE_PROMPTS = Path(__file__).parent / "assets" / "style_prompts.jsonl"
"""A fixed set of prompts of our own: `id`, `category` and `messages` a line."""

DIVERGED = (
    "the model's logits are not numbers: it has diverged, or its weights are damaged; take an earlier checkpoint or "
    "export it again"
)


def load_chat(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model ready to answer, on the GPU in bf16 where there is one, else in fp32, and its tokenizer.

    Raises:
        UserError: the folder can't be read, or the two don't fit each other.
    """
    has_gpu = torch.cuda.is_available()
    refuse_other_weights(Path(path))
    folder = resolve_model(path)
    model = load_model(folder, torch.bfloat16 if has_gpu else torch.float32).to("cuda" if has_gpu else "cpu").eval()
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"model {path}: the tokenizer has {len(tokenizer):,} tokens and the model {model.config.vocab_size:,} rows"
        )
    return model, tokenizer


def read_prompts(path: str | Path = STYLE_PROMPTS, limit: int | None = None) -> list[list[Message]]:
    """Conversations to answer, by default a fixed set of our own; a final assistant turn of a row is left out.

    A row has `messages` or a `prompt` (text or messages), or any shape that training reads.

    Raises:
        UserError: an unreadable file, a row without a prompt.
    """
    rows = read_rows(ConversationSource(name="prompts", paths=[str(path)]))
    prompts = []
    for number in range(len(rows))[:limit]:
        try:
            _, row = rows[number]
            key = next((key for key in ("messages", "prompt") if row.get(key)), None)
            messages = as_messages(row[key], "user") if key else to_messages(row)
            if messages[-1]["role"] == "assistant":
                messages.pop()
            check_prompt(messages)
        except (Fault, KeyError, TypeError, IndexError) as fault:
            raise UserError(f"{rows.where(number)}: no prompt that can be answered ({fault})") from None
        prompts.append(messages)
    return prompts


def sampling(tokenizer: PreTrainedTokenizerFast, recipe: SampleRecipe) -> GenerationConfig:
    """transformers' settings for a recipe's; temperature 0 is greedy."""
    settings: dict[str, Any] = {"do_sample": recipe.temperature > 0}
    if recipe.temperature > 0:
        settings.update(temperature=recipe.temperature, top_p=recipe.top_p, top_k=0)
    return GenerationConfig(
        max_new_tokens=recipe.max_new_tokens,
        repetition_penalty=recipe.repetition_penalty,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[Message]],
    settings: GenerationConfig,
    batch_size: int = 64,
    seed: int = 42,
) -> list[Answer]:
    """An answer to each prompt, in the prompts' order; see `sample_batches`."""
    batches = sample_batches(model, tokenizer, prompts, settings, batch_size, seed)
    answers = {number: answer for batch in batches for number, answer in batch.items()}
    return [answers[number] for number in range(len(prompts))]


def sample_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[Message]],
    settings: GenerationConfig,
    batch_size: int = 64,
    seed: int = 42,
    done: Collection[int] = (),
) -> Iterator[dict[int, Answer]]:
    """Answers batch by batch, by the number of their prompt; those that are `done` are left out.

    What is drawn for a prompt follows from the seed and the prompt's number alone, so batch size and order change an
    answer only where rounding does: in fp32 next to never, in bf16 now and then. torch's own random state is neither
    used nor moved.

    Prompts of like length are answered together, padded on the left. A prompt too long for the context loses its
    beginning; how many did is said on stderr.

    Raises:
        UserError: `max_new_tokens` leaves no room for a prompt.
    """
    room = model.config.max_position_embeddings - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens is {settings.max_new_tokens}, which leaves no room for a prompt in the model's context "
            f"of {model.config.max_position_embeddings}"
        )
    encoded = encode_prompts(tokenizer, prompts)
    if cut := sum(len(ids) > room for ids in encoded):
        print(f"{cut} of {len(encoded)} prompts lose their beginning: they exceed {room:,} tokens", file=sys.stderr)
    order = sorted((number for number in range(len(encoded)) if number not in done), key=lambda i: len(encoded[i]))
    with tqdm(
        total=len(encoded), initial=len(encoded) - len(order), desc="answering", unit="answer", disable=None
    ) as bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            written = write_batch(model, tokenizer, [encoded[i][-room:] for i in numbers], numbers, settings, seed)
            yield {
                number: to_answer(tokenizer, prompts[number], ids) for number, ids in zip(numbers, written, strict=True)
            }
            bar.update(len(numbers))


@torch.inference_mode()
def write_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[list[int]],
    numbers: list[int],
    settings: GenerationConfig,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each row of ids, padded after the stop token.

    Raises:
        UserError: the model computes what is no number.
    """
    inputs = pad_left(rows, tokenizer.pad_token_id, model.device)
    width = inputs["input_ids"].shape[1]
    watch = Watch(model.device)
    processors = LogitsProcessorList([watch])
    if settings.do_sample:
        draws = [np.random.default_rng((seed, number)).random(settings.max_new_tokens) for number in numbers]
        processors += [TemperatureLogitsWarper(settings.temperature), TopPLogitsWarper(settings.top_p)]
        processors.append(Draw(torch.tensor(np.stack(draws), device=model.device), width))
        settings = copy.deepcopy(settings)
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    outputs = model.generate(**inputs, generation_config=settings, logits_processor=processors)
    if watch.diverged:
        raise UserError(DIVERGED)
    return outputs[:, width:].tolist()


class Watch(LogitsProcessor):
    """Notes on the device whether any row's logits were not numbers, so that nothing waits for it at each token."""

    def __init__(self, device: torch.device) -> None:
        self.diverged = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, tokens so far), (rows, vocabulary) → the same scores."""
        self.diverged |= ~scores.amax(dim=-1).isfinite().all()  # minus infinity is a token ruled out
        return scores


class Draw(LogitsProcessor):
    """Samples by inversion: the first token at which the cumulative probability exceeds a number drawn beforehand.

    It leaves that token alone finite, so that the likeliest one is the drawn one.
    """

    def __init__(self, draws: torch.Tensor, width: int) -> None:
        """draws: (rows, max_new_tokens) in [0, 1), fp64; width: tokens of the padded prompts."""
        self.draws = draws
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, tokens so far), (rows, vocabulary) → scores, minus infinity but for one a row."""
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        # Of the sum, which rounding may leave below 1; and never a token that has no probability.
        goals = self.draws[:, input_ids.shape[1] - self.width, None] * cumulative[:, -1:]
        # What is not a number exceeds no goal; an index beyond the vocabulary would be an assert on a GPU.
        chosen = torch.searchsorted(cumulative, goals, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def to_answer(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[Message], ids: list[int]) -> Answer:
    """The answer that some ids stand for, up to the stop token."""
    stopped = tokenizer.eos_token_id in ids
    length = ids.index(tokenizer.eos_token_id) if stopped else len(ids)
    return Answer(list(prompt), tokenizer.decode(ids[:length]), stopped, length + stopped)


def pad_left(rows: list[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (rows, longest), the ids at the right."""
    width = max(map(len, rows))
    ids = [[pad_token_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


# ---------------------------------------------------------------------------------------------------------
# Token by token
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """One token of an answer, as it is written."""

    id: int
    text: str
    """what it adds to the text: nothing where a character is not whole yet, and nothing of the stop token's own"""
    probability: float
    """the model's own, before temperature, penalty and cuts"""
    alternatives: list[tuple[str, float]]
    """the likeliest tokens at this place, as text, with the model's own probabilities"""
    stops: bool = False


@torch.inference_mode()
def stream_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: list[int],
    settings: GenerationConfig,
    seed: int | None = None,
    alternatives: int = 0,
) -> Iterator[Token]:
    """What the model writes after some ids, each token as soon as it is there; the stop token is the last one.

    The model computes only when it is asked for the next token, in the thread that asks: to leave the iterator is to
    stop it. What is drawn is what `sample_answers` draws for its first prompt with this seed. A prompt that leaves no
    room for `max_new_tokens` loses its beginning.

    Args:
        settings: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `eos_token_id`.
        seed: of the draws; None: another one each time.
        alternatives: how many of the likeliest tokens to name.

    Raises:
        UserError: the model computes what is no number.
    """
    steps = settings.max_new_tokens
    ids = torch.tensor([prompt_ids[-max(1, context_length(model) - steps) :]], device=model.device)
    width, stops = ids.shape[1], stop_ids(settings)
    processors = LogitsProcessorList()
    if settings.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample:
        draws = np.random.default_rng(None if seed is None else (seed, 0)).random((1, steps))
        processors.append(TemperatureLogitsWarper(settings.temperature))
        processors += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
        processors += [TopPLogitsWarper(settings.top_p), Draw(torch.tensor(draws, device=model.device), width)]
    text, cache, unread = GrowingText(tokenizer, prompt_ids), None, ids
    for step in range(1, steps + 1):
        output = model(input_ids=unread, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        probabilities = logits.softmax(dim=-1)[0]
        unread = processors(ids, logits).argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, unread], dim=1)
        token = int(unread)
        probability = float(probabilities[token])
        if math.isnan(probability):
            raise UserError(DIVERGED)
        likeliest = probabilities.topk(min(alternatives, probabilities.numel()))
        names = [tokenizer.decode([i]) for i in likeliest.indices.tolist()]
        stopped = token in stops
        piece = "" if stopped else text.add(token)
        if stopped or step == steps:
            piece += text.rest()
        pairs = list(zip(names, likeliest.values.tolist(), strict=True))
        yield Token(token, piece, probability, pairs, stopped)
        if stopped:
            return


def stream_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: list[int],
    settings: GenerationConfig,
    seed: int | None = None,
) -> Iterator[str]:
    """The text of `stream_tokens` in pieces; closing the iterator stops the model."""
    for token in stream_tokens(model, tokenizer, prompt_ids, settings, seed):
        if token.text:
            yield token.text


def stop_ids(settings: GenerationConfig) -> set[int]:
    """The tokens that end an answer."""
    eos = settings.eos_token_id
    return set() if eos is None else set(eos) if isinstance(eos, list) else {eos}


def context_length(model: PreTrainedModel) -> int:
    """Tokens of prompt and answer together."""
    return getattr(model.config, "max_position_embeddings", None) or 2048


class GrowingText:
    """Text of ids that come one at a time.

    `tokenizers.DecodeStream` raises where a model writes bytes that are no character, as small ones do. Only the last
    ids are decoded again, with those before them, since a decoder may treat the beginning of a text otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, before: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(before[-4:])
        self.begin, self.shown = 0, len(self.ids)

    def add(self, token: int) -> str:
        """What the text grows by; nothing until a character is whole."""
        self.ids.append(token)
        piece = self.unseen()
        # A character has up to four bytes; what is no character by then never becomes one.
        if piece.endswith("\ufffd") and len(self.ids) - self.shown < 4:
            return ""
        self.begin, self.shown = self.shown, len(self.ids)
        return piece

    def rest(self) -> str:
        """What is left of a character that no further id completes."""
        piece = self.unseen()
        self.begin, self.shown = self.shown, len(self.ids)
        return piece

    def unseen(self) -> str:
        """The text of the ids that were not shown yet, in the light of those before them."""
        shown = self.tokenizer.decode(self.ids[self.begin : self.shown])
        return self.tokenizer.decode(self.ids[self.begin :])[len(shown) :]
