"""Why an export computes something else: faults tried on the live model until one gives the export's answers.

A fault that is known from the folder (another constant in config.json, another output layer) is tried with the
folder's value, any other with the usual ones. What names a cause is the answers, not the difference of two files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from genesis_hf.exporting.live import LiveModel
from genesis_hf.parity import Answers, Questions

State = dict[str, torch.Tensor]

EXPLAINED = 0.02
"""A fault explains an export where this share of the difference is left, or less."""

THETAS = (10_000.0, 50_000.0, 100_000.0, 500_000.0, 1_000_000.0)
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def find_causes(
    live: PreTrainedModel | LiveModel,
    questions: Questions,
    expected: Answers,
    found: Answers | None,
    folder: Path | None,
) -> str:
    """The likely cause, in words.

    Args:
        live: the model that gave `expected`.
        found: the export's answers; None where it couldn't be read.
        folder: the exported Llama folder; None where the file is of another format.
    """
    causes = []
    if found is not None:
        other = [number for number, ids in enumerate(expected.token_ids) if ids != found.token_ids[number]]
        if other:
            causes.append(
                f"tokenizer: another one encodes {len(other)} of {len(expected.token_ids)} texts otherwise, "
                f"first {questions.texts[other[0]][:40]!r}"
            )
        if np.array_equal(expected.logits, found.logits):
            return " and ".join(causes) or "unknown: the logits are the same, the greedy text is not"
    state = plain_state(live)
    config, exported = LlamaConfig(**llama_constants(live.config)), None
    if folder is not None:
        exported = read_config(folder)
    if found is None:
        return " and ".join(constants_that_differ(config, exported)) or "unknown: its constants are the live model's"
    # Where only the tokenizer differs, logits agree within rounding; that needs no second cause.
    row = max(range(len(questions.rows)), key=lambda number: len(questions.rows[number]))
    start = sum(map(len, questions.rows[:row]))
    seen = slice(start, start + len(questions.rows[row]))
    distance = float(np.abs(expected.logits[seen] - found.logits[seen]).max())
    best, words = EXPLAINED * distance, None
    for name, constants, weights in faults(config, state, exported, folder):
        logits = logits_of(LlamaConfig(**{**llama_constants(config), **constants}), weights, questions.rows[row])
        left = float(np.abs(logits[:, : questions.vocabulary] - found.logits[seen]).max())
        if left < best:
            best, words = left, name
    if words is None and not (causes and distance < 1e-3):
        words = named_tensors(state, folder) or "unknown: no fault that is known here gives these answers"
    return " and ".join([*causes, *([words] if words else [])])


# ---------------------------------------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------------------------------------


def faults(
    config: LlamaConfig, state: State, exported: LlamaConfig | None, folder: Path | None
) -> Iterator[tuple[str, dict[str, Any], State]]:
    """What may have gone wrong: its name, the constants it changes, and the weights with it."""
    yield from faulty_constants(config, state, exported)
    yield (
        "RoPE layout: rows of q_proj and k_proj stand interleaved where halves are read",
        {},
        reordered(config, state, to_interleaved=True),
    )
    yield (
        "RoPE layout: rows of q_proj and k_proj were taken for interleaved and reordered, but were halves",
        {},
        reordered(config, state, to_interleaved=False),
    )
    layers = config.num_hidden_layers
    gone = layers - exported.num_hidden_layers if exported and exported.num_hidden_layers < layers else 1
    for first in range(layers - gone + 1):
        which = f"layer {first}" if gone == 1 else f"layers {first} to {first + gone - 1}"
        yield (
            f"a layer dropped: {which} of {layers} is missing",
            {"num_hidden_layers": layers - gone},
            without_layers(state, first, gone),
        )
    head = tensor_of(folder, "lm_head.weight") if folder else None
    if head is not None and head.shape == state["lm_head.weight"].shape:
        words = "the tied embedding was untied, and its copy" if config.tie_word_embeddings else "the output layer"
        yield f"tying: {words} holds other numbers", {}, {**state, "lm_head.weight": head.float()}
    if not config.tie_word_embeddings:
        yield (
            "tying: the output layer is the embedding, which the live model does not tie",
            {},
            {**state, "lm_head.weight": state["model.embed_tokens.weight"]},
        )
    for dtype in (torch.bfloat16, torch.float16):
        rounded = {name: weight.to(dtype).float() for name, weight in state.items()}
        yield f"dtype: the weights were rounded to {str(dtype).removeprefix('torch.')}", {}, rounded
    norms = {name: torch.ones_like(weight) for name, weight in state.items() if "norm" in name}
    yield "normalisation: the norms' weights were left out", {}, {**state, **norms}
    exchanged = {name.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj") for name in state}
    if exchanged == set(state):
        other = {
            name.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj"): weight
            for name, weight in state.items()
        }
        yield "names: k_proj and v_proj are exchanged", {}, other


def faulty_constants(
    config: LlamaConfig, state: State, exported: LlamaConfig | None
) -> Iterator[tuple[str, dict[str, Any], State]]:
    theta, epsilon = config.rope_parameters["rope_theta"], config.rms_norm_eps
    known = [exported.rope_parameters["rope_theta"]] if exported else THETAS
    for other in known:
        if other != theta:
            rope = {**config.rope_parameters, "rope_theta": other}
            yield (
                f"RoPE θ: {other:,.0f} in the export, {theta:,.0f} in the live model",
                {"rope_parameters": rope},
                state,
            )
    for other in [exported.rms_norm_eps] if exported else EPSILONS:
        if other != epsilon:
            yield (
                f"norm epsilon: {other:g} in the export, {epsilon:g} in the live model",
                {"rms_norm_eps": other},
                state,
            )
    heads = tuple(getattr(config, name) for name in HEADS)
    doubled = [(heads[0] * 2, heads[1] * 2, heads[2] // 2), (heads[0] // 2, heads[1] // 2, heads[2] * 2)]
    for other in [tuple(getattr(exported, name) for name in HEADS)] if exported else doubled:
        queries, pairs, size = other
        same = queries * size == heads[0] * heads[2] and pairs * size == heads[1] * heads[2]
        if other != heads and same and size % 2 == 0 and pairs and queries % pairs == 0:
            yield head_words(other, heads), dict(zip(HEADS, other, strict=True)), state


def constants_that_differ(config: LlamaConfig, exported: LlamaConfig | None) -> list[str]:
    """Constants of the model in which a folder that can't be read differs."""
    if exported is None:
        return []
    found = []
    heads = [tuple(getattr(of, name) for name in HEADS) for of in (exported, config)]
    if heads[0] != heads[1]:
        found.append(head_words(*heads))
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "tie_word_embeddings"):
        one, other = getattr(exported, name), getattr(config, name)
        if one != other:
            found.append(f"{name}: {one} in the export, {other} in the live model")
    return found


