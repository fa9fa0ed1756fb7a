"""A checkpoint back into model, optimizers and generators: everything, or nothing."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import set_state_dict

from genesis_hf.checkpoint.contents import first_line, optimizer_steps
from genesis_hf.checkpoint.folders import read_trainer_state
from genesis_hf.checkpoint.manifest import verify_files
from genesis_hf.checkpoint.reader import load_state, read_metadata
from genesis_hf.checkpoint.state import inner, quiet_checkpoint_warnings, set_rng_state, training_tensors, unwrapped
from genesis_hf.errors import UserError
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM
from genesis_hf.processes import rank


def restore_checkpoint(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load model, optimizers and this process's generators in place, on any number of processes.

    Returns:
        trainer_state.json's values.

    Raises:
        UserError: the checkpoint is of another model, lacks optimizer state, or did not come back whole.
    """
    refuse_other_model(folder, unwrapped(model).config)
    quiet_checkpoint_warnings()
    state = training_tensors(model, optimizers)
    refuse_missing_state(folder, state)
    load(state, folder)
    set_state_dict(
        model,
        [inner(o) for o in optimizers],
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    trainer_state = read_trainer_state(folder)
    for optimizer in optimizers:
        refuse_incomplete_optimizer(folder, inner(optimizer), optimizer_steps(trainer_state))
    generators = folder / f"rng_rank_{rank()}.pt"
    # A process that did not exist then keeps the generators that its seed gave it.
    if generators.is_file():
        set_rng_state(torch.load(generators, weights_only=True))
    return trainer_state


class StoredWeights(Mapping[str, torch.Tensor]):
    """The weights of a checkpoint written by any number of processes: fp32, on CPU, each read when it is asked for.

    Attributes:
        config: the model's.

    Raises:
        UserError: a damaged checkpoint; its optimizer is not asked for.
    """

    def __init__(self, folder: Path) -> None:
        problems = verify_files(folder)
        if problems:
            raise UserError(f"{folder} is damaged: {problems[0]}")
        quiet_checkpoint_warnings()
        self.folder, self.config = folder, GenesisConfig.from_pretrained(folder)
        with torch.device("meta"):
            self.empty = GenesisForCausalLM(self.config).state_dict()
        try:
            self.index = read_metadata(folder / "state")
        except ValueError as error:
            raise UserError(f"{error}; choose another checkpoint") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = torch.empty(self.empty[name].shape)
        load({"model": {name: tensor}}, self.folder, alone=True, index=self.index)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.empty)

    def __len__(self) -> int:
        return len(self.empty)


@torch.no_grad()
def load_model(folder: Path) -> GenesisForCausalLM:
    """The model of a checkpoint written by any number of processes: on CPU, fp32, in evaluation mode.

    Raises:
        UserError: as `StoredWeights`.
    """
    weights = StoredWeights(folder)
    model = GenesisForCausalLM(weights.config)
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])
    return model.eval()


def load(state: dict[str, Any], folder: Path, **how: Any) -> None:
    """`load_state`, its errors being the checkpoint's fault."""
    try:
        load_state(state, folder / "state", **how)
    except ValueError as error:
        raise UserError(f"{first_line(error)}; choose another checkpoint") from error


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
    try:
        held = read_metadata(folder / "state").state_dict_metadata
    except ValueError as error:
        raise UserError(f"{error}; choose another checkpoint") from None
    flat, _ = flatten_state_dict(state)
    for name, value in flat.items():
        if name not in held:
            raise UserError(f"{folder} lacks {name}: a resume without it would not be exact; choose another checkpoint")
        if isinstance(value, torch.Tensor):
            size = held[name].size if isinstance(held[name], TensorStorageMetadata) else None
            if size is None or tuple(size) != tuple(value.shape):
                shape = "no shape" if size is None else f"shape {tuple(size)}"
                raise UserError(f"{folder}: {name} has {shape}, this run needs {tuple(value.shape)}")


def refuse_incomplete_optimizer(folder: Path, optimizer: torch.optim.Optimizer, steps: int | None) -> None:
    """Raise `UserError` unless an optimizer has state of every parameter, and has made `steps` updates."""
    counters = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(parameter, {})
        shapes = [tuple(value.shape) for name, value in state.items() if name != "step" and torch.is_tensor(value)]
        # FSDP1 leaves an empty parameter, without state, where another process has all of it.
        if parameter.numel() and tuple(parameter.shape) not in shapes:
            raise UserError(
                f"{folder}: the optimizer came back without its state of a parameter of shape "
                f"{tuple(parameter.shape)}; choose another checkpoint"
            )
        if "step" in state:
            counters.append(torch.as_tensor(state["step"], dtype=torch.float32, device="cpu"))
    found = {counter.item() for counter in counters} - {math.nan if steps is None else float(steps)}
    if steps is not None and found:
        raise UserError(
            f"{folder}: the optimizer came back with {found.pop():g} steps, but trainer_state.json counts {steps}; "
            "choose another checkpoint"
        )
