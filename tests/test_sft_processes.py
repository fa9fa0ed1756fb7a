"""SFT through `accelerate launch`: one process, DDP and FSDP learn the same, and go on exactly."""

import json
from pathlib import Path

import pytest
import sft_program
from conftest import TINY_MODEL, launch
from small_runs import small_recipe
from tiny_chat import small_model
from tiny_sft import make_base, metrics, run, weights
from transformers import AutoModelForCausalLM

from genesis_hf.config import PretrainRecipe, build
from genesis_hf.errors import UserError
from genesis_hf.training.metrics import read_metrics
from genesis_hf.training.pretrain import pretrain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("base"))
    model = small_model(hidden_size=32)
    model.config.attention_dropout = 0.2
    model.save_pretrained(folder / "dropout")
    for file in (folder / "model").glob("tokenizer*"):
        (folder / "dropout" / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def pretrained(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run of two steps, not exported."""
    model = {**TINY_MODEL, "max_position_embeddings": 128}
    recipe = small_recipe(corpus, tokenizer_folder, tmp_path_factory.mktemp("pretrained"), max_steps=2, model=model)
    return Path(pretrain(build(PretrainRecipe, {**recipe, "warmup_steps": 1}, "test"))).parents[1]


@pytest.fixture(scope="module")
def runs(pretrained: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sft_program.py did with two processes, and in `one` what one process did."""
    folder = tmp_path_factory.mktemp("runs")
    launch("fsdp2_2gpu", "tests/sft_program.py", pretrained, base, folder)
    settings = {**sft_program.SETTINGS, "per_device_train_batch_size": 4, "sample_prompts": f"{base}/heldout.jsonl"}
    run(base, folder / "one", model=pretrained, **settings)
    return folder


@pytest.mark.parametrize("name", ["fsdp2", *sft_program.TOPOLOGIES])
def test_two_processes_learn_what_one_does(runs: Path, name: str) -> None:
    """Losses, gradients, held-out losses and samples at every step, and the model in the end."""
    one, two = metrics(runs / "one"), metrics(runs / name)
    assert sorted(one) == sorted(two)
    for step, numbers in one.items():
        assert two[step] == pytest.approx(numbers, rel=1e-5)
    for kind in ("eval_loss", "eval_stderr", "eval_tokens", "stop_rate"):
        expected, found = (
            {record["step"]: record[kind] for record in read_metrics(runs / run / "metrics.jsonl") if kind in record}
            for run in ("one", name)
        )
        assert list(expected) == ([11] if kind == "stop_rate" else [0, 8, 16, 20])
        assert found == pytest.approx(expected, rel=1e-5)
    assert read_metrics(runs / "one/samples.jsonl") == read_metrics(runs / name / "samples.jsonl")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(runs / run / "final") for run in ("one", name))
    assert (runs / name / "final/config.json").read_text() == (runs / "one/final/config.json").read_text()
    for (key, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (mine - other).abs().max() < 1e-4, key


def test_a_run_that_one_process_was_asked_to_leave_goes_on_exactly(runs: Path) -> None:
    assert json.loads((runs / "dropout-parts/summary.json").read_text())["steps"] == 22
    assert metrics(runs / "dropout-parts") == metrics(runs / "dropout")
    assert weights(runs / "dropout-parts") == weights(runs / "dropout")


def test_one_process_exports_a_pretraining_run(runs: Path, pretrained: Path) -> None:
    assert [path.name for path in (pretrained / "exports").iterdir()] == ["step_000000002-float32"]


def test_a_checkpoint_of_another_launch_is_refused(runs: Path, base: Path, pretrained: Path, tmp_path: Path) -> None:
    for name, words in (("ddp", "by 2 processes"), ("fsdp2", "by 2 processes under FSDP")):
        checkpoint = runs / name / "checkpoint-20"
        with pytest.raises(UserError, match=f"{words} and this launch has 1"):
            run(base, tmp_path / name, model=pretrained, resume_from_checkpoint=checkpoint)
