"""Export: a plain Llama folder that computes what the live model computes, or none at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_script
from small_models import byte_tokenizer, random_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from genesis_hf import export as export_module
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.config import ExportRecipe, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.export import check_tokenizer_fits, export_checkpoint
from genesis_hf.exporting import llama as llama_module
from genesis_hf.parity import TOLERANCE, differences, disagreements, make_questions, probe
from genesis_hf.tokenizer import load_tokenizer

TEXTS = ["The river walks under the old stone.", "def f(x):\n    return x", "naïve 👩‍👧 \t\r\n", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one checkpoint of a tied model at step 7."""
    folder = tmp_path_factory.mktemp("run")
    byte_tokenizer(folder / "tokenizer", template="{{ messages[0].content }}")
    model = random_model(tied=True)
    state = {"step": 7, "tokens_seen": 448, "loss": 5.5, "data": {"position": [1, 2]}}
    save_checkpoint(
        checkpoint_folder(folder, 7),
        model,
        [torch.optim.AdamW(model.parameters())],
        state,
        "",
        load_tokenizer(folder / "tokenizer"),
    )
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("exports") / "model"
    done = run_script("scripts/export.py", "--checkpoint", run, "--output_dir", output_dir)
    assert "exported: step_000000007" in done.stdout
    return output_dir


def test_a_stranger_reads_the_same_logits(run: Path, exported: Path) -> None:
    program = (
        "import sys, torch, transformers as t;"
        "m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32);"
        "assert 'genesis_hf' not in sys.modules;"
        "torch.save(m(torch.arange(100)[None]).logits, sys.argv[2])"
    )
    out = exported.parent / "logits.pt"
    subprocess.run([sys.executable, "-I", "-c", program, exported, out], check=True, cwd=exported.parent)
    live = random_model(tied=True)(torch.arange(100)[None]).logits
    assert (torch.load(out) - live).abs().max() <= TOLERANCE


