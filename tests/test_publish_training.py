"""Training that uploads, and goes on elsewhere."""

from pathlib import Path

from conftest import run_script
from hub_upload_server import HubUploadServer
from small_runs import losses, small_recipe, write_recipe

from genesis_hf.config import PretrainRecipe, build
from genesis_hf.training.pretrain import pretrain

NAME = "someone/model"


def test_train_push_pull_elsewhere_and_go_on(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """The second half, on another machine as it were, takes the very steps of the run that was not interrupted."""
    settings = {"max_steps": 8, "save_steps": 4, "logging_steps": 1, "push_to_hub": True, "hub_model_id": NAME}
    recipe = small_recipe(corpus, tokenizer_folder, tmp_path / "run", **settings)
    path = write_recipe(recipe, tmp_path / "pretrain.yaml")
    with HubUploadServer() as hub:
        environment = hub.environment(tmp_path)
        trained = run_script("scripts/pretrain.py", "--config", path, "--stop_at_step", 4, **environment)
        arguments = ("--hub_model_id", NAME, "--output_dir", tmp_path / "here")
        pulled = run_script("scripts/pull_checkpoint.py", *arguments, **environment)
        _, *command = pulled.stdout.splitlines()[-1].split()
        run_script(*command, **environment)
    pretrain(build(PretrainRecipe, {**recipe, "output_dir": str(tmp_path / "whole"), "push_to_hub": False}, "test"))
    assert losses(tmp_path / "here") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "here")) == 8
    assert hub.repositories[NAME].private
    assert {"step-000004", "step-000008"} <= set(hub.repositories[NAME].branches)
    assert hub.token not in trained.stdout + trained.stderr + pulled.stdout + pulled.stderr