def head_words(exported: tuple, live: tuple) -> str:
    words = [f"{queries} heads and {pairs} KV heads of {size}" for queries, pairs, size in (exported, live)]
    return f"head count: {words[0]} in the export, {words[1]} in the live model"


def reordered(config: LlamaConfig, state: State, to_interleaved: bool) -> State:
    """q_proj and k_proj with the rows of each head in the other order of rotary pairs."""

    def rows(weight: torch.Tensor) -> torch.Tensor:
        size, width = config.head_dim, weight.shape[1]
        shape = (-1, 2, size // 2, width) if to_interleaved else (-1, size // 2, 2, width)
        return weight.reshape(shape).transpose(1, 2).reshape(weight.shape)

    changed = {name: rows(state[name]) for name in state if name.endswith(("q_proj.weight", "k_proj.weight"))}
    return {**state, **changed}


def without_layers(state: State, first: int, gone: int) -> State:
    found = {}
    for name, weight in state.items():
        words = name.split(".")
        if words[1] == "layers":
            layer = int(words[2])
            if first <= layer < first + gone:
                continue
            words[2] = str(layer - gone if layer >= first else layer)
        found[".".join(words)] = weight
    return found


# ---------------------------------------------------------------------------------------------------------
# Models and folders
# ---------------------------------------------------------------------------------------------------------


def plain_state(model: nn.Module | LiveModel) -> State:
    """The weights in fp32, an output layer of its own among them."""
    state = {name: weight.detach().float() for name, weight in model.state_dict().items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    return state


def llama_constants(config: Any) -> dict[str, Any]:
    """A Llama's constants, its output layer given apart: so that any can be put in."""
    values = config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
        values.pop(key, None)
    return values


@torch.inference_mode()
def logits_of(config: LlamaConfig, state: State, row: list[int]) -> np.ndarray:
    """(tokens, vocabulary) float32 of a Llama made of these, none of the weights copied."""
    config.tie_word_embeddings = False
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(state, strict=True, assign=True)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    return llama.eval()(input_ids=torch.tensor([row]), use_cache=False).logits[0].numpy()


def read_config(folder: Path) -> LlamaConfig | None:
    try:
        return LlamaConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tensor_of(folder: Path, name: str) -> torch.Tensor | None:
    """A tensor of a Llama folder by its name, None where it isn't stored."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name)
    return None


def named_tensors(state: State, folder: Path | None) -> str | None:
    """Which weights of a Llama folder hold other numbers, in words; None where none does."""
    if folder is None:
        return None
    other = [
        name
        for name, weight in state.items()
        if (stored := tensor_of(folder, name)) is not None and not torch.equal(stored.float(), weight)
    ]
    return f"weights: {len(other)} of {len(state)} tensors hold other numbers, first {other[0]}" if other else None