def test_folder_says_what_transformers_4_and_converters_read(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500_000.0
    assert config["torch_dtype"] == "float32"
    assert config["eos_token_id"] == config["pad_token_id"] == 256
    tokenizer = json.loads((exported / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == "{{ messages[0].content }}"
    assert tokenizer["added_tokens_decoder"]["256"]["content"] == "</s>"
    generation = json.loads((exported / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (256, 256)
    assert (exported / "tokenizer.model").read_bytes() == b"a SentencePiece model"
    assert AutoTokenizer.from_pretrained(exported).chat_template == "{{ messages[0].content }}"


def test_report_holds_the_figures_and_what_training_recorded(exported: Path) -> None:
    report = json.loads((exported / "parity.json").read_text())
    figures = report["formats_compared"]["llama"]
    assert figures["max_logit_difference"] <= TOLERANCE
    assert figures["top1_agreement"] == 1.0
    assert figures["loss_exported"] == pytest.approx(figures["loss_live"], abs=1e-6)
    assert figures["greedy_same"] == figures["greedy_prompts"] > 0
    assert figures["tokenizer_same"] == figures["tokenizer_texts"] > 100
    assert figures["read_by"]["transformers"]
    assert report["training"] == {"step": 7, "tokens_seen": 448, "loss": 5.5}


def test_tied_weights_stand_once(exported: Path) -> None:
    from safetensors import safe_open

    with safe_open(exported / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())


def test_second_run_recognises_the_export(run: Path, exported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert export_checkpoint(run, exported)["already_exported"]
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before


def test_bfloat16_untied_and_replacing(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "tokenizer")
    model = random_model(tied=False)
    folder = checkpoint_folder(tmp_path, 1)
    save_checkpoint(
        folder, model, [torch.optim.AdamW(model.parameters())], {"step": 1}, "", load_tokenizer(tmp_path / "tokenizer")
    )
    output_dir = tmp_path / "out"
    report = export_checkpoint(folder, output_dir, dtype="bfloat16", held_out=TEXTS)
    assert report["formats_compared"]["llama"]["max_logit_difference"] <= TOLERANCE
    assert report["rounding"]["max_logit_difference"] > 100 * TOLERANCE
    read = AutoModelForCausalLM.from_pretrained(output_dir)
    assert read.dtype == torch.bfloat16
    assert json.loads((output_dir / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert torch.equal(read.lm_head.weight, model.lm_head.weight.bfloat16())
    with pytest.raises(UserError, match=r"holds another export .*--overwrite true"):
        export_checkpoint(folder, output_dir)
    assert export_checkpoint(folder, output_dir, overwrite=True)["dtype"] == "float32"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_export_that_disagrees_is_not_put_in_place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_theta(config: dict) -> None:
        config["rope_parameters"]["rope_theta"] = 10_000.0

    monkeypatch.setattr(llama_module, "speak_transformers_4", other_theta)
    with pytest.raises(UserError, match=r"logits differ by up to \d.*θ: 10,000 in the .* not put in place"):
        export_checkpoint(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an export"):
        export_checkpoint(run, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_tokenizer_must_fit(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    check_tokenizer_fits(tokenizer, 257, tmp_path)
    check_tokenizer_fits(tokenizer, 320, tmp_path)
    for vocab_size in (256, 2048):
        with pytest.raises(UserError, match="257 ids"):
            check_tokenizer_fits(tokenizer, vocab_size, tmp_path)


@pytest.mark.parametrize("fault", ["theta", "norm", "layer", "tokenizer"])
def test_parity_sees_a_fault(fault: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    model = random_model(tied=True)
    questions = make_questions(tokenizer, 320, 128, TEXTS, [])
    expected = probe(model, tokenizer, questions)
    changes = {"theta": {"rope_theta": 10_000.0}, "norm": {"rms_norm_eps": 1e-5}}.get(fault, {})
    other = random_model(tied=True, **changes)
    if fault == "layer":
        other.model.layers = other.model.layers[:1]
    if fault == "tokenizer":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    wrong = disagreements(differences(expected, probe(other, tokenizer, questions)))
    assert wrong
    assert ("tokenizers differ" in wrong[0]) == (fault == "tokenizer")


def test_parity_lets_no_nan_through(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    model = random_model(tied=True)
    questions = make_questions(tokenizer, 320, 128, TEXTS, [])
    expected = probe(model, tokenizer, questions)
    assert disagreements(differences(expected, expected)) == []
    expected.logits = expected.logits * float("nan")
    assert disagreements(differences(expected, expected))


def test_probe_asks_a_llama_and_ours_alike(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    model = random_model(tied=False)
    export_module.write_llama_folder(model, tokenizer, tmp_path / "llama")
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    questions = make_questions(tokenizer, 320, 128, TEXTS, ["held-out text " * 20])
    figures = differences(probe(model, tokenizer, questions), probe(llama, tokenizer, questions))
    assert disagreements(figures) == []
    assert figures["tokens_compared"] == 3 * 128


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"formats\[0\] is 'onx'; it must be one of llama, onnx, gguf, pt"):
        parse_recipe(ExportRecipe, argv=["--checkpoint", "x", "--output_dir", "y", "--formats", "onx"])
    with pytest.raises(UserError, match="unknown format 'onx'; known: llama"):
        export_checkpoint("x", "y", formats=["onx"])
    output_dir = tmp_path / "out"
    done = run_script("scripts/export.py", "--checkpoint", "nowhere", "--output_dir", output_dir, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere: no such folder" in done.stderr
    assert not output_dir.exists()


def test_dry_run_needs_nothing(tmp_path: Path) -> None:
    done = run_script("scripts/export.py", "--checkpoint", "x", "--output_dir", tmp_path / "out", "--dry_run")
    assert "checkpoint: x" in done.stdout
    assert not (tmp_path / "out").exists()
