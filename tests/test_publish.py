"""Models on the Hub: what is published loads, is sent once, and is complete or absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from hub_upload_server import HubUploadServer
from hypothesis import given
from hypothesis import strategies as st
from reading_here import read_in_this_process
from small_runs import small_recipe

from genesis_hf import export
from genesis_hf.config import PretrainRecipe, PublishRecipe, build
from genesis_hf.errors import UserError
from genesis_hf.evaluation.results import Evaluation
from genesis_hf.export import MODEL_FILES
from genesis_hf.files import edit_json, folder_sha256
from genesis_hf.publishing.publish import Published, publish
from genesis_hf.publishing.secrets import refuse_secrets
from genesis_hf.training.pretrain import pretrain

NAME = "someone/model"

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def exported(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run of 8 steps, in its place in the run."""
    run = tmp_path_factory.mktemp("trained") / "run"
    held_out = [{"name": "heldout", "paths": [str(corpus / "heldout.jsonl")]}]
    settings = {"max_steps": 8, "logging_steps": 1, "eval_sources": held_out}
    recipe = small_recipe(corpus, tokenizer_folder, run, **settings)
    checkpoint = pretrain(build(PretrainRecipe, recipe, "test"))
    folder = run / "exports" / f"{checkpoint.name}-float32"
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_in_this_process(export, monkeypatch)
        export.export_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed; the exported folder in it."""
    run = exported.parent.parent
    shutil.copytree(run, tmp_path / run.name)
    return tmp_path / run.name / exported.relative_to(run)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubUploadServer]:
    with HubUploadServer() as server:
        server.stand_in(monkeypatch, tmp_path / "cache")
        yield server


def push(model: Path, **settings: object) -> list[Published]:
    return publish(PublishRecipe(model=str(model), hub_model_id=NAME, **settings))


def set_step(model: Path, step: int) -> None:
    """Make an export one of another step."""
    edit_json(model / "parity.json", lambda values: values["training"].update(step=step))


def give_weights(model: Path, seed: int) -> None:
    """Other bytes in the weight file's data."""
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1000] + bytes([seed]) * 1000)


# ---------------------------------------------------------------------------------------------------------
# Up, and loaded
# ---------------------------------------------------------------------------------------------------------


def test_create_upload_tag_and_load(hub: HubUploadServer, exported: Path, tmp_path: Path) -> None:
    branch, main = push(exported, tag="v1.0", include_checkpoint=True)[1:]
    assert (branch.revision, main.revision) == ("step-000008", "main")
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.tags == {"v1.0": main.commit}
    local = {path.name: path.read_bytes() for path in exported.iterdir()}
    files = hub.files(NAME)
    assert {name: files[name] for name in local} == local
    assert set(files) - set(local) == {".gitattributes", "README.md", "loss.png"}
    assert {p: c for p, c in hub.files(NAME, "step-000008").items() if "/" not in p} == files
    assert "checkpoint/manifest.json" in hub.files(NAME, "step-000008")
    program = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "def answer(name, **where): return M.from_pretrained(name, **where)(**T.from_pretrained(name, **where)("
        "'river stone', return_tensors='pt', return_token_type_ids=False)).logits\n"
        "local = answer(sys.argv[2])\n"
        "for revision in ('main', 'step-000008', 'v1.0'):\n"
        "    assert (answer(sys.argv[1], revision=revision) == local).all()"
    )
    run_script("-c", program, NAME, exported, **hub.environment(tmp_path / "other"))


def test_what_is_there_is_not_sent_again(hub: HubUploadServer, exported: Path) -> None:
    assert all(one.changed for one in push(exported, tag="v1.0"))
    assert set(hub.received.values()) == {1}  # the blobs of the branch serve `main`, too
    commits = list(hub.repositories[NAME].history)
    sent = hub.count("PUT")
    assert [one.changed for one in push(exported, tag="v1.0")] == [0, 0]
    assert hub.repositories[NAME].history == commits
    assert hub.count("PUT") == sent


