"""Checkpoints as transactions: sharded, written beside, hashed, renamed; then `latest` moves.

checkpoints/step_000040000/
    state/               model and optimizer, sharded (torch.distributed.checkpoint)
    rng_rank_0.pt …      random number generators of every process
    trainer_state.json   step, counters, data position, versions of the code
    config.json          the model's configuration
    tokenizer/           the tokenizer it was trained with
    recipe.yaml          the resolved recipe
    manifest.json        size and sha256 of each file above
checkpoints/latest       names the newest complete one
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.agreement import SaveFailed, gather, together
from genesis_hf.checkpoint.folders import complete_checkpoints, put_in_place
from genesis_hf.checkpoint.manifest import write_manifest
from genesis_hf.checkpoint.space import checkpoint_bytes, make_room, refuse_full_disk
from genesis_hf.checkpoint.state import Snapshot, take_snapshot
from genesis_hf.checkpoint.writer import HashingWriter
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.files import sync_folder
from genesis_hf.processes import is_main, rank
from genesis_hf.tokenizer import save_tokenizer


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    trainer_state: dict[str, Any],
    recipe_text: str,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write a checkpoint; called by every process at the same step. The folder appears complete or not at all.

    Args:
        folder: where it will stand; `checkpoint_folder(run, step)`.
        model: plain, DDP or FSDP2; anything torch's `get_state_dict` reads.
        trainer_state: JSON values; what else a resume needs.

    Raises:
        UserError: it could not be written; on every process.
    """
    write_checkpoint(folder, take_snapshot(model, optimizers, trainer_state, recipe_text, tokenizer))


def write_checkpoint(
    folder: Path, snapshot: Snapshot, group: dist.ProcessGroup | None = None, milestones: Collection[int] = ()
) -> None:
    """Write a snapshot; called by every process of `group`, in any thread if the group serves nothing else.

    Args:
        milestones: steps whose checkpoints stay, however full the disk.

    Raises:
        UserError: it could not be written, and which checkpoint stays; on every process. Nothing of it is left.
    """
    run = folder.parent.parent
    partial = folder.with_name(f".{folder.name}.partial")
    needed = checkpoint_bytes(snapshot.tensors)
    try:
        together(lambda: begin(run, partial, needed, milestones) if is_main() else None, group)
        together(lambda: refuse_full_disk(run, needed), group)
        hashed = together(lambda: write_state(partial / "state", snapshot, group), group)
        together(lambda: write_small_files(partial, snapshot), group)
        hashed = {name: entry for part in gather(hashed, group) for name, entry in part.items()}
        together(lambda: finish(partial, folder, hashed) if is_main() else None, group)
    except SaveFailed as error:
        if is_main():
            shutil.rmtree(partial, ignore_errors=True)
        gather(None, group)  # nobody is told before it is gone
        stays = next((f"{stay.name} stays" for stay in complete_checkpoints(run)), "there is no other")
        size = f"it takes {needed / 2**30:.2f} GiB"
        raise UserError(f"{folder} could not be written: {error} ({size}); {stays}") from None


def begin(run: Path, partial: Path, needed: int, milestones: Collection[int]) -> None:
    """Make room and the folder to write into."""
    make_room(run, needed, milestones)
    (partial / "state").mkdir(parents=True)


def write_state(state: Path, snapshot: Snapshot, group: dist.ProcessGroup | None) -> dict[str, dict[str, Any]]:
    """Write this process's shards; returns the manifest's entries of what it wrote."""
    writer = HashingWriter(state)
    try:
        dcp.save(snapshot.tensors, storage_writer=writer, process_group=group)
    finally:
        writer.fs.close()
    return {f"{state.name}/{name}": entry for name, entry in writer.fs.written.items()}


def write_small_files(partial: Path, snapshot: Snapshot) -> None:
    """Write this process's generators and, on the main one, what stands beside the tensors."""
    with open(partial / f"rng_rank_{rank()}.pt", "wb") as file:
        torch.save(snapshot.generators, file)
        file.flush()
        os.fsync(file.fileno())
    if is_main():
        write_text(partial / "trainer_state.json", snapshot.trainer_state)
        write_text(partial / "recipe.yaml", snapshot.recipe_text)
        snapshot.config.save_pretrained(partial)
        save_tokenizer(snapshot.tokenizer, partial / "tokenizer")


def finish(partial: Path, folder: Path, hashed: dict[str, dict[str, Any]]) -> None:
    """Hash what was not hashed yet, give the folder its name, and move `latest`."""
    write_manifest(partial, hashed)
    put_in_place(partial, folder)
    sync_folder(folder.parent)
    write_text(folder.parent / "latest", folder.name + "\n")
