import json
import shutil
from pathlib import Path

import pytest
from conftest import run_script
from small_runs import losses, small_recipe, write_recipe

from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.config import read_yaml
from genesis_hf.lineage.differences import recipe_differences
from genesis_hf.lineage.display import diff_text, tree_text
from genesis_hf.lineage.tree import read_tree
from genesis_hf.publishing.lineage import ancestors, lineage_rows
from genesis_hf.runs import read_run


@pytest.fixture(scope="module")
def runs(corpus, tokenizer_folder, tmp_path_factory) -> Path:
    """A trunk of 12 steps with its checkpoints at 4, 8 and 12, and the export of step 8."""
    root = tmp_path_factory.mktemp("lineage") / "runs"
    values = small_recipe(corpus, tokenizer_folder, root / "trunk", save_steps=4, save_total_limit=None)
    run_script("scripts/pretrain.py", "--config", write_recipe(values, root.parent / "trunk.yaml"))
    export(root / "trunk" / "checkpoints" / "step_000000008", root / "base")
    return root


def export(checkpoint: Path, folder: Path) -> None:
    run_script("scripts/export.py", "--checkpoint", checkpoint, "--output_dir", folder)


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    return shutil.copytree(runs, tmp_path / "runs")


def fork(folder, *arguments, check=True):
    return run_script("scripts/lineage.py", "fork", folder / "trunk", *arguments, check=check)


