import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from slurm_machine import needs_slurm, slurm
from small_runs import small_recipe, write_recipe
from tiny_chat import echo_rows, write_rows

from genesis_hf.config import build
from genesis_hf.cycle.recipe import CycleRecipe
from genesis_hf.cycle.slurm import SCRIPT, limit_seconds, sbatch_line, sbatch_options, submit
from genesis_hf.cycle.tree import make_tree, records
from genesis_hf.errors import UserError
from genesis_hf.files import file_sha256
from genesis_hf.lineage.tree import read_tree
from genesis_hf.stages import Stage, Stages


@pytest.fixture(scope="module")
def recipes(corpus, tokenizer_folder, tmp_path_factory) -> Path:
    """Recipes of a trunk of four steps and of SFT of two."""
    folder = tmp_path_factory.mktemp("cycle")
    values = small_recipe(corpus, tokenizer_folder, folder / "unused", max_steps=4, warmup_steps=1, save_total_limit=1)
    write_recipe(values, folder / "pretrain.yaml")
    rows = [{"name": "echo", "paths": [write_rows(folder / "train.jsonl", echo_rows(24, seed=1))]}]
    sft = {"model": "unused", "output_dir": "unused", "mixture": rows, "max_length": 64, "max_steps": 2}
    write_recipe({**sft, "bf16": False, "disable_tqdm": True, "save_steps": 1}, folder / "sft.yaml")
    return folder


def cycle_recipe(recipes: Path, output_dir: Path, **changes) -> Path:
    """A tree of two milestones; at the second one a branch that can't be made, beside one that can."""
    export, sft = {"phase": "export"}, {"phase": "sft", "config": f"{recipes}/sft.yaml"}
    values = {
        "output_dir": str(output_dir),
        "trunk": {"config": f"{recipes}/pretrain.yaml", "set": {"output_dir": f"{output_dir}/trunk"}},
        "milestones": [2, 4],
        "branches": {
            "broken": {"phases": [{**export, "set": {"tokenizer": "nowhere"}}, sft], "milestones": [4]},
            "whole": {"phases": [export, sft], "milestones": [4]},
        },
        **changes,
    }
    return write_recipe(values, recipes / f"{output_dir.name}.yaml")


def cycle(config, *arguments, check=True):
    return run_script("scripts/cycle.py", "--config", config, *arguments, check=check)


def weights(folder: Path) -> dict[str, str]:
    """Hashes of all models of a tree but for those of checkpoints."""
    paths = [path for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path)]
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


