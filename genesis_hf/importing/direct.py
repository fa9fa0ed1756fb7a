"""The model computed from the file's own tensors, in the file's own conventions: what an import is compared with.

Nothing is converted: a transposed matrix is multiplied from its side, a fused one is applied whole and its *outputs*
are divided, RoPE turns neighbours as complex numbers where the file's code does. So a mistake in `convert.py` can't
hide here. What the mapping says is taken as said; `losses_otherwise` puts that to the test.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from genesis_hf.importing.architecture import Architecture
from genesis_hf.importing.mapping import Mapping, Part
from genesis_hf.importing.source import Source
from genesis_hf.parity import MAX_NEW_TOKENS, Answers, Questions

THETAS = (10_000.0, 500_000.0)
"""RoPE's θ in Llama 1 and 2, and in Llama 3 and here."""


class DirectModel:
    """Logits in fp32 of a `Source`, its weights first rounded to `dtype`; one sequence at a time, no cache."""

    def __init__(
        self, source: Source, mapping: Mapping, architecture: Architecture, dtype: torch.dtype = torch.float32
    ) -> None:
        self.source, self.mapping, self.architecture, self.dtype = source, mapping, architecture, dtype
        self.where: dict[str, tuple[str, Part]] = {
            target: (name, part) for name, part in mapping.parts() for target in part.to
        }

    def weight(self, target: str, layer: int | None = None) -> tuple[torch.Tensor, Part]:
        """The file's tensor that holds a Llama's, as it stands, and what the mapping says of it."""
        name, part = self.where[target]
        return self.source.tensors[name.replace("{layer}", str(layer))].to(self.dtype).float(), part

    def apply(self, x: torch.Tensor, target: str, layer: int | None = None) -> torch.Tensor:
        """x (…, inputs) through one projection → (…, outputs)."""
        matrix, part = self.weight(target, layer)
        y = x @ matrix if part.transpose else functional.linear(x, matrix)
        if len(part.to) == 1:
            return y
        groups = getattr(self.architecture, part.groups) if part.groups else 1
        widths = [self.architecture.rows(other) // groups for other in part.to]
        period, position = sum(widths), part.to.index(target)
        first, width = sum(widths[:position]), widths[position]
        columns = [group * period + first + i for group in range(groups) for i in range(width)]
        return y[..., columns]

    def norm(self, x: torch.Tensor, target: str, layer: int | None = None) -> torch.Tensor:
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.architecture.rms_norm_eps)
        return x * scale * self.weight(target, layer)[0]

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """RoPE on x (positions, heads, head_dim)."""
        size = self.architecture.head_dim
        frequencies = self.architecture.rope_theta ** -(torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(len(x)).float(), frequencies)[:, None]
        if self.mapping.rope == "interleaved":
            numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
            return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    @torch.inference_mode()
    def __call__(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits (positions, vocabulary) for one sequence."""
        a, block = self.architecture, "model.layers.{layer}."
        embedding, part = self.weight("model.embed_tokens.weight")
        embedding = embedding.T if part.transpose else embedding
        x = embedding[list(ids)]
        future = torch.full((len(ids), len(ids)), -math.inf).triu(1)
        for layer in range(a.num_hidden_layers):
            h = self.norm(x, block + "input_layernorm.weight", layer)
            q, k, v = (
                self.apply(h, f"{block}self_attn.{kind}_proj.weight", layer).view(len(ids), -1, a.head_dim)
                for kind in "qkv"
            )
            q, k = self.rotate(q), self.rotate(k)
            # Query head n reads the keys and values of head n // (heads / KV heads).
            k, v = (t.repeat_interleave(a.num_attention_heads // a.num_key_value_heads, dim=1) for t in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(a.head_dim) + future
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
            x = x + self.apply(mixed, block + "self_attn.o_proj.weight", layer)
            h = self.norm(x, block + "post_attention_layernorm.weight", layer)
            gate, up = (self.apply(h, f"{block}mlp.{kind}_proj.weight", layer) for kind in ("gate", "up"))
            x = x + self.apply(gate * torch.sigmoid(gate) * up, block + "mlp.down_proj.weight", layer)
        x = self.norm(x, "model.norm.weight")
        logits = x @ embedding.T if a.tie_word_embeddings else self.apply(x, "lm_head.weight")
        return logits[:, : a.vocab_size]

    def loss(self, rows: Sequence[Sequence[int]]) -> float:
        """Mean nats a predicted token over rows of ids."""
        losses = [functional.cross_entropy(self(row)[:-1], torch.tensor(row[1:]), reduction="none") for row in rows]
        return torch.cat(losses).double().mean().item()

    def answers(self, questions: Questions, token_ids: list[list[int]]) -> Answers:
        """What `genesis_hf.parity` asks; `token_ids` are those that the file's own tokenizer gives the texts."""
        logits = [self(row).numpy() for row in questions.rows]
        greedy = []
        for prompt in questions.prompts:
            ids = list(prompt)
            for _ in range(MAX_NEW_TOKENS):
                ids.append(int(self(ids)[-1].argmax()))
            greedy.append(ids[len(prompt) :])
        loss = self.loss([questions.rows[number] for number in questions.scored])
        return Answers(np.concatenate(logits), loss, greedy, token_ids)


def losses_otherwise(model: DirectModel, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Loss on text (nats a token) as the mapping has it, under `as mapped`, and by what else it could be.

    The proof by logits compares two computations of what the mapping says. This asks whether it says the truth: a
    trained model reads text best in the conventions that it was trained in.
    """
    mapping, a = model.mapping, model.architecture
    variants = {"as mapped": (mapping, a)}
    other = "half" if mapping.rope == "interleaved" else "interleaved"
    variants[f"rope: {other}"] = replace(mapping, rope=other), a
    for theta in THETAS:
        if not math.isclose(theta, a.rope_theta):
            variants[f"rope_theta: {theta:g}"] = mapping, replace(a, rope_theta=theta)
    for factor in (0.5, 2):
        heads, kv_heads, width = a.num_attention_heads * factor, a.num_key_value_heads * factor, a.head_dim / factor
        if kv_heads == int(kv_heads) and width % 2 == 0:
            fewer = {"num_attention_heads": int(heads), "num_key_value_heads": int(kv_heads), "head_dim": int(width)}
            variants[f"num_attention_heads: {int(heads)}"] = mapping, replace(a, **fewer)
    for one, two in (("gate", "up"), ("k", "v")):
        variants[f"{one}_proj and {two}_proj exchanged"] = exchanged(mapping, f"{one}_proj", f"{two}_proj"), a
    return {words: DirectModel(model.source, *variant, model.dtype).loss(rows) for words, variant in variants.items()}


def exchanged(mapping: Mapping, one: str, two: str) -> Mapping:
    """The mapping as if it named two tensors the other way round."""
    names = {one: two, two: one}
    tensors = {
        name: {
            **vars(part),
            "to": [".".join(names.get(word, word) for word in target.split(".")) for target in part.to],
        }
        for name, part in mapping.parts()
    }
    return replace(mapping, tensors=tensors)
