"""Checkpoints as transactions: sharded, written beside, hashed, renamed; then `latest` moves.

checkpoints/step_000040000/
    state/               model and optimizer, sharded (torch.distributed.checkpoint)
    rng_rank_0.pt …      random number generators of every process
    trainer_state.json   step, counters, data position
    config.json          the model's configuration
    tokenizer/           the tokenizer it was trained with
    recipe.yaml          the resolved recipe
    manifest.json        size and sha256 of each file above
checkpoints/latest       names the newest complete one
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.manifest import write_manifest
from genesis_hf.checkpoint.state import inner, quiet_checkpoint_warnings, rng_state, unwrapped
from genesis_hf.config import write_text
from genesis_hf.files import sync_folder
from genesis_hf.processes import barrier, is_main, rank
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
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "state").mkdir(parents=True)
    barrier()
    with quiet_checkpoint_warnings():
        model_state, optimizer_state = get_state_dict(model, [inner(o) for o in optimizers])
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=partial / "state")
    torch.save(rng_state(), partial / f"rng_rank_{rank()}.pt")
    if is_main():
        write_text(partial / "trainer_state.json", json.dumps(trainer_state, indent=1) + "\n")
        write_text(partial / "recipe.yaml", recipe_text)
        unwrapped(model).config.save_pretrained(partial)
        save_tokenizer(tokenizer, partial / "tokenizer")
    barrier()
    if is_main():
        write_manifest(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        sync_folder(folder.parent)
        write_text(folder.parent / "latest", folder.name + "\n")
    barrier()
