"""An export that computes something else is refused, and what went wrong with it is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import byte_tokenizer, random_model
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from genesis_hf import export
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.errors import UserError
from genesis_hf.exporting.causes import find_causes
from genesis_hf.exporting.reading import READERS, answer
from genesis_hf.files import edit_json
from genesis_hf.parity import make_questions, probe
from genesis_hf.tokenizer import load_tokenizer

TEXTS = ["The river walks under the old stone, and nobody knows where it goes. " * 3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A checkpoint of a tied and of an untied model of three layers."""
    folders = {}
    for tied in (True, False):
        folders[tied] = tmp_path_factory.mktemp("run")
        byte_tokenizer(folders[tied] / "tokenizer")
        model = random_model(tied, num_hidden_layers=3)
        optimizers = [torch.optim.AdamW(model.parameters())]
        tokenizer = load_tokenizer(folders[tied] / "tokenizer")
        save_checkpoint(checkpoint_folder(folders[tied], 1), model, optimizers, {"step": 1}, "", tokenizer)
    return folders


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are read by the fresh process's reader, but in this one: a process takes seconds to start."""

    def read(path, questions, kind="llama"):
        try:
            reader = READERS[kind](path)
            return answer(reader, questions), reader.versions()
        except Exception as error:
            raise RuntimeError(str(error).splitlines()[-1]) from None

    monkeypatch.setattr(export, "probe_in_fresh_process", read)


def edit_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def edit_weights(edit: Callable[[dict], dict]) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        state = edit(load_file(folder / "model.safetensors"))
        state = {name: weight.clone().contiguous() for name, weight in state.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return fault


def other_theta(folder: Path) -> None:
    def edit(config: dict) -> None:
        config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 10_000.0

    edit_json(folder / "config.json", edit)


def interleave(state: dict) -> dict:
    """The rows as Meta's files have them."""
    for name in state:
        if "q_proj" in name or "k_proj" in name:
            state[name] = state[name].view(-1, 2, 8, 64).transpose(1, 2).reshape(-1, 64)
    return state


def drop_layer(folder: Path) -> None:
    def edit(state: dict) -> dict:
        kept = {name: weight for name, weight in state.items() if ".layers.1." not in name}
        return {name.replace(".layers.2.", ".layers.1."): weight for name, weight in kept.items()}

    edit_weights(edit)(folder)
    edit_config(num_hidden_layers=2)(folder)


def other_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save_pretrained(folder)


def untie(folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(320, 64, generator=generator)
    edit_weights(lambda state: {**state, "lm_head.weight": head})(folder)
    edit_config(tie_word_embeddings=False)(folder)


def tie(folder: Path) -> None:
    edit_weights(lambda state: {name: weight for name, weight in state.items() if name != "lm_head.weight"})(folder)
    edit_config(tie_word_embeddings=True)(folder)


def halve(state: dict) -> dict:
    return {name: weight.half().float() for name, weight in state.items()}


def leave_norms_out(state: dict) -> dict:
    return {name: torch.ones_like(weight) if "norm" in name else weight for name, weight in state.items()}


def change_one(state: dict) -> dict:
    state["model.layers.1.mlp.up_proj.weight"] += 0.1
    return state


FAULTS = {
    "theta": (True, other_theta, "RoPE θ: 10,000 in the export, 500,000 in the live model"),
    "interleaved": (False, edit_weights(interleave), "RoPE layout: rows of q_proj and k_proj stand interleaved"),
    "heads doubled": (
        True,
        edit_config(num_attention_heads=8, num_key_value_heads=4, head_dim=8),
        "head count: 8 heads and 4 KV heads of 8 in the export, 4 heads and 2 KV heads of 16 in the live model",
    ),
    "heads swapped": (
        False,
        edit_config(num_attention_heads=2, num_key_value_heads=4),
        "head count: 2 heads and 4 KV heads of 16 in the export, 4 heads and 2 KV heads of 16",
    ),
    "layer": (True, drop_layer, "a layer dropped: layer 1 of 3 is missing"),
    "epsilon": (False, edit_config(rms_norm_eps=1e-5), "norm epsilon: 1e-05 in the export, 1e-06 in the live model"),
    "tokenizer": (True, other_tokenizer, "tokenizer: another one encodes"),
    "untied": (True, untie, "tying: the tied embedding was untied"),
    "tied": (False, tie, "tying: the output layer is the embedding"),
    "dtype": (True, edit_weights(halve), "dtype: the weights were rounded to float16"),
    "norms": (False, edit_weights(leave_norms_out), "normalisation: the norms' weights were left out"),
    "weights": (
        True,
        edit_weights(change_one),
        "weights: 1 of 30 tensors hold other numbers, first model.layers.1.mlp",
    ),
}


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(fault: str, runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tied, break_folder, words = FAULTS[fault]
    write = export.write_llama_folder

    def write_broken(model, tokenizer, folder, *rest):
        write(model, tokenizer, folder, *rest)
        break_folder(folder)

    monkeypatch.setattr(export, "write_llama_folder", write_broken)
    with pytest.raises(UserError) as error:
        export.export_checkpoint(runs[tied], tmp_path / "out", held_out=TEXTS)
    assert f"likely cause: {words}" in str(error.value)
    assert str(error.value).count(" in the export, ") <= 1
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_weights_that_do_not_fit_the_model_are_refused(
    what: str, runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, name = export.write_llama_folder, "model.layers.2.mlp.up_proj.weight"

    def edit(state: dict) -> dict:
        weight = state.pop(name) if what == "missing" else state[name]
        return {**state, "model.layers.3.mlp.up_proj.weight": weight} if what == "unexpected" else state

    def write_broken(model, tokenizer, folder, *rest):
        write(model, tokenizer, folder, *rest)
        edit_weights(edit)(folder)

    monkeypatch.setattr(export, "write_llama_folder", write_broken)
    with pytest.raises(UserError, match=rf"can't be read back: .*{what}.*up_proj"):
        export.export_checkpoint(runs[True], tmp_path / "out", formats=["llama"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("read_here")
def test_nothing_is_found_where_nothing_is_wrong(runs: dict[bool, Path], tmp_path: Path) -> None:
    report = export.export_checkpoint(runs[True], tmp_path / "out", held_out=TEXTS)
    assert report["formats_compared"]["llama"]["greedy_same"] == 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 10_000.0}, "RoPE θ: 10,000"),
        ({"rms_norm_eps": 1e-5}, "norm epsilon: 1e-05"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}, "head count: 8 heads and 4 KV heads"),
    ],
)
def test_cause_is_found_by_answers_alone(changes: dict, words: str, tmp_path: Path) -> None:
    """As for a file whose constants can't be looked up in a config."""
    tokenizer = byte_tokenizer(tmp_path)
    model, other = random_model(tied=True), random_model(tied=True, **changes)
    other.load_state_dict(model.state_dict())
    questions = make_questions(tokenizer, 320, 128, TEXTS, TEXTS)
    expected, found = (probe(one, tokenizer, questions) for one in (model, other))
    assert find_causes(model, questions, expected, found, None).startswith(words)


def test_unknown_cause_is_said_to_be_unknown(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    model = random_model(tied=True)
    questions = make_questions(tokenizer, 320, 128, TEXTS, TEXTS)
    expected = probe(model, tokenizer, questions)
    found = replace(expected, logits=expected.logits[::-1] * 2)
    assert find_causes(model, questions, expected, found, None).startswith("unknown")
