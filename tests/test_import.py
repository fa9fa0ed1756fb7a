"""Import: a foreign state dict becomes a Llama folder that computes what the file does, or nothing."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run_script
from foreign_models import Foreign
from reading_here import read_in_this_process
from small_models import byte_tokenizer
from transformers import AutoModelForCausalLM

from genesis_hf.config import ImportRecipe
from genesis_hf.errors import UserError
from genesis_hf.importing import convert as convert_module
from genesis_hf.importing import importer
from genesis_hf.tokenizer import encode_documents


def train_on(model: Foreign, rows: list[list[int]], steps: int = 60) -> float:
    """Overfit a model, so that its conventions matter to what it says; its last loss."""
    parameters = list(model.weights.values())
    for weight in parameters:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=2e-2)
    for _ in range(steps):
        losses = [torch.nn.functional.cross_entropy(model.logits(row[:-1]), torch.tensor(row[1:])) for row in rows]
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
    for weight in parameters:
        weight.requires_grad_(False)
    return loss.item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Foreign]:
    """nanoGPT's form with a Llama inside that knows the passage's beginning, and a byte tokenizer beside it."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = byte_tokenizer(folder / "tokenizer")
    order = {"attention_order": ("wq", "wk", "wv"), "feed_forward_order": ("gate", "up")}
    model = Foreign(layers=1, vocabulary=257, padding=7, interleaved=True, theta=1e4, epsilon=1e-5, **order)
    loss = train_on(model, [row[:32] for row in encode_documents(tokenizer, list(importer.PASSAGE))])
    assert loss < 2.0
    names = {
        "emb": "transformer.wte.weight",
        "final": "transformer.ln_f.weight",
        "wq_wk_wv": "attn.c_attn.weight",
        "wo": "attn.c_proj.weight",
        "gate_up": "mlp.c_fc.weight",
        "down": "mlp.c_proj.weight",
        "norm1": "ln_1.weight",
        "norm2": "ln_2.weight",
    }
    state = {}
    for name, tensor in model.stored()[0].items():
        *layer, kind = name.split(".")
        prefix = f"transformer.h.{layer[1]}." if layer else ""
        state[f"_orig_mod.{prefix}{names[kind]}"] = tensor
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    arguments = {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 32, "vocab_size": 264, "bias": False}
    torch.save({"model": state, "model_args": arguments, "iter_num": 60}, folder / "ckpt.pt")
    return folder, model


def recipe(trained: tuple[Path, Foreign], output_dir: Path, **changes: object) -> ImportRecipe:
    values = {
        "checkpoint": str(trained[0] / "ckpt.pt"),
        "mapping": "nanogpt_llama",
        "output_dir": str(output_dir),
        "tokenizer": str(trained[0] / "tokenizer"),
        "model": {"rope": "interleaved", "vocab_size": 257},
    }
    return ImportRecipe(**{**values, **changes})


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(importer, monkeypatch)


def test_script_imports_proves_and_knows_what_stands_there(trained, tmp_path: Path) -> None:
    folder, model = trained
    words = ["--checkpoint", folder / "ckpt.pt", "--mapping", "nanogpt_llama", "--output_dir", tmp_path / "model"]
    words += ["--tokenizer", folder / "tokenizer", "--model.rope", "interleaved", "--model.vocab_size", 257]
    done = run_script("scripts/import_checkpoint.py", *words)
    assert "imported: ckpt.pt in float32" in done.stdout
    report = json.loads((tmp_path / "model" / "parity.json").read_text())
    figures = report["formats_compared"]["llama"]
    assert figures["agrees"]
    assert figures["top10_agreement"] > 0.99
    assert figures["greedy_same"] == figures["greedy_prompts"] > 0
    assert report["text_loss"]["otherwise"]["rope: half"] > report["text_loss"]["nats_per_token"] + 0.1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"], config["rope_theta"]) == (257, True, 1e4)
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), [3, 17, 0, 39, 21, 21, 8, 30, 12, 5]
    torch.testing.assert_close(loaded(torch.tensor([ids])).logits[0], model.logits(ids), rtol=1e-4, atol=1e-4)

    again = importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    assert again["already_imported"]
    with pytest.raises(UserError, match="holds another export"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model", dtype="bfloat16"))
    with pytest.raises(UserError, match="the command line: norm: layernorm can't be imported"):
        importer.import_checkpoint(recipe(trained, tmp_path / "other", model={"norm": "layernorm"}))


def test_bfloat16_is_compared_with_rounded_weights_and_replaces_an_import(
    trained, tmp_path: Path, same_process: None
) -> None:
    importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    report = importer.import_checkpoint(recipe(trained, tmp_path / "model", dtype="bfloat16", overwrite=True))
    assert (
        report["formats_compared"]["llama"]["max_logit_difference"] < 1e-3 < report["rounding"]["max_logit_difference"]
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype is torch.bfloat16


@pytest.mark.parametrize("mistake", ["no permutation", "other rows", "no transposition of pairs"])
def test_a_wrong_conversion_is_caught(trained, tmp_path: Path, same_process, monkeypatch, mistake: str) -> None:
    def wrong_split(tensor, part, architecture, split=convert_module.split):
        parts = split(tensor, part, architecture)
        return [parts[1], parts[0]] if len(parts) == 2 else parts

    if mistake == "other rows":
        monkeypatch.setattr(convert_module, "split", wrong_split)
    else:
        monkeypatch.setattr(
            convert_module,
            "halves",
            lambda w, n: w if mistake == "no permutation" else w.view(-1, n, w.shape[1]).flip(1).reshape(w.shape),
        )
    with pytest.raises(UserError, match="does not compute what the file's own tensors do"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "suspect"),
    [
        ({"rope": "half"}, "rope: interleaved"),
        ({"rope": "interleaved", "num_attention_heads": 2}, "num_attention_heads: 4"),
    ],
)
def test_a_mapping_that_the_model_was_not_trained_with_is_caught(trained, tmp_path: Path, model, suspect: str) -> None:
    with pytest.raises(UserError, match=f"not what this model was trained with: .* with {suspect}"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model", model={**model, "vocab_size": 257}))
    assert list(tmp_path.iterdir()) == []
