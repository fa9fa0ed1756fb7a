"""Where checkpoints lie, which of them are complete, and which are kept."""

import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from genesis_hf.errors import UserError
from genesis_hf.processes import is_main

STEP_FOLDER = re.compile(r"step_(\d{9})")


def checkpoint_folder(run: str | Path, step: int) -> Path:
    """`RUN/checkpoints/step_000040000`"""
    return Path(run) / "checkpoints" / f"step_{step:09d}"


def complete_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run that have a manifest, newest first."""
    folders = [p.parent for p in (Path(run) / "checkpoints").glob("step_*/manifest.json")]
    return sorted((f for f in folders if STEP_FOLDER.fullmatch(f.name)), reverse=True)


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder as it is, or the newest complete one of a run directory.

    Raises:
        UserError: neither.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return path
    complete = complete_checkpoints(path)
    if complete:
        return complete[0]
    if not path.exists():
        raise UserError(f"{path}: no such folder; name a checkpoint or a run directory")
    raise UserError(f"{path} holds no complete checkpoint (looked for checkpoints/step_*/manifest.json)")


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint."""
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


def apply_retention(run: str | Path, keep: int | None, milestones: Collection[int] = ()) -> None:
    """Delete what interrupted saves left, and all complete checkpoints but the newest `keep` and the `milestones`."""
    if not is_main():
        return
    for leftover in (Path(run) / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    passing = [f for f in complete_checkpoints(run) if int(STEP_FOLDER.fullmatch(f.name)[1]) not in milestones]
    for folder in passing[keep:] if keep else []:
        # Renamed first, so that a crash in the middle leaves no folder that looks like a checkpoint.
        trash = folder.with_name(f".{folder.name}.deleted")
        os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)