def test_main_holds_the_newest_and_nothing_of_an_older_one(hub: HubUploadServer, model: Path) -> None:
    set_step(model, 20)
    (model / "model-00002-of-00002.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    push(model)
    hub.repositories[NAME].commit("main", {**hub.files(NAME), "LICENSE": b"mine"})
    (model / "model-00002-of-00002.safetensors").unlink()
    give_weights(model, 1)
    set_step(model, 30)
    push(model)
    main = hub.files(NAME)
    assert main["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert "model-00002-of-00002.safetensors" not in main
    assert main["LICENSE"] == b"mine"
    assert "model-00002-of-00002.safetensors" in hub.files(NAME, "step-000020")
    give_weights(model, 2)
    set_step(model, 25)
    assert [one.revision for one in push(model)] == ["step-000025"]
    assert hub.files(NAME) == main


def test_a_tag_stays(hub: HubUploadServer, model: Path) -> None:
    push(model, tag="v1.0")
    tagged = dict(hub.repositories[NAME].tags)
    give_weights(model, 1)
    with pytest.raises(UserError, match=r"tag v1.0 of someone/model names another commit"):
        push(model, tag="v1.0")
    assert hub.repositories[NAME].tags == tagged


# ---------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1])
def test_a_connection_that_breaks_in_an_upload(hub: HubUploadServer, exported: Path, after: int) -> None:
    hub.fail("PUT", "objects/", "drop", after=after)
    push(exported)
    assert set(hub.received.values()) == {1}
    assert hub.files(NAME)["model.safetensors"] == (exported / "model.safetensors").read_bytes()


def test_an_upload_that_was_given_up_is_absent_and_goes_on(hub: HubUploadServer, exported: Path) -> None:
    hub.fail("PUT", "objects/", *["drop"] * 500, after=1)
    with pytest.raises(UserError, match="the Hub can't be reached"):
        push(exported)
    assert len(hub.received) == 1
    assert set(hub.files(NAME, "step-000008")) == {".gitattributes"}
    hub.fail("PUT", "")
    push(exported)
    assert len(hub.received) > 1
    assert set(hub.received.values()) == {1}
    assert "model.safetensors" in hub.files(NAME, "step-000008")


@pytest.mark.parametrize("path", ["repos/create", "refs", "branch/", "preupload", "batch", "/commit/", "tag/"])
@pytest.mark.parametrize("fault", [503, "lost"])
def test_every_request_may_fail_once(hub: HubUploadServer, exported: Path, path: str, fault: int | str) -> None:
    """`lost`: the Hub has done it, and its answer doesn't arrive."""
    hub.fail("GET" if path == "refs" else "POST", path, fault)
    push(exported, tag="v1.0")
    repository = hub.repositories[NAME]
    assert [line.split()[0] for line in repository.history] == ["main", "step-000008", "main"]
    assert repository.tags["v1.0"] == repository.branches["main"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("token", "the Hub does not accept this token for someone/model: renew HF_TOKEN"),
        ("none", "no token for the Hub: set HF_TOKEN"),
        ("read_only", "this token may not do that with someone/model: it needs write access"),
        ("public", "someone/model is public on the Hub and hub_private_repo is true"),
        ("offline", "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_no_patience_mends_is_said_at_once(
    hub: HubUploadServer, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, harm: str, words: str
) -> None:
    if harm == "token":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    elif harm == "none":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    elif harm == "read_only":
        hub.read_only = True
    elif harm == "public":
        push(exported, hub_private_repo=False)
        assert not hub.repositories[NAME].private
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    with pytest.raises(UserError, match=words) as raised:
        push(exported)
    assert "hf_" not in str(raised.value)
    assert len(hub.requests) - before <= 2


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------


def test_an_export_that_is_not_proved_stays_here(hub: HubUploadServer, model: Path) -> None:
    edit_json(model / "parity.json", lambda values: values["formats_compared"]["llama"].update(agrees=False))
    with pytest.raises(UserError, match="llama does not agree with the live model: export again"):
        push(model)
    (model / "parity.json").unlink()
    with pytest.raises(UserError, match=r"has no parity.json that says it computes what was trained"):
        push(model)
    with pytest.raises(UserError, match="no such folder"):
        push(model / "none")
    assert set(hub.files(NAME)) == {".gitattributes"}


def test_a_secret_in_a_run_stays_here(hub: HubUploadServer, model: Path) -> None:
    run = model.parent.parent
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"step": 1, "text": f"logged in with {TOKEN}"}) + "\n")
    with pytest.raises(
        UserError, match=r"run/events.jsonl, line \d+ holds what looks like a Hugging Face token"
    ) as raised:
        push(model, include_checkpoint=True)
    assert TOKEN not in str(raised.value)
    assert not hub.received
    assert set(hub.repositories[NAME].branches) == {"main"}


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        (TOKEN, "a Hugging Face token"),
        ("sk-ant-api03-abcdefghijklmnopqrst", "a key of a chat API"),
        ("AKIAIOSFODNN7EXAMPLE", "an AWS key"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "a GitHub token"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("value-of-a-variable", "the value of WANDB_API_KEY"),
    ],
)
@given(before=st.text(" \n:'\"=éa{", max_size=20), after=st.text(" \n'\",}", max_size=20))
def test_secrets_are_found_wherever_they_stand(secret: str, kind: str, before: str, after: str) -> None:
    content = f"{before} {secret}{after}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "value-of-a-variable")
        with pytest.raises(UserError, match=kind) as raised:
            refuse_secrets({"a.json": b"{}", "recipe.yaml": content.encode()})
    line = len((before + " ").splitlines() or [""]) + (before + " ").endswith("\n")
    assert f"recipe.yaml, line {line} " in str(raised.value)
    assert secret not in str(raised.value)


