import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from slurm_machine import needs_slurm, slurm
from small_runs import small_recipe, write_recipe
from tiny_chat import echo_rows, write_rows

from genesis_hf.cycle.slurm import submit
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
            "broken": {"phases": [{**export, "set": {"dtype": "float33"}}, sft], "milestones": [4]},
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
    assert "dtype is 'float33'" in result.stderr
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
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


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
    assert "dtype is 'float33'" in log.read_text()
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
