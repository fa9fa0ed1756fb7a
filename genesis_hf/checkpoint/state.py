"""What of a live run a checkpoint holds, and how it is reached through wrappers."""

import warnings

import torch
from torch import nn


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


class quiet_checkpoint_warnings(warnings.catch_warnings):
    """Without its warnings about a missing process group, and about typed storage inside torch itself."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*torch.distributed is (unavailable|disabled).*")
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
