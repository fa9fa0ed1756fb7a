import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import run_script
from small_runs import losses, small_recipe, write_recipe

from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.config import read_yaml
from genesis_hf.errors import UserError
from genesis_hf.lineage.differences import recipe_differences
from genesis_hf.lineage.display import diff_text, tree_text
from genesis_hf.lineage.fork import fork as make_fork
from genesis_hf.lineage.repetition import repetition
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
    assert max(map(len, tree_text(tree, width=60).splitlines())) <= 60


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


STATE, SUMMARY, SCORES = "trunk/checkpoints/step_000000008/trainer_state.json", "sft/summary.json", "evaluation.json"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (STATE, "[]", "trainer_state.json (its values"),
        (STATE, '{"step": 8, "stream": null}', "trainer_state.json (its values"),
        (STATE, '{"stream": {"tokens": {"prose": 1}}}', "trainer_state.json (it has no 'epochs')"),
        ("trunk/checkpoints/step_000000008/recipe.yaml", "- 1", "recipe.yaml (no recipe in it)"),
        ("trunk/fork.json", '{"run": "x"}', "fork.json (it has no 'step')"),
        ("base/parity.json", "[]", "parity.json (its values"),
        ("base/parity.json", '{"training": null', "parity.json (not valid JSON)"),
        (SUMMARY, '{"steps": 1, "mixture": null}', "summary.json (its values"),
        (SUMMARY, '{"steps": 1, "mixture": [{"name": "talk"}]}', "summary.json (it has no 'tokens')"),
        (SUMMARY, '{"steps": 1, "epochs": null, "mixture": []}', "summary.json (its values"),
        (SCORES, '{"model_sha256": "SHA", "tasks": null, "provenance": {}}', "evaluation.json: no evaluation"),
        (SCORES, '{"model_sha256": "SHA", "tasks": {"quiz": [1]}, "provenance": {}}', "evaluation.json: its values"),
        (SCORES, '{"model_sha256": "SHA", "tasks": {"q": {"acc": {}}}, "provenance": {}}', "it has no 'value'"),
    ],
)
def test_a_damaged_file_is_named_and_the_tree_goes_on(copied, file, text, words):
    from genesis_hf.lineage.evaluations import model_sha256

    post_training(copied / "sft", "runs/base")
    (copied / file).write_text(text.replace("SHA", model_sha256(copied / "base")))
    tree = read_tree([copied])
    said = " ".join(tree_text(tree, width=500).split())
    assert f"unreadable: {words}" in said or (words in said and "unreadable: /" in said)
    assert {"runs/trunk/step_000000012", "runs/base", "runs/sft"} <= {node.name for node in tree.nodes}


def test_data_named_twice_or_changed_is_not_called_new(copied, corpus):
    recipe_file = checkpoint_folder(copied / "trunk", 12) / "recipe.yaml"
    source = {"name": "again", "paths": [str(corpus / "prose.json*")]}
    recipe = read_yaml(recipe_file)
    recipe_file.write_text(json.dumps({**recipe, "sources": [*recipe["sources"], source]}))
    with open(copied / "trunk" / "events.jsonl", "a") as events:
        events.write('{"step": 4, "event": "data change", "text": "accepted: source prose has other files"}\n')
    make_fork(copied / "trunk", 8)
    said = {}
    for node in read_tree([copied]).nodes:
        said[node.name.removeprefix("runs/")] = "; ".join(repetition(node))
    assert said["trunk/step_000000004"] == ""
    assert "not known since step 4" in said["trunk/step_000000008"]
    assert "prose and again share data" in said["trunk/step_000000012"]
    shutil.rmtree(copied / "trunk")
    assert "not known since step 4" in tree_text(read_tree([copied]), width=200)