def post_training(folder: Path, model: str, phase: str = "sft", **recipe) -> Path:
    """The files that a finished run of SFT leaves, without its weights."""
    (folder / "final").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps({"model": model, "mixture": [{"name": "talk"}], **recipe}))
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    summary = {"phase": phase, "steps": 7, "epochs": 2.0, "mixture": [{"name": "talk", "tokens": 500}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_tree_names_parents_tokens_and_steps(runs):
    tree = read_tree([runs])
    assert [(node.name, node.step, node.parent and node.parent.step) for node in tree.nodes] == [
        ("runs/trunk/step_000000004", 4, None),
        ("runs/trunk/step_000000008", 8, 4),
        ("runs/base", 8, 8),
        ("runs/trunk/step_000000012", 12, 8),
    ]
    for node in (node for node in tree.nodes if node.kind == "checkpoint"):
        assert sum(node.tokens.values()) == node.step * 4 * 64  # rows of a step, tokens of a row
    assert tree.find("base").parent.step == 8
    text = tree_text(tree)
    assert "none twice" in text
    assert "runs/base  [export of step_000000008]" in text


def test_a_source_that_came_twice_is_named(corpus, tokenizer_folder, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join((corpus / "prose.jsonl").read_text().splitlines(keepends=True)[:6]))
    sources = [{"name": "few", "paths": [str(few)]}]
    values = small_recipe(corpus, tokenizer_folder, tmp_path / "runs" / "trunk", sources=sources, max_steps=10)
    run_script("scripts/pretrain.py", "--config", write_recipe(values, tmp_path / "r.yaml"))
    (node,) = read_tree([tmp_path / "runs"]).nodes
    assert "pass" in node.repeated["few"]
    assert "repeated since step" in node.repeated["few"]
    assert "came again: few in pass" in tree_text(read_tree([tmp_path / "runs"]))


def test_chat_models_hang_from_what_they_were_trained_from(copied, monkeypatch):
    shutil.copytree(
        copied / "base", post_training(copied / "sft", "runs/base", chat_format="chatml") / "final", dirs_exist_ok=True
    )
    post_training(copied / "dpo", "runs/sft/final", "dpo", length_normalized=False, learning_rate=1e-5)
    monkeypatch.chdir(copied.parent)
    tree = read_tree(["runs"])
    assert [node.name for node in tree.find("dpo").ancestors()[-3:]] == ["runs/base", "runs/sft", "runs/dpo"]
    assert tree.find("dpo").folder is None  # it has no weights
    assert tree.find("sft").tokens == {"talk": 1000}
    assert tree.find("sft").repeated == {"talk": "2 epochs"}
    # the whole tree elsewhere, and read from elsewhere
    moved = shutil.move(copied, copied.parent / "elsewhere")
    monkeypatch.chdir("/")
    assert read_tree([moved]).find("sft").parent.name == "elsewhere/base"


def test_evaluations_are_told_by_the_models_files(copied):
    from genesis_hf.lineage.evaluations import model_sha256

    scores = {"acc": {"value": 0.5, "stderr": 0.1, "chance": 0.25, "n": 20, "higher_is_better": True}}
    for name, sha256 in (("of_base", model_sha256(copied / "base")), ("of_another", "0" * 64)):
        (copied / name).mkdir()
        values = {"model": name, "model_sha256": sha256, "tasks": {"quiz": scores}, "provenance": {"quiz": {}}}
        (copied / name / "evaluation.json").write_text(json.dumps(values))
    tree = read_tree([copied])
    assert tree.find("base").evaluations == [copied / "of_base"]
    assert "quiz acc 0.50 ± 0.10 (chance 0.25)" in tree_text(tree)


def test_a_fork_goes_on_exactly_and_hangs_from_where_it_left(copied):
    fork(copied, "--at", "8", "--output_dir", copied / "same")
    fork(copied, "--at", "8", "--set", "learning_rate=0.001", "--set", "weights={prose: 0.1, code: 0.9}")
    other = copied / "trunk-from-8"
    for folder in (copied / "same", other):
        run_script("scripts/pretrain.py", "--config", folder / "recipe.yaml")
    trunk = losses(copied / "trunk")
    assert losses(copied / "same") == {step: trunk[step] for step in losses(copied / "same")}  # nothing was changed
    assert losses(other)[12] != trunk[12]
    assert read_yaml(other / "recipe.yaml")["data_changes"] == [
        {"step": 8, "seed": None, "weights": {"prose": 0.1, "code": 0.9}}
    ]
    tree = read_tree([copied])
    assert tree.find("trunk/step_000000008") in tree.find("trunk-from-8").ancestors()
    text = tree_text(tree)
    assert f"runs/trunk-from-8  [fork of {copied / 'trunk'} step 8]" in text
    assert "learning_rate 0.003 → 0.001" in text
    phases = lineage_rows(ancestors(read_run(other)))[1:]
    assert [(row[1], row[-1]) for row in phases] == [
        ("trunk", "random weights"), ("trunk-from-8", "checkpoints/step_000000008")
    ]  # fmt: skip
    words = diff_text(tree.find("trunk"), tree.find("trunk-from-8"))
    assert "both come from runs/trunk/step_000000008" in words
    assert "learning_rate: 0.003 → 0.001" in words


def test_a_forks_start_is_a_copy_that_neither_can_spoil(copied):
    fork(copied, "--at", "4")
    shutil.rmtree(copied / "trunk")
    (node,) = [n for n in read_tree([copied]).nodes if n.kind == "checkpoint"]
    assert node.name == "runs/trunk-from-4/step_000000004"
    assert node.start.endswith("trunk step 4")
    result = run_script("scripts/pretrain.py", "--config", copied / "trunk-from-4" / "recipe.yaml", "--stop_at_step", 5)
    assert "resumed from" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "5"], "no complete checkpoint of step 5; complete there: 12, 8, 4"),
        (["--at", "8", "--set", "model.hidden_size=32"], "can't go on with another model"),
        (["--at", "8", "--set", "sequence_length=32"], "can't go on with another sequence_length"),
        (["--at", "8", "--set", "lerning_rate=1"], "did you mean `learning_rate`"),
        (["--at", "8", "--set", "learning_rate"], "give KEY=VALUE"),
        (["--at", "8", "--set", "weights={prose: 1}"], "weights must name each source"),
        (["--at", "12"], "needs --set max_steps"),
        (["--at", "8", "--output_dir", "."], "exists"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(copied, arguments, words):
    result = fork(copied, *arguments, check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (copied / "trunk-from-8").exists()


def test_a_damaged_checkpoint_is_not_forked(copied):
    path = checkpoint_folder(copied / "trunk", 8) / "trainer_state.json"
    path.write_text(path.read_text().replace("4", "5", 1))
    result = fork(copied, "--at", "8", check=False)
    assert result.returncode == 2
    assert "is damaged" in result.stderr


def test_diff_names_what_differs():
    old = {"a": 1, "model": {"b": 2, "c": 3}, "sources": [{"name": "x", "weight": 1.0}], "output_dir": "here"}
    new = {"a": 1, "model": {"b": 2, "c": 4}, "sources": [{"name": "x", "weight": 2.0}], "output_dir": "there", "d": 0}
    assert recipe_differences(old, new) == {"model.c": (3, 4), "sources.x.weight": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "no such folder"), (["diff", "trunk/step_000000004", "nothing"], "no such model")],
)
def test_what_is_not_there_is_said(runs, arguments, words):
    result = run_script("scripts/lineage.py", *arguments, *([runs] if arguments[0] == "diff" else []), check=False)
    assert result.returncode == 2
    assert words in result.stderr
