"""A phase of post-training that ends on the Hub."""

from pathlib import Path

import pytest
import yaml
from conftest import run_script
from hub_upload_server import HubUploadServer
from tiny_sft import make_base
from tiny_sft import run as run_sft

from genesis_hf.errors import UserError
from genesis_hf.files import file_sha256
from genesis_hf.post_training.recipe import resolved_yaml
from genesis_hf.post_training.sft import parse_sft_recipe

NAME = "someone/model"

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def test_sft_with_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """A token that is refused is a warning and harms no run; the command in it publishes the model."""
    base = make_base(tmp_path)
    settings = {"push_to_hub": "true", "hub_model_id": NAME, "num_train_epochs": 1}
    with HubUploadServer() as hub:
        for name, value in {**hub.environment(tmp_path), "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        summary = run_sft(base, tmp_path / "run", **settings)
        assert summary["steps"] == 11
        printed = capfd.readouterr()
        (warning,) = [line for line in printed.out.splitlines() if "WARNING" in line]
        assert "the Hub does not accept this token" in warning
        assert TOKEN not in printed.out + printed.err
        assert len(hub.requests) == 2  # the last process asks for the repository twice; training asked nothing
        assert hub.repositories == {}
        _, command = warning.split("python ")
        run_script(*command.split(), **hub.environment(tmp_path))
        files = hub.files(NAME)
    card = files["README.md"].decode()
    assert "after SFT" in card
    assert "loss of answers" in card
    assert "apply_chat_template" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert file_sha256(tmp_path / "run/final/model.safetensors") in hub.objects
    assert set(hub.repositories[NAME].branches) == {"main"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--hub_token", TOKEN), "hub_token: a recipe is written down"),
        (("--push_to_hub", "true"), "hub_model_id must have the form owner/name"),
        (("--hub_strategy", "checkpoint"), "hub_strategy is not supported"),
    ],
)
def test_settings_of_the_hub_that_are_refused(settings: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        parse_sft_recipe(["--model", "m", "--output_dir", "r", "--mixture", "[{name: a, paths: [b]}]", *settings])
    assert TOKEN not in str(raised.value)


def test_a_recipe_is_written_down_without_its_secrets() -> None:
    arguments = ["--model", "m", "--output_dir", "r", "--mixture", "[{name: a, paths: [b]}]"]
    text = resolved_yaml(*parse_sft_recipe([*arguments, "--env", f"{{WANDB_API_KEY: {TOKEN}, NCCL_DEBUG: INFO}}"]))
    assert yaml.safe_load(text)["env"] == {"WANDB_API_KEY": "(not stored)", "NCCL_DEBUG": "INFO"}