def test_links_are_followed_and_each_folder_is_there_once(copied, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").symlink_to(copied / "trunk")
    (tmp_path / "elsewhere" / "data").symlink_to(copied / "base")
    (copied / "again").symlink_to(copied)
    names = [node.name for node in read_tree([copied]).nodes]
    assert sorted(names) == ["runs/base", *(f"runs/trunk/step_{step:09d}" for step in (4, 8, 12))]
    names = [node.name for node in read_tree([tmp_path / "elsewhere"]).nodes]
    assert "elsewhere/linked/step_000000008" in names
    assert "elsewhere/data" in names


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


def test_a_forks_copy_does_not_take_the_branches_of_its_trunk(copied):
    make_fork(copied / "trunk", 8, output_dir=copied / "a_fork")  # stands before the trunk
    tree = read_tree([copied])
    assert tree.find("base").parent.name == "runs/trunk/step_000000008"
    assert tree.find("a_fork").parent.name == "runs/trunk/step_000000008"


def test_a_secret_of_a_fork_is_written_nowhere(copied):
    made = make_fork(copied / "trunk", 8, ["env.MY_TOKEN=hunter2", "env.NCCL_P2P_DISABLE=1"], copied / "quiet")
    written = "".join(path.read_text() for path in (made / "fork.json", made / "recipe.yaml"))
    assert "hunter2" not in written
    assert "env.NCCL_P2P_DISABLE=1" in written


def test_a_fork_of_a_fork_keeps_what_the_first_one_set(copied, monkeypatch):
    first = make_fork(copied / "trunk", 8, ["learning_rate=0.001", "weights={prose: 0.1, code: 0.9}"])
    second = read_yaml(make_fork(first, 8, ["seed=7"], copied / "second") / "recipe.yaml")
    assert second["learning_rate"] == 0.001
    assert [(change["weights"], change["seed"]) for change in second["data_changes"]] == [
        ({"prose": 0.1, "code": 0.9}, None), (None, 7)
    ]  # fmt: skip
    assert read_tree([copied]).find("second").parent.run == first
    monkeypatch.chdir(first)
    assert make_fork(".", 8, ["keep_steps=4,10"]) == copied / "trunk-from-8-from-8"
    assert read_yaml(copied / "trunk-from-8-from-8" / "recipe.yaml")["keep_steps"] == [10]


@pytest.mark.parametrize(
    ("step", "settings", "folder", "words"),
    [
        (5, [], None, "no complete checkpoint of step 5; complete there: 12, 8, 4"),
        (8, ["model.hidden_size=32"], None, "can't go on with another model"),
        (8, ["sequence_length=32"], None, "can't go on with another sequence_length"),
        (8, ["lerning_rate=1"], None, "did you mean `learning_rate`"),
        (8, ["learning_rate"], None, "give KEY=VALUE"),
        (8, ["weights={prose: 1}"], None, "weights must name each source"),
        (8, ["weights={"], None, "not valid YAML"),
        (8, ["weights=null"], None, "give weights={SOURCE: NUMBER"),
        (8, ["seed="], None, "give seed=NUMBER"),
        (8, ["data_changes=x", "seed=1"], None, "data_changes"),
        (8, ["output_dir=there"], None, "--output_dir"),
        (8, ["stop_at_step=9"], None, "--stop_at_step"),
        (8, ["resume_from_checkpoint=none"], None, "its own checkpoint"),
        (12, [], None, "needs --set max_steps"),
        (8, [], ".", "exists"),
        (8, [], "trunk/recipe.yaml/below", "can't be made"),
        (8, [], "nowhere", "exists"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(copied, step, settings, folder, words):
    (copied / "nowhere").symlink_to("gone")
    with pytest.raises(UserError) as refused:
        make_fork(copied / "trunk", step, settings, folder and copied / folder)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir(copied)) == ["base", "nowhere", "trunk"]


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
    [
        (["nowhere"], "no such folder"),
        (["diff", "trunk/step_000000004", "nothing", "RUNS"], "no such model"),
        (["diff", "trunk"], "diff compares two models"),
        (["fork", "RUNS", "--at", "x"], "invalid int value"),
    ],
)
def test_what_is_not_there_is_said(runs, arguments, words):
    result = run_script("scripts/lineage.py", *(runs if word == "RUNS" else word for word in arguments), check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
