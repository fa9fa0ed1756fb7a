"""The constants of one model: from the command line, the file's own config, the mapping, and the tensors' shapes."""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import LlamaConfig

from genesis_hf.config import build, setting
from genesis_hf.errors import UserError
from genesis_hf.importing.mapping import (
    LAYER,
    LLAMA_TENSORS,
    Mapping,
    Part,
    check_expressible,
    inexpressible,
    is_ignored,
    pattern,
)
from genesis_hf.importing.source import Source

CONVENTIONS = ("rope", "norm", "mlp", "positions")
"""Keys of the mapping that may stand on the command line among the constants."""


@dataclass
class Architecture:
    """LlamaConfig's constants by its names; what is None follows from the shapes."""

    num_attention_heads: int = setting(help="no shape says it: give --model.num_attention_heads")
    max_position_embeddings: int = setting(help="the context: give --model.max_position_embeddings")
    rope_theta: float = setting(help="θ of RoPE: give --model.rope_theta")
    rms_norm_eps: float = setting(help="ε of RMSNorm: give --model.rms_norm_eps")
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool | None = None

    def rows(self, target: str) -> int:
        """Outputs of a projection, by its name in a Llama."""
        return {
            "q_proj": self.num_attention_heads * self.head_dim,
            "k_proj": self.num_key_value_heads * self.head_dim,
            "v_proj": self.num_key_value_heads * self.head_dim,
            "gate_proj": self.intermediate_size,
            "up_proj": self.intermediate_size,
        }.get(target.split(".")[-2], self.hidden_size)

    def llama_config(self) -> LlamaConfig:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rope_theta"}
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return LlamaConfig(**values, hidden_act="silu", rope_parameters=rope)


def with_conventions(mapping: Mapping, model: dict[str, Any]) -> tuple[Mapping, dict[str, Any]]:
    """The mapping with the conventions that the command line names among the constants; the other constants."""
    given = {key: str(model[key]) for key in CONVENTIONS if key in model}
    if given.get("rope", "half") not in ("interleaved", "half"):
        raise UserError(f"--model.rope is {given['rope']!r}; it must be interleaved or half")
    mapping = replace(mapping, **given)
    check_expressible(mapping, "the command line")
    return mapping, {key: value for key, value in model.items() if key not in CONVENTIONS}


def match_tensors(source: Source, mapping: Mapping) -> dict[str, tuple[Part, int | None]]:
    """Each of the file's tensors that holds weights: what it holds, and its layer.

    Raises:
        UserError: tensors that the mapping doesn't name, or that it names and the file lacks; a line a kind.
    """
    found: dict[str, tuple[Part, int | None]] = {}
    unused, missing = {}, {}
    known = [(name, pattern(name), part) for name, part in mapping.parts()]
    for name, tensor in source.tensors.items():
        match = next(((part, m) for _, expression, part in known if (m := expression.match(name))), None)
        if match:
            found[name] = match[0], int(match[1][1]) if match[1].lastindex else None
        elif not is_ignored(mapping, name):
            words = inexpressible(name)
            unused[name] = f"{tuple(tensor.shape)} is not in the mapping" + (f": it is {words}" if words else "")
    layers = 1 + max((layer for _, layer in found.values() if layer is not None), default=-1)
    for name, _, part in known:
        if part.to == ["lm_head.weight"]:  # absent where the head is the embedding
            continue
        for tensor in [name.replace("{layer}", str(layer)) for layer in range(layers or 1)]:
            if tensor not in source.tensors:
                missing[tensor] = f"is not in the file; it makes {' and '.join(part.to)}"
    if unused or missing:
        raise misfit(source, {**missing, **unused})
    return found


def misfit(source: Source, faults: dict[str, str]) -> UserError:
    """The error that names each tensor with its fault; layers alike in one line."""
    kinds: dict[str, list[str]] = {}
    for name in faults:
        kinds.setdefault(re.sub(r"\.\d+\.", ".#.", name), []).append(name)
    lines = []
    for names in kinds.values():
        more = f" (and {len(names) - 1} more of its kind)" if len(names) > 1 else ""
        lines.append(f"{names[0]} {faults[names[0]]}{more}")
    return UserError("\n  ".join([f"{source.path} doesn't fit the mapping or the constants:", *lines]))


