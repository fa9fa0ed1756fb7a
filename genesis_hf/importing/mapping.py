"""Mapping files: which tensor of a state dict is which of a Llama's, and how it is laid out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from genesis_hf.config import build, read_yaml, setting
from genesis_hf.errors import UserError

SHIPPED = Path(__file__).parents[1] / "assets" / "mappings"

LAYER = "model.layers.{layer}."
LLAMA_TENSORS = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    LAYER + "input_layernorm.weight",
    LAYER + "self_attn.q_proj.weight",
    LAYER + "self_attn.k_proj.weight",
    LAYER + "self_attn.v_proj.weight",
    LAYER + "self_attn.o_proj.weight",
    LAYER + "post_attention_layernorm.weight",
    LAYER + "mlp.gate_proj.weight",
    LAYER + "mlp.up_proj.weight",
    LAYER + "mlp.down_proj.weight",
)
"""Every tensor of a Llama, by the name that transformers gives it."""

INEXPRESSIBLE = (
    (r"\.bias$", "a bias; a Llama's projections and norms have none"),
    (r"(^|\.)(wpe|pos_emb\w*|position_embeddings?|positional_\w+)\b", "learned positions; a Llama has RoPE"),
    (r"(q|k|query|key)_?(norm|ln|layernorm)\b", "a norm of queries or keys; a Llama has none"),
    (r"\b(router|experts?|moe)\b", "a mixture of experts; a Llama has one feed-forward network a layer"),
)
"""Names of tensors that no mapping can bring into a Llama, and what they are."""


@dataclass
class Part:
    """How one tensor of the file becomes one or more of a Llama's."""

    to: list[str] = setting(help="Llama's tensors that it holds, one after the other along its outputs")
    transpose: bool = setting(False, "stored as (inputs, outputs), as Conv1D does; a Llama's is (outputs, inputs)")
    groups: Literal["num_key_value_heads", "intermediate_size"] | None = setting(
        None, "fused in so many groups, each with its rows of every tensor in `to`; null: whole tensors stacked"
    )
    shard_axis: Literal[0, 1, "vocabulary"] | None = setting(
        None, "axis along which model-parallel files cut it; vocabulary: 0, or 1 where that gives hidden_size"
    )


@dataclass
class Mapping:
    """A mapping file."""

    tensors: dict[str, Any] = setting(help="the file's name of a tensor, {layer} in it: Llama's name, or a `Part`")
    norm: str = setting(help="rmsnorm; anything else can't be imported")
    mlp: str = setting(help="swiglu: down(silu(gate(x)) · up(x)); anything else can't be imported")
    positions: str = setting(help="rope; anything else can't be imported")
    rope: Literal["interleaved", "half"] = setting(
        help="what RoPE turns: neighbours (2i, 2i+1), as in Meta's code, or halves (i, i + head_dim/2)"
    )
    description: str = setting("", "whose files these are")
    model: dict[str, Any] = setting({}, "constants by LlamaConfig's names, where the file names none")
    config_keys: dict[str, str] = setting({}, "LlamaConfig's name: key in the file's own config")
    config_file: str | None = setting(None, "JSON beside the file that holds its config")
    expects: dict[str, Any] = setting({}, "keys of the file's config that must have this value where they stand there")
    ignore: list[str] = setting([], "patterns of tensors that hold no weights: masks, RoPE tables")
    add_bos_token: bool = setting(False, "texts began with BOS in training, so the tokenizer puts it first")
    stop_ids: list[int] = setting([], "ids besides EOS at which generation stops")

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Each pattern of a source name with its part."""
        for name, value in self.tensors.items():
            value = {"to": value} if isinstance(value, (str, list)) else value
            yield name, build(Part, value, f"tensors.{name}")


def read_mapping(name: str) -> Mapping:
    """A mapping file, or one that comes with the package by its name (`llama2c`).

    Raises:
        UserError: no such file; a key, a tensor or a convention that isn't known, or that a Llama can't express.
    """
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if not Path(name).exists() and "/" not in name and shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise UserError(f"mapping {name}: no such file; those that come with the package: {known}")
    mapping = build(Mapping, read_yaml(path), str(path))
    check_expressible(mapping, str(path))
    try:
        targets = [target for _, part in mapping.parts() for target in part.to]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for target in targets:
        if target not in LLAMA_TENSORS:
            raise UserError(f"{path}: a Llama has no tensor {target!r}; it has {', '.join(LLAMA_TENSORS)}")
        if targets.count(target) > 1:
            raise UserError(f"{path}: two tensors are mapped to {target}")
    for source, part in mapping.parts():
        if ("{layer}" in source) != ("{layer}" in part.to[0]) or source.count("{layer}") > 1:
            raise UserError(f"{path}: {source}: a layer's tensor has {{layer}} once on both sides, any other has none")
    return mapping


def check_expressible(mapping: Mapping, where: str) -> None:
    """Raise `UserError` where the mapping names a convention that no Llama has."""
    for key, expected, has in (
        ("norm", "rmsnorm", "RMSNorm only"),
        ("mlp", "swiglu", "a SwiGLU feed-forward network only"),
        ("positions", "rope", "RoPE only"),
    ):
        found = getattr(mapping, key)
        if found.lower() != expected:
            raise UserError(f"{where}: {key}: {found} can't be imported; a Llama has {has} ({key}: {expected})")


def pattern(name: str) -> re.Pattern[str]:
    """What a source name with {layer} matches, the layer's number in group 1."""
    return re.compile(re.escape(name).replace(r"\{layer\}", r"(\d+)") + r"\Z")


def is_ignored(mapping: Mapping, name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in mapping.ignore)


def inexpressible(name: str) -> str | None:
    """What a tensor is, by its name, that no Llama holds; None where it could be anything."""
    return next((words for expression, words in INEXPRESSIBLE if re.search(expression, name)), None)
