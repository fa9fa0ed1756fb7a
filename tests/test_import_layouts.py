"""Layouts that other programs store a Llama in: each computes what its own code does, or is refused by name."""

import argparse
import json
import struct
from pathlib import Path

import pytest
import torch
import yaml
from foreign_models import Foreign
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from genesis_hf.errors import UserError
from genesis_hf.importing.architecture import find_architecture, with_conventions
from genesis_hf.importing.convert import convert
from genesis_hf.importing.direct import DirectModel
from genesis_hf.importing.mapping import read_mapping
from genesis_hf.importing.source import read_source

IDS = [3, 17, 0, 39, 21, 21, 8, 30, 12, 5]


def llama_logits(source_file: Path, mapping_file: Path | str, **constants: object) -> torch.Tensor:
    """Logits of the converted model, once checked against the direct ones."""
    mapping, constants = with_conventions(read_mapping(str(mapping_file)), constants)
    source = read_source(source_file, mapping)
    architecture = find_architecture(source, mapping, constants)
    state = convert(source, mapping, architecture)
    model = LlamaForCausalLM(architecture.llama_config()).eval()
    if architecture.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(DirectModel(source, mapping, architecture)(IDS), logits, rtol=1e-4, atol=1e-4)
    return logits


def save(folder: Path, foreign: Foreign, /, **changes: object) -> tuple[Path, Path]:
    state, mapping = foreign.stored()
    (folder / "model.pt").unlink(missing_ok=True)  # it may still be mapped
    torch.save(state, folder / "model.pt")
    (folder / "mapping.yaml").write_text(yaml.safe_dump({**mapping, **changes}))
    return folder / "model.pt", folder / "mapping.yaml"


# ---------------------------------------------------------------------------------------------------------
# What can be imported
# ---------------------------------------------------------------------------------------------------------

FOREIGN = st.builds(
    lambda kv, ratio, **rest: Foreign(kv_heads=kv, heads=kv * ratio, **rest),
    width=st.just(24),
    kv=st.integers(1, 2),
    ratio=st.integers(1, 3),
    layers=st.integers(1, 2),
    head_dim=st.sampled_from([2, 4, 6]),
    interleaved=st.booleans(),
    tied=st.booleans(),
    theta=st.sampled_from([10.0, 10_000.0]),
    transposed=st.booleans(),
    attention_order=st.none() | st.permutations(["wq", "wk", "wv"]).map(tuple) | st.just(("wk", "wv")),
    attention_grouped=st.booleans(),
    feed_forward_order=st.none() | st.permutations(["gate", "up"]).map(tuple),
    feed_forward_grouped=st.booleans(),
    padding=st.sampled_from([0, 24]),
)


@given(model=FOREIGN)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_computes_what_its_own_code_does(tmp_path: Path, model: Foreign) -> None:
    logits = llama_logits(*save(tmp_path, model))
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


def test_key_value_heads_and_sizes_follow_from_the_shapes(tmp_path: Path) -> None:
    model = Foreign(kv_heads=2, attention_order=("wq", "wk", "wv"), feed_forward_order=("gate", "up"))
    mapping = read_mapping(str(save(tmp_path, model)[1]))
    found = find_architecture(read_source(tmp_path / "model.pt", mapping), mapping, {})
    assert (found.num_key_value_heads, found.intermediate_size, found.num_hidden_layers) == (2, 24, 2)
    assert (found.hidden_size, found.tie_word_embeddings) == (16, True)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files_hold_the_same_model(tmp_path: Path, version: int, tied: bool) -> None:
    model = Foreign(tied=tied, vocabulary=40, epsilon=1e-5, theta=500.0)
    model.write_llama2c(tmp_path / "model.bin", version)
    given = {} if version == 0 else {"rope_theta": 500.0}  # version 0 holds the tables it follows from
    logits = llama_logits(tmp_path / "model.bin", "llama2c", **given)
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_model_parallel_parts_are_joined(tmp_path: Path, embedding_axis: int) -> None:
    model = Foreign(tied=False, epsilon=1e-5)
    axes = {
        "tok_embeddings": embedding_axis,
        "output": 0,
        "wo": 1,
        "w2": 1,
        "wq": 0,
        "wk": 0,
        "wv": 0,
        "w1": 0,
        "w3": 0,
    }
    for part in range(2):
        shard = {}
        for name, tensor in model.llama2c_names().items():
            axis = axes.get(name.split(".")[-2])
            shard[name] = tensor if axis is None else tensor.chunk(2, axis)[part].clone()
        torch.save({**shard, "rope.freqs": torch.ones(2)}, tmp_path / f"consolidated.0{part}.pth")
    parameters = {"dim": 16, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1, "rope_theta": 100.0}
    (tmp_path / "params.json").write_text(json.dumps(parameters))
    logits = llama_logits(tmp_path, "meta_llama", max_position_embeddings=64)
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)
    (tmp_path / "params.json").write_text(json.dumps({**parameters, "use_scaled_rope": True}))
    with pytest.raises(UserError, match="use_scaled_rope: True"):
        llama_logits(tmp_path, "meta_llama", max_position_embeddings=64)


