"""Held-out bits per byte: a loss that models with different tokenizers can be compared on."""

import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.tokenizer import encode_documents
from genesis_hf.uncertainty import linearize, standard_error


@dataclass
class Window:
    """A forward pass's share of a document: the ids that go in, and how many of the last targets are scored."""

    document: int
    input_ids: list[int]
    targets: list[int]
    scored: int


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    sequence_length: int,
    batch_size: int = 8,
) -> dict[str, float | int | None]:
    """Loss of a model on documents, in bits per UTF-8 byte; every byte of every document counts.

    Returns:
        `bits_per_byte`; `stderr` over documents (ratio estimator, None below two documents); `loss` in nats per
        token; `tokens`, `bytes`, `documents`.
    """
    return summarize(document_losses(model, tokenizer, documents, sequence_length, batch_size), documents)


def summarize(losses: list[tuple[float, int]], documents: Sequence[str]) -> dict[str, float | int | None]:
    """The figures of `bits_per_byte` from (nats, tokens) of each document."""
    scores = linearize("bits_per_byte", log_likelihoods(losses, documents))
    nats, tokens = (sum(column) for column in zip(*losses, strict=True))
    return {
        "bits_per_byte": float(scores.mean()),
        "stderr": standard_error(scores),
        "loss": nats / tokens,
        "tokens": tokens,
        "bytes": sum(byte_lengths(documents)),
        "documents": len(losses),
    }


def log_likelihoods(losses: list[tuple[float, int]], documents: Sequence[str]) -> list[tuple[float, int]]:
    """(log-likelihood in nats, bytes) of each document: lm-eval's items of a bits-per-byte task."""
    return [(-nats, size) for (nats, _), size in zip(losses, byte_lengths(documents), strict=True)]


@torch.inference_mode()
def document_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    sequence_length: int,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
) -> list[tuple[float, int]]:
    """(negative log-likelihood in nats, tokens) of each document.

    The first token is predicted from EOS, which ends the document before it in training. A document longer than
    `sequence_length` is read in windows that begin half a window apart: each token is scored once, all but those
    of the first window with at least half a window before them.

    Args:
        share: this process's number and how many there are; each takes its part of the windows, and all get the sums.
    """
    ids = encode_documents(tokenizer, list(documents))
    eos = tokenizer.eos_token_id
    windows = [w for document, row in enumerate(ids) for w in cut(document, row, eos, sequence_length)]
    windows.sort(key=lambda window: len(window.input_ids))  # rows of like length: little padding
    number, processes = share
    windows = windows[number::processes]
    losses = np.zeros(len(ids))
    progress = tqdm(total=len(windows), desc="bits per byte", unit="window", leave=False, disable=number > 0)
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        width = len(batch[-1].input_ids)
        # Padding stands at the end, where causal attention hides it from every token that is scored.
        padded = [w.input_ids + [eos] * (width - len(w.input_ids)) for w in batch]
        logits = model(input_ids=torch.tensor(padded, device=model.device), use_cache=False).logits
        for window, row in zip(batch, logits, strict=True):
            length = len(window.targets)
            kept = slice(length - window.scored, length)
            targets = torch.tensor(window.targets[kept], device=model.device)
            losses[window.document] += functional.cross_entropy(row[kept].float(), targets, reduction="sum").item()
        progress.update(len(batch))
    progress.close()
    if processes > 1:
        total = torch.from_numpy(losses).to(model.device)
        torch.distributed.all_reduce(total)
        losses = total.cpu().numpy()
    return [(float(loss), len(row)) for loss, row in zip(losses, ids, strict=True)]


def cut(document: int, ids: list[int], eos: int, length: int) -> Iterator[Window]:
    """Windows of at most `length` inputs over EOS + ids; every id is a scored target exactly once."""
    inputs = [eos, *ids[:-1]]
    step = max(1, length // 2)
    end = 0
    for start in range(0, len(ids), step):
        if end >= len(ids):
            return
        stop = min(start + length, len(ids))
        yield Window(document, inputs[start:stop], ids[start:stop], stop - end)
        end = stop


def byte_lengths(documents: Sequence[str]) -> list[int]:
    return [len(text.encode("utf-8")) for text in documents]


def xz_bits_per_byte(documents: Sequence[str]) -> float:
    """`xz -9` on the documents' bytes, one after the other: a yardstick that knows nothing but these bytes."""
    text = "".join(documents).encode("utf-8")
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
