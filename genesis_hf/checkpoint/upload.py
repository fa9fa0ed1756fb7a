"""Finished checkpoints on the Hub, a branch each."""

from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from genesis_hf.checkpoint.folders import checkpoint_step
from genesis_hf.errors import UserError
from genesis_hf.publishing.layout import is_training_file, step_branch, training_files
from genesis_hf.publishing.repository import Repository
from genesis_hf.publishing.secrets import refuse_secrets


def upload_checkpoint(folder: Path, repository: str, private: bool) -> None:
    """Upload a checkpoint and its run's files so far to its branch (`step-040000`) of a repository, in one commit.

    The repository is made if it isn't there.

    Raises:
        UserError: a file holds a secret, the Hub refuses or can't be reached; the line ends with the command that
            makes up for it.
    """
    disable_progress_bars()  # they would stand in the middle of training's
    try:
        send_checkpoint(Repository(repository), folder, private)
    except UserError as error:
        raise UserError(
            f"{error}. Later: python scripts/push_to_hub.py --model {folder} --hub_model_id {repository} "
            "--include_checkpoint true"
        ) from None


def send_checkpoint(hub: Repository, folder: Path, private: bool) -> tuple[str, int]:
    """`Repository.commit` of a checkpoint to its branch."""
    files = training_files(folder)
    refuse_secrets(files)
    branch = step_branch(checkpoint_step(folder))
    hub.make(private)
    hub.make_branch(branch)
    return hub.commit(branch, files, f"Checkpoint of step {checkpoint_step(folder):,}", is_training_file)
