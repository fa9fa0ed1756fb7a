"""What a run does when something goes wrong: numbers, memory, a process that hangs or dies, a clock that jumps."""

import itertools
import json
import time

import pytest
import torch
from conftest import launch, run_script
from small_runs import losses, write_recipe
from test_pretrain import assert_same_run, train, twelve_steps, values, weights  # noqa: F401

import genesis_hf.training.pretrain as loop
from genesis_hf.checkpoint.folders import complete_checkpoints, read_trainer_state
from genesis_hf.checkpoint.manifest import write_manifest
from genesis_hf.errors import UserError
from genesis_hf.training.metrics import read_metrics


def records(folder):
    return {r["step"]: r for r in read_metrics(f"{folder}/metrics.jsonl")}


def events(folder, kind):
    return [e for e in map(json.loads, open(f"{folder}/events.jsonl")) if e["event"] == kind]


def at_step(number, do, monkeypatch, name="backward"):
    """Call `do(loss, arguments)` after the gradients of optimizer step `number` of this process, once."""
    original, count = getattr(loop, name), itertools.count(1)

    def hooked(*arguments):
        result = original(*arguments)
        return do(result, arguments) if next(count) == number else result

    monkeypatch.setattr(loop, name, hooked)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(values, optim, where, monkeypatch):  # noqa: F811
    seen = {}

    def spoil(loss, arguments):
        model = arguments[0]
        seen["before"] = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        if where == "loss":
            return loss * float("nan")
        next(model.parameters()).grad[3, 5] = float("inf")
        return loss

    def look(loss, arguments):
        seen["after"] = {name: weight.detach().clone() for name, weight in arguments[0].named_parameters()}
        return loss

    at_step(5, spoil, monkeypatch)
    at_step(6, look, monkeypatch)
    train(values, optim=optim, stop_at_step=8)
    train(values, optim=optim)  # a resume knows that one update is missing
    assert all(torch.equal(seen["before"][name], seen["after"][name]) for name in seen["before"])
    found = records(values["output_dir"])
    assert [found[step]["skipped_steps"] for step in (4, 5, 12)] == [0, 1, 1]
    assert "1 for a loss or gradient that is not finite" in events(values["output_dir"], "skipped")[0]["text"]
    assert all(torch.isfinite(weight).all() for weight in weights(values["output_dir"]).values())


def test_a_save_waits_for_a_sound_step(values, monkeypatch):  # noqa: F811
    at_step(4, lambda loss, arguments: loss * float("nan"), monkeypatch)
    train(values, save_total_limit=None)
    assert [int(f.name[5:]) for f in complete_checkpoints(values["output_dir"])] == [12, 8, 5]


