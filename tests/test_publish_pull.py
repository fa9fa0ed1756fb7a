"""A training checkpoint that comes from the Hub is the one that went up, or none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_upload_server import HubUploadServer
from small_runs import small_recipe

from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.checkpoint.upload import send_checkpoint, upload_checkpoint
from genesis_hf.config import PretrainRecipe, PullRecipe, build, read_yaml
from genesis_hf.errors import UserError
from genesis_hf.publishing.pull import pull_checkpoint
from genesis_hf.publishing.repository import Repository
from genesis_hf.training.metrics import read_metrics
from genesis_hf.training.pretrain import pretrain

NAME = "someone/model"


@pytest.fixture(scope="module")
def trained(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints after 4 and 8."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    recipe = small_recipe(
        corpus,
        folder / "tokenizer",
        folder / "run",
        max_steps=8,
        save_steps=4,
        logging_steps=1,
        env={"WANDB_API_KEY": "not to be seen", "NCCL_P2P_DISABLE": "1"},
    )
    pretrain(build(PretrainRecipe, recipe, "test"))
    return folder / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubUploadServer]:
    with HubUploadServer() as server:
        server.stand_in(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def filled(hub: HubUploadServer, trained: Path) -> HubUploadServer:
    """The Hub with both checkpoints."""
    for step in (4, 8):
        send_checkpoint(Repository(NAME), checkpoint_folder(trained, step), private=True)
    hub.requests.clear()
    return hub


def pull(folder: Path, revision: str = "newest") -> Path:
    return pull_checkpoint(PullRecipe(hub_model_id=NAME, output_dir=str(folder), revision=revision)).checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("revision", "step"), [("newest", 8), ("step-000004", 4)])
def test_what_went_up_comes_down(
    filled: HubUploadServer, trained: Path, tmp_path: Path, revision: str, step: int
) -> None:
    folder = pull(tmp_path / "here", revision)
    assert contents(folder) == contents(checkpoint_folder(trained, step))
    assert folder == checkpoint_folder(tmp_path / "here", step)
    assert (folder.parent / "latest").read_text() == f"{folder.name}\n"
    assert [r["step"] for r in read_metrics(tmp_path / "here/metrics.jsonl")][-1] == step
    assert not (tmp_path / "here/.pull").exists()
    before = filled.count("GET", "state/")
    assert pull(tmp_path / "here", revision) == folder
    assert filled.count("GET", "state/") == before


def test_the_branches_hold_their_own_checkpoint_alone(filled: HubUploadServer, trained: Path) -> None:
    assert set(filled.files(NAME)) == {".gitattributes"}
    for step in (4, 8):
        files = filled.files(NAME, f"step-{step:06d}")
        checkpoint = {
            path.removeprefix("checkpoint/"): c for path, c in files.items() if path.startswith("checkpoint/")
        }
        assert checkpoint == contents(checkpoint_folder(trained, step))
        assert {path for path in files if not path.startswith("checkpoint/")} == {
            *(".gitattributes", "run/recipe.yaml", "run/metrics.jsonl"),
            *(["run/events.jsonl"] if "run/events.jsonl" in files else []),
        }
        assert json.loads(files["run/metrics.jsonl"].splitlines()[-1])["step"] == step
        assert not any(b"not to be seen" in content for content in files.values())


def test_the_recipe_fits_the_new_place(filled: HubUploadServer, trained: Path, tmp_path: Path) -> None:
    tokenizer = trained.parent / "tokenizer"
    tokenizer.rename(tokenizer.with_name("elsewhere"))
    try:
        pulled = pull_checkpoint(PullRecipe(hub_model_id=NAME, output_dir=str(tmp_path / "here")))
    finally:
        tokenizer.with_name("elsewhere").rename(tokenizer)
    recipe = read_yaml(tmp_path / "here/recipe.yaml")
    assert recipe["output_dir"] == str(tmp_path / "here")
    assert recipe["env"] == {"NCCL_P2P_DISABLE": "1"}
    assert recipe["tokenizer"] == str(tmp_path / "here/tokenizer")
    assert contents(tmp_path / "here/tokenizer") == contents(pulled.checkpoint / "tokenizer")
    assert any("WANDB_API_KEY" in note for note in pulled.notes)


def test_a_damaged_download_is_no_checkpoint_and_is_mended(
    filled: HubUploadServer, trained: Path, tmp_path: Path
) -> None:
    filled.fail("GET", "/state/__0_", "damage")
    with pytest.raises(UserError, match=r"state/__0_\d.distcp has another sha256"):
        pull(tmp_path / "here")
    assert not (tmp_path / "here/checkpoints").exists()
    whole = filled.count("GET", "/resolve/")
    folder = pull(tmp_path / "here")
    assert verify_checkpoint(folder) == []
    assert contents(folder) == contents(checkpoint_folder(trained, 8))
    assert filled.count("GET", "/resolve/") - whole == 2  # that file, and the manifest


@pytest.mark.parametrize("fault", ["cut", "drop", 503])
def test_a_broken_connection_is_made_again(filled: HubUploadServer, tmp_path: Path, fault: int | str) -> None:
    filled.fail("GET", "/state/__0_", fault, fault)
    assert verify_checkpoint(pull(tmp_path / "here")) == []


def test_a_pull_that_was_given_up_goes_on(filled: HubUploadServer, tmp_path: Path) -> None:
    filled.fail("GET", "/resolve/", *[503] * 500, after=9)
    with pytest.raises(UserError, match=r"the Hub can't be reached \(.*503"):
        pull(tmp_path / "here")
    assert not (tmp_path / "here/checkpoints").exists()
    filled.fail("GET", "")
    filled.requests.clear()
    assert verify_checkpoint(pull(tmp_path / "here")) == []
    files = len(contents(checkpoint_folder(tmp_path / "here", 8)))
    assert filled.count("GET", "/resolve/") < files


def test_another_run_is_left_alone(filled: HubUploadServer, tmp_path: Path) -> None:
    here = tmp_path / "here"
    pull(here)
    kept = contents(here)
    with pytest.raises(UserError, match="is at step_000000008 already, past step 4"):
        pull(here, "step-000004")
    recipe = read_yaml(here / "recipe.yaml")
    (here / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "learning_rate": 1.0}))
    with pytest.raises(UserError, match="another run, which differs in learning_rate"):
        pull(here)
    (here / "recipe.yaml").write_text(kept["recipe.yaml"].decode())
    assert contents(here) == kept


def test_revisions_without_a_checkpoint(hub: HubUploadServer, trained: Path, tmp_path: Path) -> None:
    repository = Repository(NAME)
    repository.make(private=True)
    with pytest.raises(UserError, match="holds no training checkpoint"):
        pull(tmp_path / "here")
    send_checkpoint(repository, checkpoint_folder(trained, 4), private=True)
    repository.make_branch("step-000009")
    assert pull(tmp_path / "here").name == "step_000000004"
    with pytest.raises(UserError, match="step-000009 of someone/model holds no training checkpoint, only a model"):
        pull(tmp_path / "there", "step-000009")
    with pytest.raises(UserError, match="not on the Hub"):
        pull(tmp_path / "there", "step-000010")
    assert not (tmp_path / "there").exists()


def test_an_upload_that_fails_says_how_to_make_up_for_it(hub: HubUploadServer, trained: Path) -> None:
    hub.fail("POST", "/commit/", *[503] * 50)
    with pytest.raises(UserError, match=r"503.*Later: python scripts/push_to_hub.py --model .*step_000000004"):
        upload_checkpoint(checkpoint_folder(trained, 4), NAME, private=True)
    sent = dict(hub.received)
    assert set(hub.files(NAME, "step-000004")) == {".gitattributes"}
    hub.fail("POST", "")
    upload_checkpoint(checkpoint_folder(trained, 4), NAME, private=True)
    assert hub.received == sent
    assert "checkpoint/manifest.json" in hub.files(NAME, "step-000004")
