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

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.files import sync_folder
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM
from genesis_hf.tokenizer import save_tokenizer

STEP_FOLDER = re.compile(r"step_(\d{9})")


def checkpoint_folder(run: str | Path, step: int) -> Path:
    """`RUN/checkpoints/step_000040000`"""
    return Path(run) / "checkpoints" / f"step_{step:09d}"


# ---------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------


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


def write_manifest(folder: Path) -> None:
    """Flush every file of a folder to disk and list its size and sha256 in manifest.json."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            files[str(path.relative_to(folder))] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())
    write_text(folder / "manifest.json", manifest_text(files))
    for subfolder in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(subfolder)


def manifest_text(files: dict[str, dict[str, Any]]) -> str:
    """manifest.json of these files, with a sha256 over their entries: a flipped byte in it shows like any other."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": 1, "files": files, "sha256": digest}, indent=1) + "\n"


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


# ---------------------------------------------------------------------------------------------------------
# Finding and checking
# ---------------------------------------------------------------------------------------------------------


def complete_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run that have a manifest, newest first."""
    folders = [p.parent for p in (Path(run) / "checkpoints").glob("step_*/manifest.json")]
    return sorted((f for f in folders if STEP_FOLDER.fullmatch(f.name)), reverse=True)


def verify_checkpoint(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a line each; empty when every file has its size and sha256."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)["files"]
        if text != manifest_text(manifest):
            return [f"{folder}/manifest.json is not as it was written"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder}/manifest.json cannot be read ({error})"]
    problems = []
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != expected["size"]:
            problems.append(f"{path} has {path.stat().st_size} bytes, not {expected['size']}")
        else:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    problems.append(f"{path} has another sha256 than its manifest")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    problems += [f"{folder / name} is not in the manifest" for name in sorted(present - set(manifest))]
    return problems


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


def newest_good_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; damaged ones are named loudly and passed over."""
    for folder in complete_checkpoints(run):
        problems = verify_checkpoint(folder)
        if not problems:
            return folder
        if is_main():
            print(f"WARNING: {folder} is damaged and passed over: {problems[0]}", flush=True)
    return None


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint."""
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


def restore_checkpoint(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load model, optimizers and this process's generators in place, on any number of processes.

    Returns:
        trainer_state.json's values.

    Raises:
        UserError: the checkpoint is of another model, or lacks optimizer state.
    """
    refuse_other_model(folder, unwrapped(model).config)
    with quiet_checkpoint_warnings():
        model_state, optimizer_state = get_state_dict(model, [inner(o) for o in optimizers])
        state = {"model": model_state, "optimizer": optimizer_state}
        refuse_missing_state(folder, state)
        dcp.load(state, checkpoint_id=folder / "state")
        set_state_dict(
            model,
            [inner(o) for o in optimizers],
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
    generators = folder / f"rng_rank_{rank()}.pt"
    # A process that did not exist then keeps the generators that its seed gave it.
    if generators.is_file():
        set_rng_state(torch.load(generators, weights_only=True))
    return read_trainer_state(folder)


def load_model(folder: Path) -> GenesisForCausalLM:
    """The model of a checkpoint written by any number of processes: on CPU, fp32, in evaluation mode.

    Raises:
        UserError: a damaged checkpoint.
    """
    problems = verify_checkpoint(folder)
    if problems:
        raise UserError(f"{folder} is damaged: {problems[0]}")
    model = GenesisForCausalLM(GenesisConfig.from_pretrained(folder))
    state = {"model": model.state_dict()}
    with quiet_checkpoint_warnings():
        dcp.load(state, checkpoint_id=folder / "state")
    model.load_state_dict(state["model"])
    return model.eval()


def refuse_other_model(folder: Path, config: GenesisConfig) -> None:
    """Raise `UserError` naming the first key in which a checkpoint's model differs from `config`."""
    recorded = GenesisConfig.from_pretrained(folder).to_dict()
    for key, value in config.to_dict().items():
        if key in ("dtype", "transformers_version", "architectures", "use_cache") or key.startswith("_"):
            continue
        if recorded.get(key) != value:
            raise UserError(
                f"{folder} is a checkpoint of another model: {key} is {recorded.get(key)} there and {value} in the "
                "recipe; mend `model:` or choose another output_dir"
            )


def refuse_missing_state(folder: Path, state: dict[str, Any]) -> None:
    """Raise `UserError` unless the checkpoint holds every tensor that `state` needs, in the same shape."""
    held = dcp.FileSystemReader(folder / "state").read_metadata().state_dict_metadata
    flat, _ = dcp._nested_dict.flatten_state_dict(state)
    for name, value in flat.items():
        if name not in held:
            raise UserError(f"{folder} lacks {name}: a resume without it would not be exact; choose another checkpoint")
        size = getattr(held[name], "size", None)
        if isinstance(value, torch.Tensor) and size is not None and tuple(size) != tuple(value.shape):
            raise UserError(f"{folder}: {name} has shape {tuple(size)}, this run needs {tuple(value.shape)}")


# ---------------------------------------------------------------------------------------------------------
# Small helpers
# ---------------------------------------------------------------------------------------------------------


def rng_state() -> dict[str, torch.Tensor]:
    """State of torch's generators on the CPU and on this process's card."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return getattr(model, "module", model)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


class quiet_checkpoint_warnings(warnings.catch_warnings):
    """Without its warnings about a missing process group, and about typed storage inside torch itself."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*torch.distributed is (unavailable|disabled).*")
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
