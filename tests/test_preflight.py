import json
from collections import namedtuple

import psutil
import pytest
import yaml
from conftest import ROOT, run_script
from small_runs import small_recipe

import genesis_hf.preflight.preflight as sequence
from genesis_hf.config import PretrainRecipe, build, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.preflight import disk, judgements, machine
from genesis_hf.preflight.preflight import PreflightRecipe, preflight
from genesis_hf.preflight.verdicts import Verdict, exit_code, table

ONE_PROCESS = {
    "python": "3.11",
    "num_processes": 1,
    "distributed_type": "NO",
    "backend": None,
    "processes": [{"device": "cpu", "memory_bytes": 2**34}],
    "peer_access": None,
    "all_reduce": None,
}
"""What a launch of one process finds, so that most tests need not launch one for it."""


@pytest.fixture
def values(corpus, tokenizer_folder, tmp_path):
    """A recipe as plain values."""
    sources = [{"name": "prose", "paths": [str(corpus / "prose.jsonl")]}]
    return small_recipe(corpus, tokenizer_folder, tmp_path / "run", sources=sources, max_steps=500)


@pytest.fixture
def scripts(tmp_path):
    """A folder for scripts that stand in for the real ones."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


def script(path, text):
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n{text}")


def run(values, scripts=ROOT / "scripts", **wanted):
    """The verdicts by check."""
    recipe = build(PretrainRecipe, values, "test")
    return {v.check: v for v in preflight(PreflightRecipe(preflight_steps=8, **wanted), recipe, scripts)}


@pytest.fixture
def probed(monkeypatch):
    monkeypatch.setattr(sequence, "probed", lambda trial, parameters: (ONE_PROCESS, None))


def test_every_check_of_a_sound_recipe_on_two_processes(values, tmp_path):
    """As a user calls it. A run stands in output_dir and is left as it is."""
    standing = tmp_path / "run" / "checkpoints" / "step_000000040" / "manifest.json"
    standing.parent.mkdir(parents=True)
    standing.write_text("{}")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**values, "num_processes": 2}))
    result = run_script(
        "scripts/preflight.py",
        *("--config", tmp_path / "recipe.yaml", "--accelerate_config", "accelerate_configs/ddp_2gpu.yaml"),
        *("--preflight_steps", 8, "--output_file", tmp_path / "verdicts.json"),
    )
    assert result.stdout.rstrip().endswith("\nready")
    found = json.loads((tmp_path / "verdicts.json").read_text())
    assert found["ready"] is True
    verdicts = {v["check"]: v for v in found["verdicts"]}
    assert list(verdicts) == [
        *("launch", "all-reduce", "room (output_dir)", "disk speed (output_dir)", "training", "memory", "speed"),
        *("data", "save stall", "save", "resume", "second save", "export"),
    ]
    for check in ("launch", "room (output_dir)", "training", "save", "resume", "second save", "export"):
        assert verdicts[check]["verdict"] == "ok"
        assert f"\n{check} " in result.stdout
    assert verdicts["launch"]["values"]["num_processes"] == 2
    assert verdicts["all-reduce"]["values"]["correct"] is True
    assert verdicts["all-reduce"]["values"]["bytes_per_second"] > 0
    assert verdicts["resume"]["values"] == {"steps": 2, "largest_difference": 0.0}
    assert verdicts["speed"]["values"]["days"] > 0
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [standing]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "run", "verdicts.json"]


def test_a_resume_that_goes_another_way_and_an_export_that_fails(values, scripts, probed, tmp_path, capsys):
    script(
        scripts / "pretrain.py",
        "from genesis_hf.config import PretrainRecipe, parse_recipe\n"
        "from genesis_hf.training.pretrain import pretrain\n"
        "(recipe,) = parse_recipe(PretrainRecipe)\n"
        "recipe.learning_rate *= 1 if recipe.resume_from_checkpoint == 'auto' else 1.01\n"
        "pretrain(recipe)\n",
    )
    script(scripts / "export.py", "print('error: the tokenizers differ on 1 of 9 texts', file=sys.stderr); sys.exit(2)")
    verdicts = run(values, scripts)
    assert verdicts["resume"].verdict == "wrong"
    assert verdicts["resume"].figure.startswith("step 8: loss ")  # the first step after the resume is the same still
    assert verdicts["second save"].verdict == "ok"
    assert verdicts["export"].verdict == "wrong"
    assert verdicts["export"].figure == "the tokenizers differ on 1 of 9 texts"
    assert exit_code(list(verdicts.values())) == 2
    assert f"stays in {tmp_path / 'run.preflight'}" in capsys.readouterr().out
    assert (tmp_path / "run.preflight" / "resume.log").is_file()
    assert not (tmp_path / "run").exists()


def test_a_missing_data_file(values, probed, tmp_path):
    values["sources"][0]["paths"] = [str(tmp_path / "nowhere*.jsonl")]
    verdicts = run(values)
    assert verdicts["training"].verdict == "wrong"
    assert "no file matches" in verdicts["training"].figure
    assert "nowhere*.jsonl" in verdicts["training"].figure
    for check in ("save", "resume", "second save", "export"):
        assert verdicts[check].verdict == "not run"


def test_a_disk_too_small_for_the_trial_is_said_before_anything_runs(values, scripts, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(2**20))
    verdicts = run(values, scripts)  # where there is no script to run
    assert verdicts["room (output_dir)"].verdict == "wrong"
    assert verdicts["room (scratch_dir)"].verdict == "wrong"
    assert verdicts["launch"].verdict == "not run"


def test_room_for_the_checkpoints_of_a_whole_run(tmp_path, monkeypatch):
    """genesis-1b: 12 bytes a parameter; three newest, four milestones and the one being written."""
    path = ROOT / "recipes" / "genesis-1b" / "pretrain.yaml"
    arguments = ["--config", str(path), "--output_dir", str(tmp_path / "run"), "--extended_at", "20000,40000,60000"]
    (recipe,) = parse_recipe(PretrainRecipe, argv=arguments)
    needed = 8 * 12 * 1_000_441_344
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(needed))
    assert [v.verdict for v in disk.room(recipe, 1_000_441_344)] == ["ok"]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(needed - 1))
    (verdict,) = disk.room(recipe, 1_000_441_344)
    assert (verdict.verdict, verdict.values["checkpoints"]) == ("wrong", 8)
    standing = tmp_path / "run" / "checkpoints" / "step_000000500"
    standing.mkdir(parents=True)
    (standing / "shard").write_bytes(b"a")  # what the run itself takes is its own room
    assert [v.verdict for v in disk.room(recipe, 1_000_441_344)] == ["ok"]
    recipe.save_copy_dir = str(tmp_path / "copy")
    assert [v.verdict for v in disk.room(recipe, 1_000_441_344)] == ["wrong", "wrong"]  # the same disk twice
    recipe.save_copy_dir, recipe.save_total_limit = None, None
    assert disk.room(recipe, 1_000_441_344)[0].values["checkpoints"] == 80_000 // 500 + 1


def test_a_disk_that_does_not_keep_up(values):
    recipe = build(PretrainRecipe, {**values, "save_steps": 100}, "test")
    speeds = {"output_dir": 12e6}  # 1M parameters: a checkpoint a second

    def verdict(step_seconds):
        return disk.judge_write_speed(recipe, 1_000_000, speeds, step_seconds)[0].verdict

    assert [verdict(seconds) for seconds in (None, 1.0, 0.021, 0.019)] == ["ok", "ok", "ok", "slow"]
    recipe.save_async = False
    assert [verdict(seconds) for seconds in (0.21, 0.19)] == ["ok", "slow"]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


SLEEPER = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"


def test_what_hangs_is_ended_with_all_it_started(values, scripts, probed, tmp_path):
    script(scripts / "pretrain.py", f"{SLEEPER}print(child.pid, flush=True); time.sleep(600)")
    verdicts = run(values, scripts, silent_minutes=0.02)
    assert verdicts["training"].verdict == "wrong"
    assert "no sign of life" in verdicts["training"].figure
    assert gone(int((tmp_path / "run.preflight" / "training.log").read_text()))


def test_ctrl_c_leaves_neither_processes_nor_files(values, scripts, probed, tmp_path):
    note = tmp_path / "pid"
    interrupt = "os.kill(os.getppid(), 2); time.sleep(600)"
    script(scripts / "pretrain.py", f"{SLEEPER}open({str(note)!r}, 'w').write(str(child.pid)); {interrupt}")
    with pytest.raises(KeyboardInterrupt):
        run(values, scripts)
    assert gone(int(note.read_text()))
    assert not (tmp_path / "run.preflight").exists()


def test_what_is_not_a_preflights_folder_is_left_alone(values, tmp_path):
    (tmp_path / "run.preflight").mkdir()
    (tmp_path / "run.preflight" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a preflight's"):
        run(values)
    assert (tmp_path / "run.preflight" / "thesis.tex").is_file()


def test_launches_that_preflight_does_not_take(values, tmp_path, monkeypatch):
    (tmp_path / "many.yaml").write_text("num_machines: 2\n")
    with pytest.raises(UserError, match="2 machines"):
        run(values, accelerate_config=str(tmp_path / "many.yaml"))
    with pytest.raises(UserError, match="no such file"):
        run(values, accelerate_config=str(tmp_path / "none.yaml"))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="launches the processes itself"):
        run(values)


def test_a_launch_of_other_processes_than_the_recipe_is_written_for(values, monkeypatch):
    monkeypatch.setattr(machine, "installed_cards", list)
    recipe = build(PretrainRecipe, {**values, "num_processes": 2}, "test")
    assert machine.judge_launch(recipe, ONE_PROCESS).verdict == "slow"
    assert machine.judge_launch(recipe, {**ONE_PROCESS, "num_processes": 2}).verdict == "ok"
    monkeypatch.setattr(machine, "installed_cards", lambda: ["GPU 0: NVIDIA GeForce RTX 4090"])
    assert machine.judge_launch(recipe, ONE_PROCESS).verdict == "wrong"  # a card, and a torch that cannot use it


def test_all_reduce_is_judged_by_its_sums_and_its_share_of_a_step():
    found = {"peer_access": False, "backend": "nccl", "all_reduce": {"bytes": 4e9, "seconds": 1.0, "correct": True}}
    judge = machine.judge_all_reduce
    assert [judge(found, 10**9, s).verdict for s in (None, 27.6, 3.9)] == ["ok", "ok", "slow"]
    found["all_reduce"]["correct"] = False
    assert judge(found, 10**9, 27.6).verdict == "wrong"


def test_memory_data_and_resume_are_judged_by_their_figures(values, tmp_path):
    record = {"memory_gib": 15.0, "data_wait_share": 0.2, "loss": 2.0, "grad_norm": 1.0}
    recipe = build(PretrainRecipe, {**values, "save_steps": 100}, "test")
    trial = sequence.Trial(recipe, 8, tmp_path, tmp_path, [], 1.0)
    little = {1: {**record, "memory_gib": 1.0}}
    assert judgements.judge_memory(trial, {1: record}, ONE_PROCESS).verdict == "slow"
    assert judgements.judge_memory(trial, little, ONE_PROCESS).verdict == "ok"
    trial.run.mkdir()
    (trial.run / "micro_batch.json").write_text('{"per_device_train_batch_size": 1, "instead_of": 2}')
    halved = judgements.judge_memory(trial, little, ONE_PROCESS)
    assert (halved.verdict, halved.mend[:30]) == ("slow", "per_device_train_batch_size: 1")
    assert judgements.judge_data({1: record, 2: record}).verdict == "slow"
    stalled = {7: {**record, "save_stall_seconds": 10.0}}
    assert [judgements.judge_stall(recipe, stalled, s).verdict for s in (2.1, 1.9)] == ["ok", "slow"]
    before = {step: record for step in range(1, 9)}

    def judge(losses, on_card):
        after = {step: {**record, "loss": loss} for step, loss in zip((7, 8), losses, strict=True)}
        return judgements.judge_resume(trial, judgements.Ended("", 1.0, ""), before, after, on_card).verdict

    assert judge((2.0, 2.0), False) == "ok"
    assert judge((2.0, 2.0 + 1e-9), False) == "wrong"
    assert judge((2.0, 2.0 + 1e-4), True) == "ok"  # kernels that add in another order
    assert judge((2.0 + 1e-4, 2.0), True) == "wrong"  # a forward pass alone
    assert judge((2.0, 2.01), True) == "wrong"


def test_a_schedule_too_short_to_try(values, tmp_path):
    with pytest.raises(UserError, match="nothing is left to try"):
        run({**values, "max_steps": 2, "warmup_steps": 1})
    assert not (tmp_path / "run.preflight").exists()


def test_the_table_names_what_to_mend():
    verdicts = [Verdict("launch", "ok", "1 process"), Verdict("room (output_dir)", "wrong", "x " * 60, "a larger disk")]
    text = table(verdicts, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0] == "launch             ok       1 process"
    assert text.splitlines()[-1].strip() == "→ a larger disk"
    assert [exit_code(verdicts[:1]), exit_code(verdicts), exit_code([Verdict("x", "slow", "")])] == [0, 2, 0]