def test_a_nan_in_the_gradient_of_one_process_is_skipped_by_both(values, tmp_path):  # noqa: F811
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    values["num_processes"] = 2
    with pytest.MonkeyPatch.context() as monkeypatch:
        at_step(6, lambda loss, arguments: loss * float("nan"), monkeypatch)
        train(values, output_dir=one)
    recipe = write_recipe({**values, "output_dir": two}, tmp_path / "recipe.yaml")
    program = faulty_program(tmp_path, "if rank == 1: next(model.parameters()).grad.to_local()[0, 0] = float('nan')")
    launch("fsdp2_2gpu", program, "--config", recipe)
    assert records(two)[12]["skipped_steps"] == 1
    assert records(one)[6]["loss"] is None
    for step in {*range(1, 13)} - {6}:
        assert records(two)[step]["loss"] == pytest.approx(records(one)[step]["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def left_alone(corpus, tokenizer_folder, tmp_path_factory):
    """A recipe for two processes, and the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("left_alone")
    changes = {"num_processes": 2, "eval_sources": [], "hang_minutes": 0.1, "save_async": False}
    steps = {**twelve_steps(corpus, tokenizer_folder, folder / "run"), **changes}
    recipe = write_recipe(steps, folder / "recipe.yaml")
    launch("ddp_2gpu", "scripts/pretrain.py", "--config", recipe)
    return recipe, steps["output_dir"]


@pytest.mark.parametrize(
    "fault",
    [
        "if rank == 1: time.sleep(10**6)",
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)",
        "if rank == 1: raise torch.OutOfMemoryError('CUDA out of memory')",
    ],
    ids=["asleep", "dead", "out of memory"],
)
def test_a_process_that_fails_is_brought_back(left_alone, tmp_path, fault):
    """`--max_restarts` starts all of them again, from the last checkpoint, and the run ends as if nothing had been."""
    (recipe, whole), parts = left_alone, str(tmp_path / "parts")
    program = faulty_program(tmp_path, fault)
    options = ("--max_restarts", 1, "--monitor_interval", 0.1)
    result = launch("ddp_2gpu", program, "--config", recipe, "--output_dir", parts, options=options)
    assert f"resumed from {parts}/checkpoints/step_000000004" in result.stdout
    stacks = sorted((tmp_path / "parts" / "hangs").glob("*"))
    if "OutOfMemory" in fault:
        assert json.loads((tmp_path / "parts" / "micro_batch.json").read_text())["per_device_train_batch_size"] == 1
        for step, expected in losses(whole).items():
            assert losses(parts)[step] == pytest.approx(expected, rel=1e-5)
        return
    assert_same_run(whole, parts)
    if "sleep" in fault:
        assert [path.name for path in stacks] == ["rank_0.txt", "rank_1.txt"]
        assert "in hooked" in stacks[1].read_text()
        assert "all_reduce" in stacks[0].read_text()


def faulty_program(folder, fault):
    """scripts/pretrain.py with something that goes wrong after the gradients of step 6, in the first attempt only."""
    path = folder / "faulty.py"
    path.write_text(
        "import itertools, os, runpy, signal, sys, time\n"
        "sys.path.insert(0, 'scripts')\n"
        "import torch\n"
        "import genesis_hf.training.pretrain as loop\n"
        "rank, original, count = int(os.environ['RANK']), loop.backward, itertools.count(1)\n"
        "def hooked(model, *arguments):\n"
        "    loss = original(model, *arguments)\n"
        "    if next(count) == 6 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        f"        {fault}\n"
        "    return loss\n"
        "loop.backward = hooked\n"
        "runpy.run_path('scripts/pretrain.py', run_name='__main__')\n"
    )
    return path


def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_step(values, monkeypatch, tmp_path):  # noqa: F811
    train(values, output_dir=str(tmp_path / "whole"))
    original = loop.backward

    def small_card(model, batch, size, *others):
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, size, *others)

    monkeypatch.setattr(loop, "backward", small_card)
    train(values, stop_at_step=6)
    assert "2 rows in a micro-batch: 1 x 4 micro-batches" in events(values["output_dir"], "out of memory")[0]["text"]
    train(values)
    assert len(events(values["output_dir"], "out of memory")) == 1
    assert records(values["output_dir"])[12]["tokens_seen"] == 12 * 4 * 64
    for step, expected in losses(tmp_path / "whole").items():
        assert losses(values["output_dir"])[step] == pytest.approx(expected, rel=1e-5)

    for changes in (
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"auto_find_batch_size": False},
    ):
        monkeypatch.setattr(loop, "backward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
        with pytest.raises(UserError, match=r"out of memory with per_device_train_batch_size \d; gradient"):
            train(values, output_dir=str(tmp_path / "other"), **changes)


def spiking(values):  # noqa: F811
    """Losses of 60 steps, with a spike at the fortieth."""
    values.update(max_steps=60, save_steps=10, eval_sources=[], spike_sigma=6.0, learning_rate=1e-3)
    return values


def test_a_loss_spike_is_skipped(values, monkeypatch):  # noqa: F811
    at_step(40, lambda loss, arguments: loss + 30, monkeypatch)
    train(spiking(values))
    assert (records(values["output_dir"])[60]["spikes"], records(values["output_dir"])[60]["skipped_steps"]) == (1, 1)
    assert events(values["output_dir"], "skipped")[0]["step"] == 40


def test_a_loss_spike_is_rolled_back_past_its_data(values, monkeypatch, capsys):  # noqa: F811
    at_step(37, lambda loss, arguments: loss + 30, monkeypatch)
    train(spiking(values), spike_action="rollback", stop_at_step=50)
    assert events(values["output_dir"], "rollback")[0]["step"] == 30
    assert "step 37: a loss spike; back to" in capsys.readouterr().out
    assert sorted(records(values["output_dir"])) == list(range(1, 51))
    tokens = records(values["output_dir"])
    assert tokens[30]["tokens_seen"] == 30 * 256
    assert tokens[31]["tokens_seen"] == 38 * 256
    # and a resume goes on from there
    train(values, spike_action="rollback")
    assert records(values["output_dir"])[60]["tokens_seen"] == 67 * 256


def test_spikes_after_every_rollback_end_the_run(values, monkeypatch):  # noqa: F811
    original, count = loop.backward, itertools.count(1)
    monkeypatch.setattr(loop, "backward", lambda *a: original(*a) + (30 if next(count) >= 47 else 0))
    with pytest.raises(UserError, match=r"after 3 rollbacks to .*step_000000040"):
        train(spiking(values), spike_action="rollback")


def test_evaluation_and_samples_leave_no_trace_in_training(values, tmp_path):  # noqa: F811
    plain, watched = str(tmp_path / "plain"), str(tmp_path / "watched")
    train({**values, "eval_sources": []}, output_dir=plain)
    prompts = ["The river", "def stone_7("]
    train(values, output_dir=watched, eval_steps=3, sample_prompts=prompts, sample_steps=2, sample_max_new_tokens=8)
    assert_same_run(plain, watched)
    generators = [torch.load(complete_checkpoints(f)[0] / "rng_rank_0.pt", weights_only=True) for f in (plain, watched)]
    assert torch.equal(generators[0]["cpu"], generators[1]["cpu"])
    samples = read_metrics(tmp_path / "watched" / "samples.jsonl")
    assert [record["step"] for record in samples] == [2, 4, 6, 8, 10, 12]
    assert [sample["prompt"] for sample in samples[-1]["samples"]] == prompts
    assert all(sample["continuation"] for sample in samples[-1]["samples"])


def test_samples_are_what_greedy_generation_gives(values, tokenizer):  # noqa: F811
    from genesis_hf.checkpoint.restore import load_model

    train(values, sample_prompts=["The river stone", "def"], sample_steps=12, sample_max_new_tokens=8)
    model = load_model(complete_checkpoints(values["output_dir"])[0])
    for sample in read_metrics(f"{values['output_dir']}/samples.jsonl")[-1]["samples"]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sample["prompt"])["input_ids"]]])
        new = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert sample["continuation"] == tokenizer.decode(new, skip_special_tokens=True)


def test_a_clock_that_jumps_changes_nothing(values, monkeypatch, tmp_path):  # noqa: F811
    train(values, output_dir=str(tmp_path / "whole"), save_minutes=60)
    jumps, now = itertools.cycle([0, 1e8, -1e8, 5]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    train(values, save_minutes=60)
    assert_same_run(tmp_path / "whole", values["output_dir"])
    assert len(complete_checkpoints(values["output_dir"])) == 3
    assert all(0 < record["tokens_per_second"] < 1e9 for record in records(values["output_dir"]).values())


def test_a_resume_whose_loss_is_another_is_refused(values):  # noqa: F811
    train(values, stop_at_step=8)
    folder = complete_checkpoints(values["output_dir"])[0]
    state = read_trainer_state(folder)
    assert state["probe"]["coming"] is True
    state["probe"]["loss"] *= 1.001
    (folder / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(folder, {})
    with pytest.raises(UserError, match=r"the loss on the next rows is .* and was .* at the save"):
        train(values)


def test_a_disk_that_is_full_for_a_line_of_metrics_is_one_line(values, tmp_path):  # noqa: F811
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    program = (
        "import errno, os, runpy, sys; sys.path.insert(0, 'scripts'); import genesis_hf.training.metrics as m\n"
        "original = m.append_json\n"
        "def full(path, record):\n"
        "    if record['step'] == 6 and path.name == 'metrics.jsonl':\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))\n"
        "    original(path, record)\n"
        "m.append_json = full\n"
        "runpy.run_path('scripts/pretrain.py', run_name='__main__')\n"
    )
    result = run_script("-c", program, "--config", recipe, check=False)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"error: No space left on device: {values['output_dir']}/metrics.jsonl; make room"
    assert "Traceback" not in result.stderr
    train(values)
    assert sorted(records(values["output_dir"])) == list(range(1, 13))


def test_a_watchdog_that_is_fed_leaves_nothing_but_heartbeats(values, tmp_path):  # noqa: F811
    train(values, hang_minutes=10)
    assert json.loads((tmp_path / "run" / "heartbeats" / "rank_0.json").read_text())["step"] >= 1
    assert not (tmp_path / "run" / "hangs").exists()


def test_trackers_get_the_same_numbers(values, tmp_path):  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(values, report_to=["tensorboard"], stop_at_step=5)
    train(values, report_to=["tensorboard"])
    tracked = {}
    for path in (tmp_path / "run" / "genesis_hf").glob("events.*"):
        found = EventAccumulator(str(path)).Reload()
        if "loss" in found.Tags()["scalars"]:
            tracked.update({event.step: event.value for event in found.Scalars("loss")})
    assert tracked == pytest.approx({step: record["loss"] for step, record in records(tmp_path / "run").items()})
    with pytest.raises(UserError, match="report_to: unknown tracker 'tensorbord'"):
        train(values, report_to=["tensorbord"], output_dir=str(tmp_path / "other"))
