"""What a checkpoint must hold to be resumed from: model, optimizer, counters and generators that agree."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from genesis_hf.checkpoint.folders import read_trainer_state
from genesis_hf.checkpoint.reader import load_state, read_metadata
from genesis_hf.checkpoint.state import quiet_checkpoint_warnings
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM

OPTIMIZER_STATE = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""What an optimizer keeps of a parameter: AdamW, Muon. All of it or none, and one of them at least."""


def verify_contents(folder: Path) -> list[str]:
    """What a checkpoint whose files are as written lacks to be resumed from, a line each."""
    try:
        trainer_state = read_trainer_state(folder)
        shapes = parameter_shapes(folder)
        metadata = read_metadata(folder / "state")
        problems = tensor_problems(metadata, shapes)
        if not problems:
            problems = counter_problems(folder / "state", metadata, optimizer_steps(trainer_state))
        return problems + missing_generators(folder, trainer_state)
    except Exception as error:  # a stranger's file may be wrong in any way, and each is a reason not to read it
        return [first_line(error)]


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the model that config.json describes."""
    config = GenesisConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = GenesisForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def tensor_problems(metadata: Metadata, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Parameters that the model's or the optimizer's part lacks, or has in another shape or in part."""
    problems = []
    states = optimizer_entries(metadata)
    stored = {index.fqn for index in metadata.storage_data}
    for name, shape in shapes.items():
        needed = {f"model.{name}": shape}
        kept = states.get(name, {})
        kinds = [kind for kind in OPTIMIZER_STATE if kind & set(kept)] or [set(kept)]
        if not kept:
            problems.append(f"the optimizer's state of {name} is missing")
        for key in set().union(*kinds):
            needed[f"optimizer.state.{name}.{key}"] = () if key == "step" else shape
        for entry, expected in needed.items():
            problem = tensor_problem(metadata.state_dict_metadata.get(entry), expected)
            if problem is None and entry not in stored:
                problem = "has no place in the files"
            if problem is not None:
                problems.append(f"{entry} {problem}")
    return problems


def tensor_problem(held: Any, shape: tuple[int, ...]) -> str | None:
    """In what an entry of the index differs from a tensor of this shape."""
    if not isinstance(held, TensorStorageMetadata):
        return "is missing"
    if tuple(held.size) != shape:
        return f"has shape {tuple(held.size)}, not {shape}"
    if sum(math.prod(chunk.sizes) for chunk in held.chunks) != math.prod(shape):
        return "is there in part only"
    return None


def optimizer_entries(metadata: Metadata) -> dict[str, dict[str, str]]:
    """By parameter and by kind of state, the entry's name in the index."""
    entries: dict[str, dict[str, str]] = {}
    for entry in metadata.state_dict_metadata:
        if entry.startswith("optimizer.state."):
            name, _, kind = entry.removeprefix("optimizer.state.").rpartition(".")
            entries.setdefault(name, {})[kind] = entry
    return entries


def optimizer_steps(trainer_state: dict[str, Any]) -> int | None:
    """How many updates the optimizer has made by trainer_state.json; None where it doesn't say."""
    return trainer_state.get("optimizer_steps", trainer_state.get("step"))


def counter_problems(state: Path, metadata: Metadata, steps: int | None) -> list[str]:
    """Step counters of the optimizer that differ from `steps`."""
    kinds = optimizer_entries(metadata).values()
    counters = {kept["step"]: torch.full((), math.nan) for kept in kinds if "step" in kept}
    if steps is None or not counters:
        return []
    quiet_checkpoint_warnings()
    load_state(counters, state, alone=True)
    wrong = {name: counter.item() for name, counter in counters.items() if counter.item() != steps}
    return [f"{name} is {value:g}, but trainer_state.json counts {steps}" for name, value in wrong.items()][:1]


def missing_generators(folder: Path, trainer_state: dict[str, Any]) -> list[str]:
    """Processes that wrote the checkpoint and whose random number generators aren't in it."""
    ranks = range(trainer_state.get("num_processes", 1))
    return [f"rng_rank_{rank}.pt is missing" for rank in ranks if not (folder / f"rng_rank_{rank}.pt").is_file()]
