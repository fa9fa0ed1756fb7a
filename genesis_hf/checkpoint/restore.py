"""A checkpoint back into model, optimizers and generators: everything, or nothing."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from genesis_hf.checkpoint.folders import read_trainer_state
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.checkpoint.state import inner, quiet_checkpoint_warnings, set_rng_state, unwrapped
from genesis_hf.errors import UserError
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM
from genesis_hf.processes import rank


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
