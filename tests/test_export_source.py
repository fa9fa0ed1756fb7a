"""What `scripts/export.py --checkpoint` takes beside checkpoints: plain Llama folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_script
from reading_here import read_in_this_process
from safetensors.torch import load_file, save_file
from small_models import byte_tokenizer, random_model
from transformers import GenerationConfig

from genesis_hf import export
from genesis_hf.errors import UserError
from genesis_hf.export import export_checkpoint, write_llama_folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder that names two stop tokens, in three files."""
    folder = tmp_path_factory.mktemp("llama") / "final"
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    write_llama_folder(random_model(tied=request.param), tokenizer, folder, max_shard_size="60KB")
    GenerationConfig(eos_token_id=[0, 3]).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(export, monkeypatch)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_a_llama_folder_is_exported_again(folder: Path, tmp_path: Path) -> None:
    report = export_checkpoint(folder, tmp_path / "again", formats=("llama", "pt"))
    assert set(report["formats_compared"]) == {"llama", "pt"}
    assert all(figures["agrees"] for figures in report["formats_compared"].values())
    before, after = weights(folder), weights(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == [0, 3]
    assert export_checkpoint(folder, tmp_path / "again", formats=("llama", "pt"))["already_exported"]


def test_the_final_folder_of_a_run_is_found_and_rounded(folder: Path, tmp_path: Path) -> None:
    result = run_script(
        "scripts/export.py", "--checkpoint", folder.parent, "--output_dir", tmp_path / "out", "--dtype", "bfloat16"
    )
    assert "exported: final in bfloat16" in result.stdout
    rounded = {name: tensor.bfloat16() for name, tensor in weights(folder).items()}
    found = weights(tmp_path / "out")
    assert all(torch.equal(rounded[name], found[name]) for name in rounded)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_a_weight(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    held = load_file(path)
    held.pop("model.norm.weight")
    save_file(held, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: edit_config(folder, model_type="gpt2"), "model_type is 'gpt2'"),
        (lambda folder: edit_config(folder, num_hidden_layers=3), "don't fit its config.json"),
        (lambda folder: edit_config(folder, intermediate_size=64), "don't fit its config.json"),
        (drop_a_weight, "don't fit its config.json"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[0].write_bytes(b"half"), "can't be loaded"),
    ],
    ids=["architecture", "layers", "shapes", "weight", "truncated"],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, tmp_path: Path, break_it, words: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    break_it(broken)
    with pytest.raises(UserError, match=words) as error:
        export_checkpoint(broken, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_exported_onto_itself(folder: Path) -> None:
    with pytest.raises(UserError, match="name another folder"):
        export_checkpoint(folder, folder, overwrite=True)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a complete checkpoint .* nor a Llama folder"):
        export_checkpoint(tmp_path, tmp_path / "out")
