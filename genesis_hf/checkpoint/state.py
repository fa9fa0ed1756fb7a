"""What of a live run a checkpoint holds, and how it is reached through wrappers."""

import json
import platform
import random
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import PreTrainedTokenizerFast

from genesis_hf.modeling import GenesisConfig
from genesis_hf.version import __version__


@dataclass
class Snapshot:
    """All that a checkpoint holds, as it stood at one step; `tensors` are the live ones until they are copied."""

    tensors: dict[str, Any]
    generators: dict[str, Any]
    trainer_state: str
    recipe_text: str
    config: GenesisConfig
    tokenizer: PreTrainedTokenizerFast


def take_snapshot(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    trainer_state: dict[str, Any],
    recipe_text: str,
    tokenizer: PreTrainedTokenizerFast,
) -> Snapshot:
    """What this process has for a checkpoint; every process calls it."""
    quiet_checkpoint_warnings()
    processes = dist.get_world_size() if dist.is_initialized() else 1
    values = {**trainer_state, "num_processes": processes, "versions": code_versions()}
    return Snapshot(
        training_tensors(model, optimizers),
        rng_state(),
        json.dumps(values, indent=1) + "\n",
        recipe_text,
        unwrapped(model).config,
        tokenizer,
    )


def training_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """`{"model": …, "optimizer": …}`, the live tensors under names that don't depend on wrappers or processes."""
    model_state, optimizer_state = get_state_dict(model, [inner(o) for o in optimizers])
    return {"model": model_state, "optimizer": optimizer_state}


@cache
def code_versions() -> dict[str, str | None]:
    """What wrote a checkpoint; `git` is None outside of a git checkout."""
    libraries = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"genesis_hf": __version__, **libraries, "python": platform.python_version(), "git": git_commit()}


def git_commit() -> str | None:
    """The commit of this package's checkout, with `-dirty` where files differ from it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def rng_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch, on the CPU and on this process's card."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "python" in state:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return getattr(model, "module", model)


def quiet_checkpoint_warnings() -> None:
    """Without DCP's warnings about a missing process group, and those about typed storage inside torch itself.

    For good: saves run in a thread, where `warnings.catch_warnings` would undo other threads' filters.
    """
    warnings.filterwarnings("ignore", message=".*torch.distributed is (unavailable|disabled).*")
    warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.*")
