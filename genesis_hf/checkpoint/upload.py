"""Finished checkpoints on the Hub, a branch each."""

import os
from pathlib import Path

from huggingface_hub import HfApi

from genesis_hf.errors import UserError


def upload_checkpoint(folder: Path, repository: str, private: bool) -> None:
    """Upload a checkpoint folder to its own branch (`step_000040000`) of a model repository, made if it isn't there.

    The token comes from the environment (`HF_TOKEN`).

    Raises:
        UserError: there is no token.
        Exception: of many kinds, when the Hub can't be reached or refuses.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("HF_TOKEN is not set in the environment")
    hub = HfApi(token=token)
    hub.create_repo(repository, private=private, exist_ok=True)
    hub.create_branch(repository, branch=folder.name, exist_ok=True)
    hub.upload_folder(
        repo_id=repository, folder_path=folder, revision=folder.name, commit_message=f"Checkpoint {folder.name}"
    )
