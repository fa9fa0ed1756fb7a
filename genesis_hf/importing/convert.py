"""A file's tensors as a Llama's: transposed, split, their rows put into the order that its RoPE expects."""

import torch

from genesis_hf.importing.architecture import Architecture, match_tensors, misfit
from genesis_hf.importing.mapping import Mapping, Part
from genesis_hf.importing.source import Source

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def convert(source: Source, mapping: Mapping, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The state dict of `LlamaForCausalLM`, `lm_head.weight` in it only where it is not the embedding.

    Rows of the embedding beyond `vocab_size` are padding and left out.

    Raises:
        UserError: tensors of a wrong shape, a line a kind.
    """
    state, wrong = {}, {}
    for name, (part, layer) in match_tensors(source, mapping).items():
        tensor, shape = source.tensors[name], file_shape(part, architecture)
        if part.to == ["lm_head.weight"] and architecture.tie_word_embeddings:
            continue
        if layer is not None and layer >= architecture.num_hidden_layers:
            wrong[name] = f"is of a layer beyond num_hidden_layers {architecture.num_hidden_layers}"
            continue
        if part.to[0] in EMBEDDINGS and tensor.ndim == 2:
            tensor = without_padding(tensor, part, architecture.vocab_size)
        if tuple(tensor.shape) != shape:
            wrong[name] = f"has shape {tuple(source.tensors[name].shape)}, and {' with '.join(part.to)} {shape}"
            continue
        for target, weight in zip(part.to, split(tensor, part, architecture), strict=True):
            if mapping.rope == "interleaved" and target.split(".")[-2] in ("q_proj", "k_proj"):
                weight = halves(weight, architecture.head_dim)
            state[target.replace("{layer}", str(layer))] = weight.contiguous()
    last = f"model.layers.{architecture.num_hidden_layers - 1}.input_layernorm.weight"
    if not wrong and last not in state:
        wrong[last] = f"is made by nothing in the file, and num_hidden_layers is {architecture.num_hidden_layers}"
    if wrong:
        raise misfit(source, wrong)
    return state


def file_shape(part: Part, architecture: Architecture) -> tuple[int, ...]:
    """The shape of a tensor in the file that holds `part.to`."""
    kind = part.to[0].split(".")[-2]
    if "norm" in kind:
        return (architecture.hidden_size,)
    if part.to[0] in EMBEDDINGS:
        rows, columns = architecture.vocab_size, architecture.hidden_size
    else:
        rows = sum(architecture.rows(target) for target in part.to)
        columns = {
            "o_proj": architecture.num_attention_heads * architecture.head_dim,
            "down_proj": architecture.intermediate_size,
        }.get(kind, architecture.hidden_size)
    return (columns, rows) if part.transpose else (rows, columns)


def without_padding(tensor: torch.Tensor, part: Part, vocab_size: int) -> torch.Tensor:
    """An embedding or head without the rows beyond the vocabulary."""
    return tensor[:, :vocab_size] if part.transpose else tensor[:vocab_size]


def split(tensor: torch.Tensor, part: Part, architecture: Architecture) -> list[torch.Tensor]:
    """The tensors that one of the file holds, as (outputs, inputs)."""
    weight = tensor.T if part.transpose and tensor.ndim == 2 else tensor
    if len(part.to) == 1:
        return [weight]
    groups = getattr(architecture, part.groups) if part.groups else 1
    sizes = [architecture.rows(target) // groups for target in part.to]
    grouped = weight.reshape(groups, sum(sizes), weight.shape[1])
    return [rows.reshape(-1, weight.shape[1]) for rows in grouped.split(sizes, dim=1)]


def halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from the order 0, 1, 2, 3 … to 0, 2, 4 … 1, 3, 5 …

    RoPE that turns the neighbours (2i, 2i+1) then turns (i, i + head_dim/2), and scores of attention stay the same,
    for queries and keys are moved alike.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
