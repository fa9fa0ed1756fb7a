"""Which one change of a broken model makes it predict text again.

An export that computes something else than training did is right but for one thing. Each likely thing is changed in the
loaded model and undone again; the change under which text costs clearly less is the cause. A sound model has none, so
this is asked of every model, also where nothing is known of its training.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from genesis_hf.tokenizer import encode_documents

CLEARLY = 0.1
"""Share of the loss that a change must take off to be named."""

PREDICTS = 0.75
"""Share of the guesser's loss, ln V, that the changed model must stay below: of a model that knows nothing, any change
may happen to be the better one."""

ROWS, LENGTH = 4, 256
"""Of text: enough for a wrong θ to show, seconds for a 1B model on a GPU."""

THETAS = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0)
EPSILONS = (1e-5, 1e-6)


@torch.inference_mode()
def try_suspects(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The changes that lower the loss on some text by a tenth or more, the best first, in words.

    The model is left as it was. Empty where none does, and for models that are not Llama's kind.
    """
    # A text stands after the token that it was trained after, EOS or BOS, or its change would be the best of all.
    starts = {tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    length = min(LENGTH, model.config.max_position_embeddings)
    encoded = [ids for ids in encode_documents(tokenizer, list(texts[:ROWS])) if ids]
    if not (encoded and starts) or not hasattr(getattr(model, "model", None), "rotary_emb"):
        return []
    plain, rows = min((loss_of(model, rows), rows) for rows in ([[s, *i][:length] for i in encoded] for s in starts))
    bound = min(plain * (1 - CLEARLY), PREDICTS * math.log(model.config.vocab_size))
    found = []
    for words, change in changes(model):
        with change:
            loss = loss_of(model, rows)
        if loss < bound:
            found.append((loss, words))
    return [f"{words}: {loss:.2f} nats a token instead of {plain:.2f}" for loss, words in sorted(found)]


def loss_of(model: PreTrainedModel, rows: list[list[int]]) -> float:
    """Mean nats of all tokens but each row's first two, which follow from next to nothing."""
    losses = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none")[1:])
    return torch.cat(losses).mean().item()


def changes(model: PreTrainedModel) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    """(words, a context in which the model is changed so) for each suspect but the ones in the ids."""
    rotary = model.model.rotary_emb
    size = model.config.head_dim if getattr(model.config, "head_dim", None) else None
    size = size or model.config.hidden_size // model.config.num_attention_heads
    for theta in THETAS:
        frequencies = theta ** -(torch.arange(0, size, 2, device=rotary.inv_freq.device).float() / size)
        if frequencies.shape == rotary.inv_freq.shape and not torch.allclose(frequencies, rotary.inv_freq, rtol=1e-3):
            yield f"RoPE θ {theta:,.0f}", replaced([(rotary.inv_freq, frequencies)])
    projections = [p for layer in model.model.layers for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)]
    for words, backwards in (("interleaved RoPE rows put in halves", False), ("RoPE rows interleaved", True)):
        yield words, reordered(projections, size, backwards)
    norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    for epsilon in EPSILONS:
        if norms and norms[0].variance_epsilon != epsilon:
            yield f"norm epsilon {epsilon:g}", with_epsilon(norms, epsilon)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight and head.weight.shape == embedding.weight.shape:
        yield "the output tied to the embedding", tied(head, embedding)


@contextlib.contextmanager
def replaced(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Tensors with other values, then with their own again."""
    kept = [tensor.clone() for tensor, _ in pairs]
    try:
        for tensor, values in pairs:
            tensor.copy_(values)
        yield
    finally:
        for (tensor, _), values in zip(pairs, kept, strict=True):
            tensor.copy_(values)


@contextlib.contextmanager
def reordered(projections: list[nn.Linear], size: int, backwards: bool) -> Iterator[None]:
    """Query and key rows of each head from pairs (0 1 2 3 …) to halves (0 2 … 1 3 …), or back."""
    order = torch.arange(size).view(-1, 2).T.reshape(-1)
    order = order.argsort() if backwards else order
    try:
        for projection in projections:
            permute(projection, size, order)
        yield
    finally:
        for projection in projections:
            permute(projection, size, order.argsort())


def permute(projection: nn.Linear, size: int, order: torch.Tensor) -> None:
    for weight in (projection.weight, projection.bias):
        if weight is not None:
            rows = weight.view(-1, size, *weight.shape[1:])
            rows.copy_(rows[:, order.to(weight.device)].clone())


@contextlib.contextmanager
def with_epsilon(norms: list[nn.Module], epsilon: float) -> Iterator[None]:
    kept = [norm.variance_epsilon for norm in norms]
    try:
        for norm in norms:
            norm.variance_epsilon = epsilon
        yield
    finally:
        for norm, value in zip(norms, kept, strict=True):
            norm.variance_epsilon = value


@contextlib.contextmanager
def tied(head: nn.Linear, embedding: nn.Embedding) -> Iterator[None]:
    kept = head.weight
    try:
        head.weight = embedding.weight
        yield
    finally:
        head.weight = kept
