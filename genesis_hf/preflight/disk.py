"""The disk: how fast it writes, and whether it holds the checkpoints of a whole run."""

import os
import shutil
import time
from pathlib import Path

from genesis_hf.config import PretrainRecipe
from genesis_hf.preflight.verdicts import Verdict, size


def checkpoint_bytes(parameters: int) -> int:
    """Bytes of a checkpoint: weight and AdamW's two moments in fp32. Muon keeps one moment, so with it this is more."""
    return 12 * parameters


def checkpoints_kept(recipe: PretrainRecipe) -> int:
    """Most checkpoints of the whole run that stand at once, the one being written included."""
    milestones = {step for step in recipe.milestones if step <= recipe.last_step}
    passing = set(range(recipe.save_steps, recipe.last_step + 1, recipe.save_steps)) - milestones
    limit = recipe.save_total_limit or len(passing)
    by_the_clock = recipe.save_minutes and recipe.save_total_limit  # as many as are kept, however long steps take
    return (limit if by_the_clock else min(len(passing), limit)) + len(milestones) + 1


def room(recipe: PretrainRecipe, parameters: int) -> list[Verdict]:
    """Whether the folders of a run, and of its copies, hold all checkpoints that it keeps."""
    one, kept = checkpoint_bytes(parameters), checkpoints_kept(recipe)
    verdicts = []
    for key, folder in run_folders(recipe).items():
        sharing = [f for f in run_folders(recipe).values() if same_disk(f, folder)]
        needed = len(sharing) * kept * one
        free = shutil.disk_usage(standing_parent(folder)).free + sum(standing_checkpoints(f) for f in sharing)
        figure = (
            f"{kept} checkpoints of {size(one)}{', twice on this disk' if len(sharing) > 1 else ''}: {size(needed)} of "
            f"{size(free)} free"
        )
        values = {"needed_bytes": needed, "free_bytes": free, "checkpoints": kept, "checkpoint_bytes": one}
        enough = free >= needed
        mend = "" if enough else f"a lower save_total_limit, fewer keep_steps, or {key} on a larger disk"
        verdicts.append(Verdict(f"room ({key})", "ok" if enough else "wrong", figure, mend, values))
    return verdicts


def write_speed(recipe: PretrainRecipe, parameters: int) -> dict[str, float]:
    """By the key of each folder of a run, bytes a second written and flushed to its disk, beside the folder.

    As many bytes are written as a checkpoint has, but at most a GiB.
    """
    count = min(checkpoint_bytes(parameters), 2**30)
    block = os.urandom(min(count, 16 * 2**20))
    speeds = {}
    for key, folder in run_folders(recipe).items():
        file_name = standing_parent(folder.parent) / f".{folder.name}.preflight"
        try:
            start = time.perf_counter()
            with open(file_name, "wb") as file:
                for _ in range(0, count, len(block)):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
                speeds[key] = file.tell() / (time.perf_counter() - start)
        finally:
            file_name.unlink(missing_ok=True)
    return speeds


def judge_write_speed(
    recipe: PretrainRecipe, parameters: int, speeds: dict[str, float], step_seconds: float | None
) -> list[Verdict]:
    """Whether the disks keep up: a checkpoint's write against the time between two of them.

    A write beside training may take half of that time; one that training waits for, a twentieth.
    """
    verdicts = []
    for key, speed in speeds.items():
        seconds = checkpoint_bytes(parameters) / speed
        beside = recipe.save_async or key == "save_copy_dir"
        interval = recipe.save_steps * step_seconds if step_seconds else None
        if interval and recipe.save_minutes:
            interval = min(interval, 60 * recipe.save_minutes)
        figure = f"{speed / 1e6:,.0f} MB/s flushed to the disk: {seconds:,.1f} s a checkpoint"
        figure += f", every {interval:,.0f} s" if interval else ""
        slow = interval is not None and seconds > interval * (0.5 if beside else 0.05)
        mend = "a faster disk, or higher save_steps" + ("" if beside else ", or save_async: true") if slow else ""
        values = {"bytes_per_second": speed, "checkpoint_seconds": seconds, "interval_seconds": interval}
        verdicts.append(Verdict(f"disk speed ({key})", "slow" if slow else "ok", figure, mend, values))
    return verdicts


def run_folders(recipe: PretrainRecipe) -> dict[str, Path]:
    """The folders that a run writes checkpoints to, by their key in the recipe."""
    named = {"output_dir": recipe.output_dir, "save_copy_dir": recipe.save_copy_dir}
    return {key: Path(folder).absolute() for key, folder in named.items() if folder}


def standing_parent(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def same_disk(one: Path, other: Path) -> bool:
    return standing_parent(one).stat().st_dev == standing_parent(other).stat().st_dev


def standing_checkpoints(run: Path) -> int:
    """Bytes of the checkpoints that stand in a run directory already: the run's retention gives them back."""
    return sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
