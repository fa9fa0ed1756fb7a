"""Held-out text as tasks: bits per byte of each source, beside what xz makes of it."""

from collections.abc import Iterable

import torch
import transformers
from lm_eval.models.huggingface import HFLM

from genesis_hf.config import EvaluateRecipe, Source
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import UserError
from genesis_hf.evaluation.batch_size import fitting_batch_size
from genesis_hf.evaluation.bits_per_byte import document_losses, log_likelihoods, summarize, xz_bits_per_byte
from genesis_hf.files import hash_items


def task_name(source: Source) -> str:
    return f"held_out/{source.name}"


def read_held_out(source: Source, limit: int) -> list[str]:
    """Whole documents from the first on until they hold `limit` bytes.

    Raises:
        UserError: an unreadable source, or one without text.
    """
    documents = take_bytes(read_documents(source), limit)
    if not documents:
        raise UserError(f"held_out_sources: {source.name!r} holds no text")
    return documents


def take_bytes(documents: Iterable[str], limit: int) -> list[str]:
    """Whole documents from the first on until they hold `limit` bytes; empty ones are left out."""
    taken, size = [], 0
    for text in documents:
        if text:
            taken.append(text)
            size += len(text.encode("utf-8"))
        if size >= limit:
            break
    return taken


def held_out_settings(documents: list[str], window: int, recipe: EvaluateRecipe) -> dict[str, object]:
    """What decides the score besides the model."""
    return {
        "task_version": 1,
        "data_sha256": hash_items(documents),
        "n": len(documents),
        "num_fewshot": 0,
        "limit": recipe.held_out_bytes,
        "config_sha256": f"window {window}",
        "dtype": recipe.dtype,
    }


def window_of(folder: object, recipe: EvaluateRecipe) -> int:
    """Tokens read at once: the recipe's, else the model's context."""
    return recipe.sequence_length or transformers.AutoConfig.from_pretrained(folder).max_position_embeddings


def measure_held_out(lm: HFLM, documents: list[str], window: int) -> tuple[dict[str, dict], list[dict]]:
    """Metrics and items of one source; every process measures its share of the windows and gets all figures."""
    batch_size = lm.batch_size
    if not isinstance(batch_size, int):
        batch_size = fitting_batch_size(lm.model.config, window, torch.device(lm.device), 1)
    share = (lm.rank, lm.world_size)
    losses = document_losses(lm.model, lm.tokenizer, documents, window, batch_size, share)
    figures = summarize(losses, documents)
    metric = {
        "value": figures.pop("bits_per_byte"),
        "stderr": figures.pop("stderr"),
        "chance": None,
        "n": len(documents),
        "higher_is_better": False,
        "yardstick": {"name": "xz -9", "value": xz_bits_per_byte(documents)},
        **figures,
    }
    items = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "values": log_likelihoods(losses, documents)}]
    return {"bits_per_byte": metric}, items
