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


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(STEP_FOLDER.fullmatch(folder.name)[1])


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


def apply_retention(
    run: str | Path,
    keep: int | None,
    milestones: Collection[int] = (),
    step: int | None = None,
    in_use: Collection[Path] = (),
) -> None:
    """Delete what interrupted saves left, and all complete checkpoints but the newest `keep` and the `milestones`.

    Args:
        step: the step just saved. Checkpoints of later steps are left by a run that went back; they neither count nor
            go, or the one just saved would go for them.
        in_use: folders that are being copied.
    """
    if not is_main():
        return
    clear_leftovers(run)
    passing = [f for f in complete_checkpoints(run) if checkpoint_step(f) not in milestones]
    if step is not None:
        passing = [folder for folder in passing if checkpoint_step(folder) <= step]
    for folder in passing[keep:] if keep else []:
        if folder not in in_use:
            delete_checkpoint(folder)


def delete_checkpoint(folder: Path) -> None:
    """Renamed first, so that a crash in the middle leaves no folder that looks like a checkpoint."""
    trash = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename a finished checkpoint to its name. Another one of that name goes, but only once this one stands.

    A crash between the two renames leaves `.step_….replaced`, which `restore_replaced` takes back.
    """
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(folder, replaced)
    os.replace(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(run: str | Path) -> None:
    """Give checkpoints their names back that a save was about to replace when it was killed."""
    for replaced in (Path(run) / "checkpoints").glob(".step_*.replaced"):
        folder = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
        if not folder.exists():
            os.replace(replaced, folder)


def clear_leftovers(run: str | Path) -> None:
    """Delete what interrupted saves, copies and deletions left."""
    restore_replaced(run)
    for leftover in (Path(run) / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
