import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import ROOT, TINY_MODEL, launch, run_script
from reading_here import read_in_this_process
from small_runs import losses, small_recipe, write_recipe
from transformers import LlamaForCausalLM

from genesis_hf import export
from genesis_hf.checkpoint.folders import checkpoint_step, complete_checkpoints
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.checkpoint.restore import load_model
from genesis_hf.config import PretrainRecipe, build
from genesis_hf.errors import UserError
from genesis_hf.training.metrics import read_metrics
from genesis_hf.training.pretrain import pretrain
from genesis_hf.training.schedule import learning_rate


@pytest.fixture
def values(corpus, tokenizer_folder, tmp_path):
    return twelve_steps(corpus, tokenizer_folder, tmp_path / "run")


def twelve_steps(corpus, tokenizer_folder, output_dir):
    """A recipe, as plain values."""
    return small_recipe(
        corpus,
        tokenizer_folder,
        output_dir,
        eval_sources=[{"name": "heldout", "paths": [str(corpus / "heldout.jsonl")]}],
        eval_rows=6,
        logging_steps=1,
        save_steps=4,
        eval_steps=6,
    )


def train(values, **changes):
    """In this process, as if it were a new one."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state() if state is not GradientState else None
    return pretrain(build(PretrainRecipe, {**values, **changes}, "test"))


def weights(folder):
    return load_model(complete_checkpoints(folder)[0]).state_dict()


def assert_same_run(one, other):
    assert losses(one) == losses(other)  # to the last bit
    mine, theirs = weights(one), weights(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_interrupted_and_resumed_equals_uninterrupted(values, tmp_path, optim):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(values, output_dir=whole, optim=optim)
    for stop in (3, 5, None):
        train(values, output_dir=parts, optim=optim, stop_at_step=stop)
    assert sorted(losses(whole)) == list(range(1, 13))
    assert_same_run(whole, parts)
    assert losses(whole)[12][0] < losses(whole)[1][0] - 0.3


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_fsdp2_on_two_processes_resumes_exactly_and_equals_one_process(values, tmp_path, optim):
    values["optim"] = optim
    one = str(tmp_path / "one")
    train(values, output_dir=one, num_processes=2)

    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    recipe = write_recipe({**values, "num_processes": 2, "keep_steps": [5]}, tmp_path / "recipe.yaml")
    result = launch("fsdp2_2gpu", "scripts/pretrain.py", "--config", recipe, "--output_dir", whole)
    assert "2 processes" in result.stdout
    shutil.copytree(whole, parts)
    for folder in complete_checkpoints(parts):
        if checkpoint_step(folder) != 5:
            shutil.rmtree(folder)
    (fifth,) = complete_checkpoints(parts)
    assert {shard.name[:4] for shard in (fifth / "state").glob("*.distcp")} == {"__0_", "__1_"}
    result = launch("fsdp2_2gpu", "scripts/pretrain.py", "--config", recipe, "--output_dir", parts)
    assert "step 5" in result.stdout
    assert_same_run(whole, parts)

    # Muon orthogonalises in bfloat16, so sums in another order show earlier.
    tolerance = {"adamw": 1e-5, "muon": 3e-3}[optim]
    for step, (loss, norm) in losses(one).items():
        assert losses(whole)[step] == pytest.approx((loss, norm), rel=tolerance)
    held_out = [
        [r["held_out"] for r in read_metrics(f"{run}/metrics.jsonl") if "held_out" in r] for run in (one, whole)
    ]
    assert len(held_out[0]) == 2
    assert held_out[0][-1]["heldout"]["loss"] == pytest.approx(held_out[1][-1]["heldout"]["loss"], rel=tolerance)


def test_fsdp2_in_bfloat16_with_activation_checkpointing(values, tmp_path):
    """What the 1B recipes run on two GPUs: bf16 compute, fp32 master weights (asserted by the run), recomputation."""
    exact, rough = str(tmp_path / "exact"), str(tmp_path / "rough")
    train(values, output_dir=exact, num_processes=2, max_steps=6)
    changes = {"output_dir": rough, "num_processes": 2, "max_steps": 6, "bf16": True, "gradient_checkpointing": True}
    recipe = write_recipe({**values, **changes}, tmp_path / "recipe.yaml")
    result = launch("fsdp2_2gpu", "scripts/pretrain.py", "--config", recipe)
    assert "bfloat16 over float32 weights" in result.stdout
    for step, (loss, norm) in losses(exact).items():
        assert losses(rough)[step][0] == pytest.approx(loss, rel=5e-3)
        assert losses(rough)[step][1] == pytest.approx(norm, rel=5e-2)
    assert {tensor.dtype for tensor in weights(rough).values()} == {torch.float32}


def test_a_run_of_two_processes_goes_on_with_one(values, tmp_path):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(values, output_dir=whole, num_processes=2)
    recipe = write_recipe({**values, "num_processes": 2, "output_dir": parts}, tmp_path / "recipe.yaml")
    launch("ddp_2gpu", "scripts/pretrain.py", "--config", recipe, "--stop_at_step", 6)
    train(values, output_dir=parts, num_processes=2)
    for step, expected in losses(whole).items():
        assert losses(parts)[step] == pytest.approx(expected, rel=1e-4)


def test_accumulation_and_micro_batches_give_the_gradients_of_one_large_batch(values, tmp_path):
    runs = [str(tmp_path / name) for name in "abcd"]
    values["max_steps"] = 4
    for folder, (size, steps, recompute) in zip(
        runs, [(1, 8, False), (8, 1, False), (2, 4, False), (2, 4, True)], strict=True
    ):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        train(values, output_dir=folder, gradient_checkpointing=recompute, **changes)
    for step in range(1, 5):
        for folder in runs[1:]:
            assert losses(folder)[step] == pytest.approx(losses(runs[0])[step], rel=1e-5)


def test_sigterm_saves_and_the_next_run_goes_on(values, tmp_path):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(values, output_dir=whole)
    recipe = write_recipe({**values, "output_dir": parts, "save_steps": 1000}, tmp_path / "recipe.yaml")
    program = (
        # The signal arrives while step 4 computes.
        "import os, signal, sys; sys.path.insert(0, 'scripts'); import genesis_hf.training.pretrain as p\n"
        "rate = p.set_learning_rate\n"
        "def hooked(optimizers, step, recipe):\n"
        "    if step == 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return rate(optimizers, step, recipe)\n"
        "p.set_learning_rate = hooked\n"
        "import runpy; runpy.run_path('scripts/pretrain.py', run_name='__main__')\n"
    )
    result = run_script("-c", program, "--config", recipe)
    assert "stopped at step 4 of 12" in result.stdout
    train(values, output_dir=parts)
    assert_same_run(whole, parts)


def test_a_kill_loses_nothing_before_the_last_checkpoint(values, tmp_path):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(values, output_dir=whole)
    recipe = write_recipe({**values, "output_dir": parts}, tmp_path / "recipe.yaml")
    program = (
        "import os, signal, sys; sys.path.insert(0, 'scripts'); import genesis_hf.checkpoint.save as c\n"
        # The second save is killed when its folder is complete but for the manifest.
        "original = c.write_manifest\n"
        "def killed(folder, *others):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if '000008' in folder.name else original(folder, *others)\n"
        "c.write_manifest = killed\n"
        "import runpy; runpy.run_path('scripts/pretrain.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "--config", str(recipe)]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True)
    assert result.returncode == -signal.SIGKILL
    assert [c.name for c in complete_checkpoints(parts)] == ["step_000000004"]
    assert max(losses(parts)) >= 8  # the save runs beside the steps that follow
    train(values, output_dir=parts)
    assert_same_run(whole, parts)
    assert not list((tmp_path / "parts" / "checkpoints").glob(".step*"))


def test_a_damaged_checkpoint_is_passed_over(values, tmp_path, capsys):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(values, output_dir=whole)
    train(values, output_dir=parts)
    newest, older, *_ = complete_checkpoints(parts)
    shard = next((newest / "state").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert verify_checkpoint(newest) == [f"{shard} has another sha256 than its manifest"]
    train(values, output_dir=parts)
    output = capsys.readouterr().out
    assert f"WARNING: {newest} is damaged" in output
    assert f"resumed from {older}" in output
    assert_same_run(whole, parts)


def test_run_files(values):
    folder = train(values)
    run = folder.parents[1]
    assert folder.name == "step_000000012"
    assert (run / "checkpoints" / "latest").read_text().strip() == folder.name
    assert len(complete_checkpoints(run)) == 3
    assert verify_checkpoint(folder) == []
    assert yaml.safe_load((run / "recipe.yaml").read_text())["max_steps"] == 12
    record = next(r for r in read_metrics(run / "metrics.jsonl") if r["step"] == 12 and "loss" in r)
    assert record["tokens_seen"] == 12 * 4 * 64
    assert record["mfu"] is None
    assert record["learning_rate"] == pytest.approx(learning_rate(12, build(PretrainRecipe, values, "test")))
    assert record["mixture"]["prose"] == pytest.approx(0.7, abs=0.1)
    assert json.loads((run / "latest.json").read_text())["step"] == 12


def test_a_finished_run_says_so_and_a_longer_one_goes_on(values, capsys):
    train(values)
    train(values)
    assert "nothing left to do" in capsys.readouterr().out
    train(values, max_steps=14)
    assert max(losses(values["output_dir"])) == 14


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "no/such"}, "no/such"),
        ({"model": {**TINY_MODEL, "vocab_size": 300}}, "model.vocab_size is 300"),
        ({"model": {**TINY_MODEL, "vocab_size": 30000}}, "model.vocab_size is 30000"),
        ({"sequence_length": 128}, "max_position_embeddings"),
        ({"sources": [{"name": "x", "paths": ["no/such/*.jsonl"]}]}, "no file matches"),
        ({"resume_from_checkpoint": "no/such"}, "no such folder"),
        ({"num_processes": 3, "gradient_accumulation_steps": 1}, None),
    ],
)
def test_a_mistake_is_named_before_the_first_step(values, changes, words):
    if words is None:
        assert train(values, **changes).name == "step_000000012"
        return
    with pytest.raises(UserError, match=words):
        train(values, **changes)
    assert not os.path.exists(f"{values['output_dir']}/metrics.jsonl")
    assert not os.path.exists(f"{values['output_dir']}/checkpoints")


def test_another_model_batch_or_data_is_refused_on_resume(values, corpus):
    train(values, stop_at_step=4)
    with pytest.raises(UserError, match="another model: num_hidden_layers is 2 there and 3"):
        train(values, model={**TINY_MODEL, "num_hidden_layers": 3})
    with pytest.raises(UserError, match="4 rows a step and this launch has 8"):
        train(values, gradient_accumulation_steps=4)
    with pytest.raises(UserError, match="source code is gone"):
        train(values, sources=[{"name": "prose", "paths": [str(corpus / "prose.jsonl")]}])
    with pytest.raises(UserError, match="holds a run already"):
        train(values, resume_from_checkpoint="none")
    with pytest.raises(UserError, match=r"lacks optimizer\.state"):
        train(values, optim="muon")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(values):
    train(values, stop_at_step=4)
    with pytest.raises(UserError, match="not finite in 5 steps in a row"):
        train(values, learning_rate=1e30, save_steps=6, max_skipped_steps=5)
    with pytest.raises(UserError, match=r"step 7: loss .* such a model is not saved"):
        train(values, learning_rate=1e30, stop_at_step=7)
    assert [c.name for c in complete_checkpoints(values["output_dir"])] == ["step_000000004"]


def test_learning_rate_is_a_pure_function(values):
    recipe = build(PretrainRecipe, {**values, "max_steps": 100, "warmup_steps": 10, "min_learning_rate": 3e-4}, "test")
    assert learning_rate(1, recipe) == pytest.approx(3e-4)
    assert learning_rate(10, recipe) == pytest.approx(3e-3)
    assert learning_rate(55, recipe) == pytest.approx((3e-3 + 3e-4) / 2)
    assert learning_rate(100, recipe) == pytest.approx(3e-4)
    recipe.lr_scheduler_type, recipe.decay_steps = "warmup_stable_decay", 20
    assert learning_rate(80, recipe) == pytest.approx(3e-3)
    assert learning_rate(90, recipe) == pytest.approx((3e-3 + 3e-4) / 2)


def test_milestones_are_saved_and_stay(values):
    train(values, save_steps=2, save_total_limit=1, keep_steps=[3, 6])
    kept = [folder.name for folder in complete_checkpoints(values["output_dir"])]
    assert kept == ["step_000000012", "step_000000010", "step_000000006", "step_000000003"]


def test_a_checkpoint_is_saved_by_the_clock(values):
    train(values, save_steps=100, save_minutes=1e-9, save_total_limit=None)
    assert len(complete_checkpoints(values["output_dir"])) == 12


def test_verify_checkpoint_names_what_is_damaged(values):
    train(values)
    good = run_script("scripts/verify_checkpoint.py", values["output_dir"])
    assert good.stdout.count(": good, ") == 3
    newest, older, _ = complete_checkpoints(values["output_dir"])
    for path, position in ((newest / "trainer_state.json", 5), (older / "manifest.json", 1)):
        content = bytearray(path.read_bytes())
        content[position] ^= 0x20
        path.write_bytes(content)
    found = run_script("scripts/verify_checkpoint.py", values["output_dir"], check=False)
    assert found.returncode == 2
    assert "trainer_state.json has another sha256" in found.stdout
    assert f"{older}/manifest.json" in found.stdout
    assert found.stdout.count(": good, ") == 1
    missing = run_script("scripts/verify_checkpoint.py", "nowhere", check=False)
    assert missing.returncode == 2
    assert "nowhere: no such folder" in missing.stderr


def test_an_extended_run_keeps_its_past_and_warms_up_again(values):
    settings = {"warmup_steps": 10, "min_learning_rate": 3e-4}
    first = build(PretrainRecipe, {**values, **settings, "max_steps": 100}, "test")
    extended = build(PretrainRecipe, {**values, **settings, "max_steps": 300, "extended_at": [100, 200]}, "test")
    assert [learning_rate(s, extended) for s in range(1, 101)] == [learning_rate(s, first) for s in range(1, 101)]
    assert learning_rate(105, extended) == pytest.approx((3e-4 + 3e-3) / 2)
    for begin in (100, 200):
        assert learning_rate(begin + 10, extended) == pytest.approx(3e-3)
        assert learning_rate(begin + 55, extended) == pytest.approx((3e-3 + 3e-4) / 2)
        assert learning_rate(begin + 100, extended) == pytest.approx(3e-4)
    with pytest.raises(UserError, match="extended_at"):
        build(PretrainRecipe, {**values, **settings, "max_steps": 300, "extended_at": [200, 205]}, "test")


def test_annealing_falls_in_a_line_from_the_schedule_and_ends_the_run(values, tmp_path):
    recipe = build(PretrainRecipe, {**values, "max_steps": 100, "anneal_at": 50, "anneal_steps": 10}, "test")
    plain = build(PretrainRecipe, {**values, "max_steps": 100}, "test")
    assert learning_rate(50, recipe) == learning_rate(50, plain)
    assert learning_rate(55, recipe) == pytest.approx((learning_rate(50, plain) + recipe.min_learning_rate) / 2)
    assert learning_rate(60, recipe) == pytest.approx(recipe.min_learning_rate)
    train(values, stop_at_step=4)
    trunk = complete_checkpoints(values["output_dir"])[0]
    branch = {"resume_from_checkpoint": str(trunk), "output_dir": str(tmp_path / "branch")}
    assert train(values, **branch, anneal_at=4, anneal_steps=3).name == "step_000000007"
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "branch" / "metrics.jsonl")]
    assert rates[-1] == pytest.approx(3e-5)


def test_going_on_from_an_older_checkpoint_gives_the_same_and_warns_of_the_newer(values, tmp_path, capsys):
    train(values)
    whole, older = weights(values["output_dir"]), complete_checkpoints(values["output_dir"])[-1]
    train(values, resume_from_checkpoint=str(older), output_dir=str(tmp_path / "branch"))
    assert "WARNING" not in capsys.readouterr().out
    train(values, resume_from_checkpoint=str(older))
    assert f"step_000000012 is newer than {older}" in capsys.readouterr().out
    for folder in ("branch", "run"):
        assert all(torch.equal(whole[name], weight) for name, weight in weights(tmp_path / folder).items())


def test_a_finished_run_is_extended(values):
    train(values, max_steps=6)
    assert train(values, extended_at=[6]).name == "step_000000012"


def test_a_run_directory_serves_as_a_model(values, monkeypatch):
    read_in_this_process(export, monkeypatch)
    folder = train(values)
    exported = export.resolve_model(values["output_dir"])
    ids = torch.arange(3, 40)[None]
    again = LlamaForCausalLM.from_pretrained(exported)
    torch.testing.assert_close(again(ids).logits, load_model(folder)(ids).logits, rtol=0, atol=1e-5)
