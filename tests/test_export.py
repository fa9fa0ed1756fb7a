"""Export: a plain Llama folder that computes what the live model computes, or none at all."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import LIBRARIES, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from reading_here import read_in_this_process
from small_models import byte_tokenizer, random_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from genesis_hf import export
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.reader import SafeLoadPlanner
from genesis_hf.checkpoint.restore import load_model
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.config import ExportRecipe, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.export import DTYPES, check_tokenizer_fits, export_checkpoint, write_llama_folder
from genesis_hf.exporting import llama as llama_module
from genesis_hf.exporting.live import Changed, LiveModel, read_live
from genesis_hf.exporting.reading import TransformersReader, answer
from genesis_hf.parity import TOLERANCE, differences, disagreements, make_questions, probe
from genesis_hf.tokenizer import load_tokenizer

TEXTS = ["The river walks under the old stone.", "def f(x):\n    return x", "naïve 👩‍👧 \t\r\n", ""]


def make_run(folder: Path, tied: bool) -> Path:
    """A run directory with one checkpoint, of step 7."""
    byte_tokenizer(folder / "tokenizer", template="{{ messages[0].content }}")
    model = random_model(tied)
    state = {"step": 7, "tokens_seen": 448, "loss": 5.5, "data": {"position": [1, 2]}}
    optimizers = [torch.optim.AdamW(model.parameters())]
    save_checkpoint(checkpoint_folder(folder, 7), model, optimizers, state, "", load_tokenizer(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), tied=True)


@pytest.fixture(scope="module")
def untied_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("untied"), tied=False)


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
    run_script("-c", program, exported, out, warm=LIBRARIES)
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


@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.booleans(), st.sampled_from(["float32", "bfloat16"]), st.integers(10_000, 400_000))
def test_files_are_those_of_save_pretrained(
    run: Path, untied_run: Path, tied: bool, dtype: str, max_shard_size: int
) -> None:
    """Byte for byte, of a model that was never in a checkpoint; read and written a weight at a time."""
    model = random_model(tied)
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    llama = LlamaForCausalLM(LlamaConfig(**config))
    llama.load_state_dict(model.state_dict())
    checkpoint = checkpoint_folder(run if tied else untied_run, 7)
    with TemporaryDirectory() as folder:
        expected, written = Path(folder, "expected"), Path(folder, "written")
        llama.to(DTYPES[dtype]).save_pretrained(expected, max_shard_size=max_shard_size)
        live, tokenizer = read_live(checkpoint).rounded(DTYPES[dtype]), load_tokenizer(checkpoint / "tokenizer")
        write_llama_folder(live, tokenizer, written, DTYPES[dtype], max_shard_size)
        names = sorted(path.name for path in expected.glob("model*"))
        assert sorted(path.name for path in written.glob("model*")) == names
        for name in names:
            assert (written / name).read_bytes() == (expected / name).read_bytes()
            assert (written / name).stat().st_mode == (written / "config.json").stat().st_mode


@pytest.mark.parametrize("tied", [True, False])
def test_live_model_has_no_weight_but_the_one_it_computes_with(
    tied: bool, run: Path, untied_run: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_folder(run if tied else untied_run, 7)
    ids, held = torch.arange(100)[None], []
    live = read_live(checkpoint).spilled(tmp_path / "spill")

    def count(_: str, weight: torch.Tensor) -> torch.Tensor:
        held.append(sum(not parameter.is_meta for parameter in model.parameters()))
        return weight

    model = LiveModel(live.config, Changed(live.weights, count)).computing()
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, load_model(checkpoint)(ids).logits)
    assert len(held) == 21  # embedding, two layers of nine, norm and head
    assert max(held) == 0
    assert all(parameter.is_meta for parameter in model.parameters())


def test_rows_are_asked_alike_together_and_alone(tmp_path: Path) -> None:
    tokenizer, model = byte_tokenizer(tmp_path), random_model(tied=True)
    questions = make_questions(tokenizer, 300, 128, TEXTS, [*TEXTS, "held-out text " * 20])
    assert len({len(row) for row in questions.rows}) < len(questions.rows)
    together, reader = probe(model, tokenizer, questions), TransformersReader(model, tokenizer)
    reader.batched = False
    alone = answer(reader, questions)
    assert alone.logits.shape == (sum(map(len, questions.rows)), 300)
    assert disagreements(differences(together, alone)) == []
    assert together.loss == pytest.approx(alone.loss, abs=1e-6)


def test_second_run_recognises_the_export(run: Path, exported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert export_checkpoint(run, exported)["already_exported"]
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before


def test_bfloat16_untied_and_replacing(untied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(export, monkeypatch)
    model, output_dir = random_model(tied=False), tmp_path / "out"
    for left in (".out.exporting", ".out.live"):  # by an export that was killed
        (tmp_path / left).mkdir()
    report = export_checkpoint(untied_run, output_dir, dtype="bfloat16", held_out=TEXTS)
    assert report["formats_compared"]["llama"]["max_logit_difference"] <= TOLERANCE
    assert report["rounding"]["max_logit_difference"] > 100 * TOLERANCE
    read = AutoModelForCausalLM.from_pretrained(output_dir)
    assert read.dtype == torch.bfloat16
    assert json.loads((output_dir / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert torch.equal(read.lm_head.weight, model.lm_head.weight.bfloat16())
    with pytest.raises(UserError, match=r"holds another export .*--overwrite true"):
        export_checkpoint(untied_run, output_dir)
    assert export_checkpoint(untied_run, output_dir, overwrite=True)["dtype"] == "float32"
    assert list(tmp_path.iterdir()) == [output_dir]


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
    write_llama_folder(model, tokenizer, tmp_path / "llama")
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


def test_full_disk_is_one_line(run: Path, tmp_path: Path) -> None:
    """Files beyond 100 KB can't be written; the weights take more."""
    program = (
        "import resource, runpy, sys; sys.path.insert(0, 'scripts')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "runpy.run_path('scripts/export.py', run_name='__main__')\n"
    )
    done = run_script("-c", program, "--checkpoint", run, "--output_dir", tmp_path / "out", check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith(f"error: {tmp_path}: ")
    assert "nothing was exported" in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interruption_while_weights_are_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SafeLoadPlanner, "resolve_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_nothing(tmp_path: Path) -> None:
    done = run_script("scripts/export.py", "--checkpoint", "x", "--output_dir", tmp_path / "out", "--dry_run")
    assert "checkpoint: x" in done.stdout
    assert not (tmp_path / "out").exists()