def find_architecture(source: Source, mapping: Mapping, given: dict[str, Any]) -> Architecture:
    """The constants, complete.

    The command line's (`given`) go before the file's, which go before the mapping's. What none of them says follows
    from the shapes where they do say it.

    Raises:
        UserError: an unknown constant, one that is nowhere to be found, or one that contradicts a shape.
    """
    found = match_tensors(source, mapping)
    constants = dict(mapping.model)
    for key, theirs in mapping.config_keys.items():
        value = source.config.get(theirs)
        if value is not None and not (isinstance(value, int) and value <= 0):  # Meta's files say vocab_size -1
            constants[key] = value
    constants.update(given)
    architecture = build(Architecture, constants, str(source.path))
    return complete(architecture, source, found)


def complete(a: Architecture, source: Source, found: dict[str, tuple[Part, int | None]]) -> Architecture:
    """An architecture with what the shapes say.

    Raises:
        UserError: constants that contradict each other, or the shapes.
    """
    names = {target: name for name, (part, _) in found.items() for target in part.to}  # of some layer: they are alike

    def stored(target: str) -> tuple[torch.Tensor, list[str]]:
        """The tensor that holds a Llama's as (outputs, inputs), and all that it holds."""
        tensor, part = source.tensors[names[target]], found[names[target]][0]
        return tensor.T if part.transpose and tensor.ndim == 2 else tensor, part.to

    for target in (name for name in LLAMA_TENSORS if name not in names and name != "lm_head.weight"):
        raise UserError(f"{source.path}: nothing in the mapping makes {target}")
    embedding, _ = stored("model.embed_tokens.weight")
    if embedding.ndim != 2:
        raise misfit(source, {names["model.embed_tokens.weight"]: f"{tuple(embedding.shape)} is no matrix"})
    a = replace(
        a,
        hidden_size=a.hidden_size or embedding.shape[1],
        vocab_size=a.vocab_size or embedding.shape[0],
        num_hidden_layers=a.num_hidden_layers or 1 + max(layer for _, layer in found.values() if layer is not None),
    )
    if a.num_attention_heads < 1 or a.hidden_size % a.num_attention_heads:  # transformers asks for it
        raise UserError(
            f"{source.path}: a width of {a.hidden_size} doesn't divide by {a.num_attention_heads} heads; "
            "give --model.num_attention_heads"
        )
    a = replace(a, head_dim=a.head_dim or a.hidden_size // a.num_attention_heads)
    if a.num_key_value_heads is None:
        keys, held = stored(LAYER + "self_attn.k_proj.weight")
        queries = a.num_attention_heads * a.head_dim if LAYER + "self_attn.q_proj.weight" in held else 0
        shared = 2 if LAYER + "self_attn.v_proj.weight" in held else 1
        a = replace(a, num_key_value_heads=max(1, (keys.shape[0] - queries) // shared // a.head_dim))
    if a.intermediate_size is None:
        gate, held = stored(LAYER + "mlp.gate_proj.weight")
        a = replace(a, intermediate_size=max(1, gate.shape[0] // len(held)))
    if a.num_attention_heads % a.num_key_value_heads or a.head_dim % 2:
        raise UserError(
            f"{source.path}: {a.num_attention_heads} heads of width {a.head_dim}, {a.num_key_value_heads} of keys and "
            "values: the first must divide by the last, and the width by 2"
        )

    head = stored("lm_head.weight")[0] if "lm_head.weight" in names else None
    same = head is None or (head.shape == embedding.shape and torch.equal(head, embedding))
    if a.tie_word_embeddings and not same:
        raise UserError(
            f"{source.path}: tie_word_embeddings is true, and {names['lm_head.weight']} is not "
            f"{names['model.embed_tokens.weight']}"
        )
    if a.tie_word_embeddings is False and head is None:
        raise UserError(f"{source.path}: tie_word_embeddings is false, and nothing in the file makes lm_head.weight")
    return replace(a, tie_word_embeddings=same if a.tie_word_embeddings is None else a.tie_word_embeddings)
