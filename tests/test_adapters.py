"""LoRA and DoRA: what is trained and what is not, the same run after an interruption, and the merged model."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_chat import VOCABULARY
from tiny_sft import make_base, metrics, run, weights
from transformers import AutoModelForCausalLM

from genesis_hf.chat import prepare_for_chat
from genesis_hf.errors import UserError
from genesis_hf.post_training.models import load_model
from genesis_hf.post_training.run import RunCallback
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics

SETTINGS = {"use_peft": "true", "lora_r": 4, "lora_dropout": 0.1, "num_train_epochs": 1, "learning_rate": 5e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=[("model", "false"), ("untied", "true")], ids=["tied LoRA", "untied DoRA"])
def trained(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run's folder and its settings; blocks are recomputed, which needs gradients at their inputs."""
    name, dora = request.param
    settings = {**SETTINGS, "model": base / name, "use_dora": dora, "gradient_checkpointing": "true"}
    folder = tmp_path_factory.mktemp("adapter") / "run"
    run(base, folder, **settings)
    return folder, settings


def started(settings: dict[str, Any]) -> torch.nn.Module:
    """The base as it stands before the first step."""
    model = load_model(settings["model"])
    prepare_for_chat(model, load_tokenizer(settings["model"]))
    return model.eval()


def test_only_adapters_and_the_new_rows_are_trained(trained: tuple[Path, dict]) -> None:
    folder, settings = trained
    before, after = started(settings), AutoModelForCausalLM.from_pretrained(folder / "final")
    tied = settings["model"].name == "model"
    assert after.config.tie_word_embeddings == tied
    assert (after.lm_head.weight is after.get_input_embeddings().weight) == tied
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(model, layer)().weight for model in (before, after))
        assert torch.equal(old[:VOCABULARY], new[:VOCABULARY])
        moved = (old != new).any(dim=1)[VOCABULARY:]
        # `</think>` and `<think>` stand in no conversation here: their input rows get no gradient.
        assert moved.all() if tied or layer == "get_output_embeddings" else moved[:2].all()
    state = after.state_dict()
    for name, value in before.state_dict().items():
        if "norm" in name:
            assert torch.equal(value, state[name])
        elif "proj" in name:
            assert not torch.equal(value, state[name]), name


def test_it_learns(trained: tuple[Path, dict]) -> None:
    held_out = json.loads((trained[0] / "summary.json").read_text())["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"] - 0.5


def test_the_merged_model_computes_what_the_adapted_one_does(trained: tuple[Path, dict]) -> None:
    folder, settings = trained
    adapted = PeftModel.from_pretrained(started(settings), folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "final")
    ids = torch.randint(VOCABULARY + 4, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = merged(ids).logits, adapted(ids).logits
        untouched = started(settings)(ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - untouched).abs().max() > 0.1
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert len(load_tokenizer(folder / "adapter")) == VOCABULARY + 4


def test_a_stopped_run_goes_on_to_the_same_bits(
    trained: tuple[Path, dict], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the dropout's generators."""
    on_step_end = RunCallback.on_step_end

    def ask(self: RunCallback, args: Any, state: Any, control: Any, **keywords: Any) -> Any:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step_end(self, args, state, control, **keywords)

    folder, settings = trained
    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", ask)
        assert run(base, tmp_path / "run", **settings) is None
    run(base, tmp_path / "run", **settings)
    assert metrics(tmp_path / "run") == metrics(folder)
    assert weights(tmp_path / "run") == weights(folder)


def test_a_module_that_gets_no_adapter_is_named(base: Path, tmp_path: Path) -> None:
    for name, words in (("lm_head", "the output layer gets no adapter"), ("queries", "the model has no such module")):
        with pytest.raises(UserError, match=words):
            run(base, tmp_path / "run", **SETTINGS, lora_target_modules=name)
    summary = run(base, tmp_path / "one", **SETTINGS, lora_target_modules="[q_proj, v_proj]", max_steps=1)
    assert summary["steps"] == 1
    assert len(read_metrics(tmp_path / "one/metrics.jsonl")) >= 2