@pytest.fixture(scope="module")
def tree(recipes, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The tree, run once."""
    folder = tmp_path_factory.mktemp("trees") / "here"
    return folder, cycle(cycle_recipe(recipes, folder), check=False)


def test_a_broken_branch_leaves_the_others_whole(tree):
    folder, result = tree
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "nowhere" in result.stderr
    assert "error: 000000004-broken-base did not finish" in result.stderr
    assert "left out, for they come after: 000000004-broken-sft" in result.stderr
    assert sorted(weights(folder)) == [
        "step_000000004/whole/base/model.safetensors",
        "step_000000004/whole/sft/final/model.safetensors",
    ]
    nodes = read_tree([folder]).find("whole/sft").ancestors()
    assert [(node.kind, node.step) for node in nodes] == [
        ("checkpoint", 2), ("checkpoint", 4), ("export", 4), ("sft", 2)
    ]  # fmt: skip


def test_mended_it_goes_on_and_a_rerun_does_nothing(tree, recipes):
    folder, _ = tree
    config = cycle_recipe(recipes, folder)
    values = yaml.safe_load(config.read_text())
    values["branches"]["broken"]["phases"][0]["set"] = {"dtype": "bfloat16"}
    config.write_text(yaml.safe_dump(values))
    before = stamps(folder)
    assert "all is finished" in cycle(config).stdout
    after = stamps(folder)
    assert {path: after[path] for path in before} == before  # what was finished was not touched
    assert (folder / "step_000000004/broken/sft/final").is_dir()
    assert "nothing was left to do" in cycle(config).stdout
    assert stamps(folder) == after


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@needs_slurm
def test_the_same_tree_under_slurm(tree, recipes, tmp_path):
    folder, under = tree[0], tmp_path / "under"
    config = cycle_recipe(recipes, under, milestones=[4])
    with slurm(tmp_path / "slurm") as environment:
        everything = {**os.environ, **environment}

        def run(*command):
            return subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True, check=True).stdout

        def submit_tree():
            return run(sys.executable, "scripts/cycle.py", "--config", str(config), "--scheduler", "slurm")

        jobs = [line.split("job ")[1] for line in submit_tree().splitlines()]
        assert len(jobs) == 5
        assert "is job" in submit_tree()  # what waits or runs is not submitted again
        run("sbatch", "--wait", f"--dependency=afterany:{':'.join(jobs)}", "--output=/dev/null", "--wrap=true")
    here = {path: sha256 for path, sha256 in weights(folder).items() if "whole" in path}
    assert weights(under) == here
    assert sorted(path.stem for path in (under / "stages").glob("*.json")) == [
        "000000004-trunk",
        "000000004-whole-base",
        "000000004-whole-sft",
    ]
    (log,) = (under / "stages" / "jobs").glob("000000004-broken-base-*.log")
    assert "nowhere" in log.read_text()
    assert not list((under / "stages" / "jobs").glob("000000004-broken-sft-*.log"))  # it never ran


def test_a_dry_run_prints_commands_and_touches_nothing(recipes, tmp_path):
    config = cycle_recipe(recipes, tmp_path / "dry")
    lines = cycle(config, "--dry_run", "true").stdout.splitlines()
    commands = [line for line in lines if "scripts/" in line]
    assert len(commands) == 6
    assert "--stop_at_step 2 --keep_steps '[2, 4]'" in commands[0]
    submitted = cycle(config, "--dry_run", "true", "--scheduler", "slurm", "--slurm", "{partition: gpu}").stdout
    assert submitted.count("sbatch --parsable") == 6
    assert "--partition=gpu" in submitted
    assert "'--dependency=afterok:<000000002-trunk>'" in submitted
    assert f"scripts/cycle.py --config {config} --slurm '{{partition: gpu}}' --stage 000000002-trunk" in submitted
    assert not (tmp_path / "dry").exists()


def test_the_reference_plan_is_a_tree():
    lines = cycle("recipes/genesis-1b/cycle.yaml", "--dry_run", "true").stdout.splitlines()
    commands = [line for line in lines if "scripts/" in line]
    assert len(commands) == 4 * (1 + 2 + 4)
    assert commands[0].endswith("--stop_at_step 20000 --keep_steps '[20000, 40000, 60000, 80000]'")
    assert "accelerate_configs/fsdp2_2gpu.yaml scripts/pretrain.py" in commands[0]


def test_a_publication_waits_for_the_scores_of_its_card(recipes, tmp_path):
    evaluation = {"phase": "evaluate", "config": "recipes/demo/eval.yaml"}
    publication = {"phase": "publish", "set": {"hub_model_id": "me/mine"}}
    shared = [{"phase": "export"}, evaluation, publication]
    config = cycle_recipe(recipes, tmp_path / "published", each_milestone=shared, branches={})
    lines = cycle(config, "--dry_run", "true").stdout.splitlines()
    (title,) = [line for line in lines if line.startswith("# Step 4: publish")]
    assert "after 000000004-base, 000000004-evaluate-base" in title
    assert "--hub_model_id me/mine" in lines[lines.index(title) + 1]
    assert "--revision step-000004" in lines[lines.index(title) + 1]


def branch(*phases, name="a"):
    return {"branches": {name: {"phases": list(phases)}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"milestones": [4, 2]}, "milestones must be steps in rising order"),
        ({"milestones": [2, 4, 9]}, "milestone 9 lies past the trunk's max_steps of 4"),
        (branch({"phase": "dpo", "config": "x"}), "begin with an export"),
        (branch({"phase": "export"}, {"phase": "sft"}), "sft needs its recipe"),
        (branch({"phase": "export"}, {"phase": "publish"}), "publish needs `set: {hub_model_id"),
        (branch({"phase": "export", "set": {"output_dir": "here"}}), "can't `set` output_dir"),
        (branch({"phase": "sftt"}), "must be one of export, evaluate"),
        (branch({"phase": "export", "config": "nowhere.yaml"}), "nowhere.yaml: no such file"),
        (branch({"phase": "export"}, name="../a"), "letters, digits"),
        ({"branches": {"a": {"phases": [], "milestones": [3]}}}, "is no milestone"),
        ({"trunk": "recipes/demo/pretrain.yaml"}, "trunk must be a mapping"),
        ({"stage": "nothing"}, "stage nothing: not in this tree"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(recipes, tmp_path, changes, words):
    result = cycle(cycle_recipe(recipes, tmp_path / "refused", **changes), check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "refused").exists()


def planned(recipes, folder, **changes) -> Stages:
    """The stages of a tree, in this process."""
    values = yaml.safe_load(cycle_recipe(recipes, folder).read_text())
    recipe = build(CycleRecipe, {**values, **changes}, "cycle.yaml")
    return Stages(make_tree(recipe), records(recipe))


EXPORT = {"phase": "export"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (branch(EXPORT, name=".."), "no dot or hyphen first"),
        (branch({**EXPORT, "name": "."}), "no dot or hyphen first"),
        (branch(EXPORT, name="a" * 101), "at most 100"),
        (branch(EXPORT, name="data"), "looks for no model in a folder called so"),
        ({"each_milestone": [EXPORT], **branch({"phase": "sample"}, name="base")}, "makes a folder of that name"),
        ({"each_milestone": [{**EXPORT, "name": "trunk"}], "branches": {}}, "two stages are called 000000002-trunk"),
        (branch({**EXPORT, "set": {"output-dir": "x"}}), "can't `set` output_dir"),
        (branch({**EXPORT, "set": {"config": "x"}}), "can't `set` config"),
        (branch(EXPORT, {"phase": "publish", "set": {"hub_model_id": "a/b", "revision": "x"}}), "can't `set` revision"),
        (branch({**EXPORT, "set": {"dtyp": "float32"}}), "branch a, export: set: unknown key `dtyp`; did you mean"),
        (branch({**EXPORT, "set": {"dtype": "float33"}}), "branch a, export: set: dtype is 'float33'"),
        (branch({**EXPORT, "accelerate_config": "no.yaml"}), "accelerate_config no.yaml: no such file"),
        ({"slurm": {"time": 43200}}, "put it in quotes"),
        ({"slurm": {"time": "0:05:00"}}, "too short"),
        ({"slurm": {"signal": "B:TERM@60"}}, "signal must be B:USR1@SECONDS"),
        ({"output_dir": " "}, "output_dir is empty"),
    ],
)
def test_a_tree_that_cannot_be_is_refused_before_it_is_run(recipes, tmp_path, changes, words):
    with pytest.raises(UserError) as refused:
        planned(recipes, tmp_path / "refused", **changes)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stop_at_step": 1}, "trunk can't `set` stop_at_step"),
        ({"max_steps": None}, "max_steps must be a whole number"),
        ({"keep_steps": 3}, "keep_steps must be a list"),
        ({"output_dir": "{tree}"}, "lies in the trunk's run directory"),
        ({"output_dir": "{tree}/step_000000002/a"}, "which the tree uses otherwise"),
    ],
)
def test_a_trunk_that_cannot_be_is_refused(recipes, tmp_path, settings, words):
    tree = tmp_path / "refused"
    settings = {key: value.format(tree=tree) if isinstance(value, str) else value for key, value in settings.items()}
    trunk = {"config": f"{recipes}/pretrain.yaml", "set": {"output_dir": f"{tree}/trunk", **settings}}
    with pytest.raises(UserError, match=words):
        planned(recipes, tree, trunk=trunk)


def test_sft_keys_are_checked_with_trl_s(recipes, tmp_path):
    sft = {"phase": "sft", "config": f"{recipes}/sft.yaml"}
    planned(recipes, tmp_path / "a", **branch(EXPORT, {**sft, "set": {"learning-rate": 1e-5, "bf16": True}}))
    with pytest.raises(UserError, match=r"branch a, sft: .*sft\.yaml: unknown key `learning_rat`; did you mean"):
        planned(recipes, tmp_path / "a", **branch(EXPORT, {**sft, "set": {"learning_rat": 1e-5}}))


def test_a_folder_s_spelling_changes_no_command(recipes, tmp_path):
    trunk = {"config": f"{recipes}/pretrain.yaml", "set": {"output_dir": f"{tmp_path}/a/trunk"}}
    spelled = {"config": f"{recipes}/pretrain.yaml", "set": {"output_dir": f"{tmp_path}/./a/trunk/"}}
    one = planned(recipes, tmp_path / "a", trunk=trunk)
    other = planned(recipes, tmp_path / "a", trunk=spelled, output_dir=f"{tmp_path}/./a/")
    assert [stage.command for stage in one.all.values()] == [stage.command for stage in other.all.values()]


def test_a_branch_s_publication_waits_for_shared_scores(recipes, tmp_path):
    shared = [EXPORT, {"phase": "evaluate", "config": "recipes/demo/eval.yaml"}]
    publication = {"phase": "publish", "set": {"hub_model_id": "me/mine"}}
    stages = planned(recipes, tmp_path / "a", each_milestone=shared, **branch(publication), milestones=[2])
    assert stages.all["000000002-a-publish-base"].after == ["000000002-base", "000000002-evaluate-base"]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800), ("30:10", 1810), ("1:00:10", 3610), ("2-01", 176400), ("2-01:01", 176460), ("2-01:01:01", 176461),
        ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(time, seconds):
    assert limit_seconds(time) == seconds


def test_options_of_sbatch_are_flags_and_values():
    options = {"exclusive": True, "cpus_per_task": 4, "requeue": False, "mem": None, "time": "1-00"}
    line = sbatch_line(Stage("one", "one", ["true"], slurm=sbatch_options(options)), Path("stages"), [])
    assert {"--exclusive", "--cpus-per-task=4", "--time=1-00", "--signal=B:USR1@300"} <= {*line}
    assert not {"--requeue", "--mem"} & {*line}


@pytest.mark.parametrize(
    ("name", "requeue", "code", "requeued"),
    [("USR1", 0, 0, True), ("USR1", 1, 1, True), ("TERM", 0, 143, False)],
)
def test_a_job_queues_itself_again_near_its_end_and_not_when_cancelled(tmp_path, name, requeue, code, requeued):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/bash\ntouch requeued\nexit {requeue}\n")
    scontrol.chmod(0o755)
    saves = (
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        f"os.kill(os.getppid(), signal.SIG{name}); signal.sigwait({{signal.SIGTERM}})\n"
        "open('saved', 'w').close(); os._exit(130)"
    )
    script = SCRIPT.format(folder=tmp_path, command=shlex.join([sys.executable, "-c", saves]))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    assert subprocess.run(["bash", "-c", script], env=environment).returncode == code
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").exists() is requeued


@pytest.fixture
def slurm_programs(tmp_path, monkeypatch):
    """sbatch and squeue that say what a test has them say, and an empty folder of records."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def say(name, script):
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)

    say("sbatch", f"cat >> {tmp_path}/jobs; grep -c cycle.py {tmp_path}/jobs")
    say("squeue", "echo RUNNING")
    return say


