"""Room on the disk for the next checkpoint."""

import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from genesis_hf.checkpoint.agreement import SaveFailed
from genesis_hf.checkpoint.folders import checkpoint_step, clear_leftovers, complete_checkpoints, delete_checkpoint
from genesis_hf.checkpoint.manifest import verify_checkpoint

MARGIN = 64 << 20
"""Bytes beside the tensors: tokenizer, index, generators, and the run's other files."""


def checkpoint_bytes(tensors: dict[str, Any]) -> int:
    """What a checkpoint of these tensors takes on disk, all processes' shards together, with a margin."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in tree_leaves(tensors) if torch.is_tensor(leaf))
    return size + size // 100 + MARGIN


def free_bytes(folder: Path) -> int:
    """What this process may still write on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def make_room(run: Path, needed: int, milestones: Collection[int]) -> None:
    """Delete what interrupted saves left; then, while it takes that, checkpoints older than the newest good one."""
    clear_leftovers(run)
    if free_bytes(run) >= needed:
        return
    complete = complete_checkpoints(run)
    good = next((folder for folder in complete if not verify_checkpoint(folder)), None)
    older = complete[complete.index(good) + 1 :] if good else []
    for folder in reversed(older):
        if free_bytes(run) >= needed:
            return
        if checkpoint_step(folder) not in milestones:
            tqdm.write(f"the disk of {run} is nearly full: {folder.name} goes")
            delete_checkpoint(folder)


def refuse_full_disk(run: Path, needed: int) -> None:
    """Raise `SaveFailed` where the next checkpoint has no room; the first process of each machine looks."""
    free = free_bytes(run)
    if os.environ.get("LOCAL_RANK", "0") == "0" and free < needed:
        raise SaveFailed(f"{free / 2**30:.2f} GiB are free")
