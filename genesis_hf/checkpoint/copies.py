"""A second folder, best on another disk, that each finished checkpoint is copied to."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from genesis_hf.checkpoint.folders import apply_retention, checkpoint_step, complete_checkpoints, put_in_place
from genesis_hf.checkpoint.manifest import verify_files
from genesis_hf.config import write_text
from genesis_hf.files import sync_folder


def copy_checkpoint(folder: Path, copy_dir: Path, keep: int | None, milestones: Collection[int]) -> None:
    """Copy a checkpoint, and the run's milestones that are missing there, to `copy_dir/checkpoints`.

    Each is written beside, flushed, verified by its manifest and renamed; then `latest` moves and old copies go.

    Raises:
        OSError: it can't be read or written, or the copy differs.
    """
    run = folder.parent.parent
    present = {other.name for other in complete_checkpoints(copy_dir)}
    wanted = {other for other in complete_checkpoints(run) if checkpoint_step(other) in milestones} | {folder}
    for source in sorted(wanted):
        if source.name not in present or source == folder:
            copy_verified(source, copy_dir / "checkpoints" / source.name)
    write_text(copy_dir / "checkpoints" / "latest", folder.name + "\n")
    apply_retention(copy_dir, keep, milestones, checkpoint_step(folder))


def copy_verified(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        for path in partial.rglob("*"):
            if path.is_dir():
                sync_folder(path)
            else:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        problems = verify_files(partial)
        if problems:
            raise OSError(problems[0])
        sync_folder(partial)
        put_in_place(partial, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