def test_wrappers_and_what_training_saves_around_the_weights(tmp_path: Path) -> None:
    model = Foreign()
    state, _ = model.stored()
    save(tmp_path, model)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    saved = {"model": wrapped, "optimizer": {"state": {0: torch.ones(2, 2)}}, "iter_num": 5, "model_args": {"n": 1}}
    torch.save(saved, tmp_path / "ckpt.pt")
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    for name in ("ckpt.pt", "model.safetensors"):
        logits = llama_logits(tmp_path / name, tmp_path / "mapping.yaml")
        torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------
# What can't
# ---------------------------------------------------------------------------------------------------------


def test_each_tensor_that_does_not_fit_has_its_line(tmp_path: Path) -> None:
    state, _ = Foreign().stored()
    checkpoint, mapping = save(tmp_path, Foreign())
    state.pop("block.1.wv")
    for layer in range(2):
        state[f"block.{layer}.wq.bias"] = torch.ones(16)
    state.update({"wpe.weight": torch.ones(64, 16), "surplus": torch.ones(3)})
    torch.save(state, checkpoint)
    with pytest.raises(UserError) as caught:
        llama_logits(checkpoint, mapping)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[1].strip().startswith("block.1.wv is not in the file; it makes model.layers.{layer}.self_attn.v_proj")
    assert "block.0.wq.bias (16,) is not in the mapping: it is a bias" in lines[2]
    assert "and 1 more of its kind" in lines[2]
    assert "wpe.weight (64, 16) is not in the mapping: it is learned positions" in lines[3]
    assert "surplus (3,)" in lines[4]

    state, _ = Foreign().stored()
    torch.save({**state, "block.0.down": torch.ones(24, 16)}, checkpoint)
    with pytest.raises(UserError, match=r"block\.0\.down has shape \(24, 16\), and .*down_proj\.weight \(16, 24\)"):
        llama_logits(checkpoint, mapping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layernorm"}, "norm: layernorm can't be imported; a Llama has RMSNorm only"),
        ({"mlp": "gelu"}, "mlp: gelu can't be imported"),
        ({"positions": "learned"}, "positions: learned can't be imported"),
        ({"rope": "partial"}, "rope is 'partial'; it must be one of interleaved, half"),
        ({"tensor": {}}, "unknown key `tensor`; did you mean `tensors`"),
        ({"tensors": {"emb": "embed.weight"}}, "a Llama has no tensor 'embed.weight'"),
        (
            {"tensors": {"emb": "model.norm.weight", "e": "model.norm.weight"}},
            "two tensors are mapped to model.norm.weight",
        ),
        ({"tensors": {"emb": "model.layers.{layer}.mlp.up_proj.weight"}}, "{layer} once on both sides"),
        ({"tensors": {"emb": {"too": "model.norm.weight"}}}, "tensors.emb: unknown key `too`"),
        ({"model": {"num_attention_heads": 4}}, "`max_position_embeddings` is missing"),
        ({"model": {"num_heads": 4}}, "unknown key `num_heads`"),
    ],
)
def test_wrong_mappings_end_with_a_line_that_says_so(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        llama_logits(*save(tmp_path, Foreign(), **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    state, _ = Foreign().stored()
    torch.save({**state, "args": argparse.Namespace(n=1)}, folder / "objects.pt")
    torch.save({**state, "final": torch.full((16,), torch.nan)}, folder / "nan.pt")
    torch.save({**state, "emb": torch.ones(40, 16, dtype=torch.int8)}, folder / "int8.pt")
    torch.save([1, 2], folder / "list.pt")
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "text.safetensors").write_text("not a checkpoint")
    Foreign().write_llama2c(folder / "whole.bin", 1)
    whole = (folder / "whole.bin").read_bytes()
    (folder / "short.bin").write_bytes(whole[:-4])
    (folder / "version.bin").write_bytes(whole[:4] + struct.pack("<i", 3) + whole[8:])
    (folder / "noise.bin").write_bytes(bytes(range(1, 64)))
    return {
        "objects.pt": "holds objects that are not tensors",
        "nan.pt": "final holds numbers that are not finite",
        "int8.pt": "emb is torch.int8; quantised",
        "list.pt": "no state dict in it",
        "text.pt": "not a file that torch.save wrote",
        "text.safetensors": "not a safetensors file",
        "short.bin": "damaged, or no llama2.c file",
        "version.bin": "llama2.c version 3",
        "noise.bin": "no llama2.c header",
        "absent.pt": "no such file",
    }


def test_wrong_files_end_with_a_line_that_says_so(tmp_path: Path) -> None:
    _, mapping = save(tmp_path, Foreign())
    for name, message in damaged_files(tmp_path).items():
        with pytest.raises(UserError) as caught:
            read_source(tmp_path / name, read_mapping(str(mapping)))
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="those that come with the package: llama2c, meta_llama, nanogpt_llama"):
        read_mapping("llama3c")


def test_untied_head_that_is_the_embedding_and_the_other_way_round(tmp_path: Path) -> None:
    checkpoint, mapping = save(tmp_path, Foreign(tied=False))
    with pytest.raises(UserError, match="tie_word_embeddings is true, and head is not emb"):
        llama_logits(checkpoint, mapping, tie_word_embeddings=True)
    checkpoint, mapping = save(tmp_path, Foreign(tied=True))
    with pytest.raises(UserError, match="nothing in the file makes lm_head"):
        llama_logits(checkpoint, mapping, tie_word_embeddings=False)