@given(st.text())
def test_ordinary_text_and_bytes_are_no_secrets(text: str) -> None:
    refuse_secrets({"a": text.replace("_", "").replace("-", "").encode(), "b": b"\0" + TOKEN.encode()})
    refuse_secrets({"c": b"huggingface_hub.hf_hub_download, risk-averse, task-oriented-dialogue-systems, hf_token"})


# ---------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------


def card_of(hub: HubUploadServer, revision: str = "main") -> tuple[dict, str]:
    """The metadata and the text of the card."""
    _, head, body = hub.files(NAME, revision)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_the_run_files_say(hub: HubUploadServer, model: Path) -> None:
    evaluation = Evaluation("model", folder_sha256(model, MODEL_FILES), model)
    score = {"value": 0.305, "stderr": 0.02, "chance": 0.25, "n": 200, "higher_is_better": True}
    evaluation.add("order", {"acc": score}, [], {"date": "2026-01-01", "task_version": 1})
    evaluation.write()
    push(model, license="apache-2.0", language=["en"])
    head, body = card_of(hub)
    assert head["license"] == "apache-2.0"
    assert head["language"] == ["en"]
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.305
    rows = {
        cells[1]: cells[2:-1] for line in body.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 3
    }
    weights = 384 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
    assert rows["parameters"] == [f"{weights:,}"]
    assert rows["RoPE θ"] == ["500,000"]
    assert rows["learning_rate"] == ["0.003"]
    assert rows["tokens a step"] == ["256"]
    assert rows["prose"][:2] == ["local files", "70.00%"]
    assert rows["order"][:4] == ["acc ↑", "0.305 ± 0.020", "0.25", "200"]
    assert rows["8"][0] == "2,048"
    assert rows["pretraining"] == ["run", "8", "2,048", "random weights"]
    assert 'revision="step-000008"' in body
    assert "measured on other files" not in body
    assert "2,048 tokens of pretraining" in body
    assert hub.files(NAME)["loss.png"].startswith(b"\x89PNG")


def test_the_card_invents_nothing(hub: HubUploadServer, model: Path) -> None:
    run = model.parent.parent
    for name in ("recipe.yaml", "metrics.jsonl"):
        (run / name).unlink()
    push(model)
    head, body = card_of(hub)
    assert "license" not in head
    assert "model-index" not in head
    assert "It has not been evaluated." in body
    assert "License: not stated" in body
    for section in ("Data", "Settings", "Training loss", "Lineage"):
        assert body.split(f"## {section}\n")[1].split("##")[0].strip().startswith("unknown")
    assert "loss.png" not in hub.files(NAME)


def test_figures_of_other_files_are_said_to_be(hub: HubUploadServer, model: Path, tmp_path: Path) -> None:
    evaluation = Evaluation("model", "another", tmp_path)
    score = {"value": 0.305, "stderr": 0.02, "chance": 0.25, "n": 200, "higher_is_better": True}
    evaluation.add("order", {"acc": score}, [], {"date": "2026-01-01"})
    evaluation.write()
    push(model, evaluation=str(tmp_path / "evaluation.json"))
    assert "measured on other files of this model" in card_of(hub)[1]
    assert "evaluation.json" in hub.files(NAME)
    with pytest.raises(UserError, match=r"evaluation .*none.json: no evaluation there"):
        push(model, evaluation=str(tmp_path / "none.json"))


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "a/b/c", "/b", "a/", "https://hf.co/a/b", ".."])
def test_the_name_of_a_repository(name: str) -> None:
    with pytest.raises(UserError, match="hub_model_id must have the form owner/name"):
        PublishRecipe(model="runs/x", hub_model_id=name)


def test_the_command(hub: HubUploadServer, exported: Path, tmp_path: Path) -> None:
    """Its dry run asks nothing of the Hub; Ctrl-C ends it at once, though the client would try for half a minute."""
    command = [sys.executable, "scripts/push_to_hub.py", "--model", str(exported), "--hub_model_id", NAME]
    environment = hub.environment(tmp_path)
    result = run_script(*command[1:], "--dry_run", "true", **environment)
    assert "model.safetensors" in result.stdout
    assert hub.requests == []
    hub.fail("PUT", "objects/", *["drop"] * 500)
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert hub.dropped.wait(timeout=120)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130
    assert said.rstrip().endswith("interrupted")
    assert "Traceback" not in said
