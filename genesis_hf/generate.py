"""Answers of a chat model: batched sampling of many, and one token by token for a terminal."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from genesis_hf.chat import Message, encode_prompts
from genesis_hf.config import ConversationSource, SampleRecipe, write_text
from genesis_hf.conversations.checks import Fault, check_prompt
from genesis_hf.conversations.preferences import as_messages
from genesis_hf.conversations.rows import read_rows
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.export import resolve_model
from genesis_hf.post_training.models import load_model
from genesis_hf.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    prompt: list[Message]
    answer: str
    stopped: bool
    """It ended with the stop token by itself, before `max_new_tokens`."""
    tokens: int
    """Written, the stop token counted."""


def load_chat(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model ready to answer, on the GPU in bf16 where there is one, else in fp32, and its tokenizer.

    Raises:
        UserError: the folder can't be read, or the two don't fit each other.
    """
    has_gpu = torch.cuda.is_available()
    folder = resolve_model(path)
    model = load_model(folder, torch.bfloat16 if has_gpu else torch.float32).to("cuda" if has_gpu else "cpu").eval()
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"model {path}: the tokenizer has {len(tokenizer):,} tokens and the model {model.config.vocab_size:,} rows"
        )
    return model, tokenizer


def read_prompts(path: str, limit: int | None = None) -> list[list[Message]]:
    """Conversations to answer; a final assistant turn, if a row has one, is left out.

    A row has `messages` or a `prompt` (text or messages), or any shape that training reads.

    Raises:
        UserError: an unreadable file, a row without a prompt.
    """
    rows = read_rows(ConversationSource(name="prompts", paths=[path]))
    prompts = []
    for where, row in rows[:limit]:
        try:
            key = next((key for key in ("messages", "prompt") if row.get(key)), None)
            messages = as_messages(row[key], "user") if key else to_messages(row)
            if messages[-1]["role"] == "assistant":
                messages.pop()
            check_prompt(messages)
        except (Fault, KeyError, TypeError, IndexError) as fault:
            raise UserError(f"{where}: no prompt that can be answered ({fault})") from None
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


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[Message]],
    settings: GenerationConfig,
    batch_size: int = 64,
    seed: int = 42,
) -> list[Answer]:
    """An answer to each prompt, in the prompts' order; the same seed and batch size give the same answers.

    Prompts of like length are answered together, padded on the left. A prompt too long for the context loses its
    beginning.
    """
    room = model.config.max_position_embeddings - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens is {settings.max_new_tokens}, which leaves no room for a prompt in the model's context "
            f"of {model.config.max_position_embeddings}"
        )
    torch.manual_seed(seed)
    encoded = [ids[-room:] for ids in encode_prompts(tokenizer, prompts)]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    answers: dict[int, Answer] = {}
    progress = tqdm(total=len(order), desc="answering", unit="answer", disable=None)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = pad_left([encoded[i] for i in rows], tokenizer.pad_token_id, model.device)
        outputs = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
        for i, ids in zip(rows, outputs.tolist(), strict=True):
            stopped = tokenizer.eos_token_id in ids
            length = ids.index(tokenizer.eos_token_id) if stopped else len(ids)
            answers[i] = Answer(list(prompts[i]), tokenizer.decode(ids[:length]), stopped, length + stopped)
        progress.update(len(rows))
    progress.close()
    return [answers[i] for i in range(len(prompts))]


def pad_left(rows: list[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (rows, longest), the ids at the right."""
    width = max(map(len, rows))
    ids = [[pad_token_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def write_answers(path: str | Path, answers: Sequence[Answer]) -> None:
    """One JSON object a line: prompt, answer, stopped, tokens."""
    write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


class AskedToStop(StoppingCriteria):
    """Ends generation when a function says so."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """(rows,) bool"""
        return torch.full((input_ids.shape[0],), self.asked(), device=input_ids.device)


def stream_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int], settings: GenerationConfig
) -> Iterator[str]:
    """The answer in pieces as it is written; closing the iterator stops the model."""
    stopped = False
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    prompt_ids = prompt_ids[-max(1, model.config.max_position_embeddings - settings.max_new_tokens) :]
    failure: list[BaseException] = []

    def write() -> None:
        try:
            model.generate(
                **pad_left([prompt_ids], tokenizer.pad_token_id, model.device),
                generation_config=settings,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([AskedToStop(lambda: stopped)]),
            )
        except Exception as error:
            failure.append(error)
            streamer.end()

    writer = Thread(target=write)
    writer.start()
    try:
        for piece in streamer:
            yield piece.removesuffix(tokenizer.eos_token)
        if failure:
            raise failure[0]
    finally:
        stopped = True
        writer.join()
