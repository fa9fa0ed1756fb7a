"""The run directories below some folders, and what to call them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from genesis_hf.errors import UserError
from genesis_hf.lineage.folders import real_folders

METRICS = "metrics.jsonl"

CHECKPOINT = re.compile(r"step_(\d{9})|checkpoint-(\d+)")
"""A checkpoint's folder, of pretraining and of TRL's trainers."""

MARKS = {"step": "manifest.json", "checkpoint": "trainer_state.json"}
"""The file that a complete checkpoint of each kind has."""


def check_folders(folders: Sequence[str | Path]) -> list[Path]:
    """The folders as paths.

    Raises:
        UserError: one is missing, or a file.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            said = "is a file" if path.exists() else "no such folder"
            raise UserError(f"{path}: {said}; name run directories, or a folder that holds them")
    return paths


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders with a metrics.jsonl at or below the given ones, none twice; those that changed first come first.

    Checkpoints and hidden folders are left out; links are followed, once to each folder.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for place in real_folders(folder, without_checkpoints):
            if (place / METRICS).exists():
                found.setdefault(os.path.realpath(place), place)
    return sorted(found.values(), key=changed_at)


def without_checkpoints(place: Path, names: list[str]) -> list[str]:
    """Those of a folder's subfolders that are neither checkpoints nor links to one."""
    real = {name: os.path.basename(os.path.realpath(place / name)) for name in names}
    return [name for name in names if not CHECKPOINT.fullmatch(name) and not CHECKPOINT.fullmatch(real[name])]


def changed_at(run: Path) -> float:
    """When its metrics.jsonl last changed; 0 where that went while one looked."""
    try:
        return (run / METRICS).stat().st_mtime
    except OSError:
        return 0.0


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return []


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of a run's complete checkpoints, ascending."""
    steps = set()
    for parent in (run, run / "checkpoints"):
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        for name in names:
            match = CHECKPOINT.fullmatch(name)
            if match and (parent / name / MARKS[re.split("[_-]", name)[0]]).is_file():
                steps.add(int(match[1] or match[2]))
    return sorted(steps)