def test_a_stale_stage_stops_what_comes_after_it_and_no_other_submission(tmp_path, slurm_programs, capsys):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "stale.json").write_text('{"inputs": {"command": "other"}}')
    first, second, other = (
        Stage("stale", "", ["a"]),
        Stage("after", "", ["b"], after=["stale"]),
        Stage("other", "", ["c"]),
    )
    with pytest.raises(UserError, match=r"^stale could not be submitted.*left out, for they come after: after"):
        submit(Stages([first, second, other], tmp_path / "stages"), [])
    said = capsys.readouterr()
    assert said.out == "other: job 1\n"
    assert "stale: " in said.err


@pytest.mark.parametrize(
    ("squeue", "words"),
    [
        ("echo RUNNING", "one: is job 1 already"),
        ("echo TIMEOUT", "one: job 2"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "one: job 2"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "squeue can't say whether job 1 still runs"),
    ],
)
def test_only_a_job_that_slurm_has_not_is_submitted_again(tmp_path, slurm_programs, capsys, squeue, words):
    stages = Stages([Stage("one", "", ["a"])], tmp_path / "stages")
    submit(stages, [])
    slurm_programs("squeue", squeue)
    with suppress(UserError):
        submit(stages, [])
    assert words in "".join(capsys.readouterr())


def test_a_milestone_that_was_not_kept_is_refused(recipes, tmp_path):
    passed = tmp_path / "passed" / "trunk" / "checkpoints" / "step_000000003"
    passed.mkdir(parents=True)
    (passed / "manifest.json").write_text(json.dumps({}))
    result = cycle(cycle_recipe(recipes, tmp_path / "passed"), check=False)
    assert result.returncode == 2
    assert "is at step 3 and has not kept milestone 2" in result.stderr


def test_slurm_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs sbatch"):
        submit(Stages([Stage("one", "one", ["true"])], tmp_path), [])
    assert list(tmp_path.iterdir()) == []
