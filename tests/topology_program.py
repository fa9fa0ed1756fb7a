"""What test_topologies.py launches under FSDP.

topology_program.py FOLDER: gradients of one step by micro-batch size, into FOLDER/gradients.pt; then the same with DDP.
topology_program.py FOLDER RECIPE.yaml NAME:STEP …: the gradients; then training to so many steps in FOLDER/NAME.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from genesis_hf.config import PretrainRecipe, Source, build, read_yaml
from genesis_hf.data.stream import StepBatch
from genesis_hf.errors import UserError
from genesis_hf.modeling import GenesisConfig
from genesis_hf.training.distributed import make_accelerator, refuse_unshared_folder
from genesis_hf.training.pretrain import pretrain
from genesis_hf.training.setup import make_model
from genesis_hf.training.step import backward

ROWS, LENGTH, VOCABULARY = 8, 32, 96
MICRO_BATCH_SIZES = (1, 2, 3, 4, 8)


class CollectiveCount(TorchDispatchMode):
    """How many collectives run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.namespace in ("c10d", "_c10d_functional")
        return function(*arguments, **(keywords or {}))


def step_batch(rank: int, world: int, reset_positions: bool = True) -> StepBatch:
    """One process's rows of a step whose rows differ widely in trained tokens: the last one has none at all."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator, dtype=torch.int32)
    lengths = torch.tensor([32, 3, 20, 32, 9, 2, 31, 1])
    starts = torch.rand(ROWS, LENGTH, generator=generator) < 0.15
    starts[:, 0] = True
    starts |= torch.arange(LENGTH) >= lengths[:, None]  # padding: each position a document of its own
    settings = {"reset_positions": reset_positions, "mask_boundaries": reset_positions}
    whole = StepBatch(ids, starts, lengths, **settings)
    trained = int((whole.labels[:, 1:] != -100).sum())
    mine = slice(rank, None, world)
    return StepBatch(ids[mine], starts[mine], lengths[mine], **settings, num_items=trained)


def gradients(accelerator: Accelerator) -> dict[str, dict[str, torch.Tensor]]:
    """Whole gradients by case and parameter, before clipping and optimizer.

    Beside them, under "collectives", how many of those the step ran.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for tied in (True, False):
        torch.manual_seed(0)
        config = GenesisConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        model, _ = make_model(config, recipe_without_data(), accelerator)
        model.train()
        for _ in range(2):  # DDP rearranges its buckets between the first two
            backward(model, step_batch(accelerator.process_index, accelerator.num_processes), ROWS, accelerator)
            model.zero_grad(set_to_none=True)
        for reset_positions in (True, False):
            batch = step_batch(accelerator.process_index, accelerator.num_processes, reset_positions)
            for size in MICRO_BATCH_SIZES:
                case = f"tied={tied} micro-batch={size} reset_positions={reset_positions}"
                with CollectiveCount() as collectives:
                    backward(model, batch, size, accelerator)
                found[case] = whole_gradients(model) | {"collectives": torch.tensor(collectives.count)}
                model.zero_grad(set_to_none=True)
        accelerator.free_memory()
    return found


def whole_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """By the unwrapped model's names, which wrappers lengthen."""
    context = torch.no_grad()
    if isinstance(model, FullyShardedDataParallel):
        context = FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False)
    found = {}
    with context:
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            words = [word for word in name.split(".") if word not in ("module", "_fsdp_wrapped_module")]
            found[".".join(words)] = gradient.detach().clone()
    return found


def topology_name(accelerator: Accelerator) -> str:
    if accelerator.distributed_type != DistributedType.FSDP:
        return "DDP"
    return "FSDP2" if accelerator.is_fsdp2 else "FSDP1"


def recipe_without_data() -> PretrainRecipe:
    source = Source(name="none", paths=["none"])
    return PretrainRecipe("none", {}, "none", [source], 1, bf16=False, warmup_steps=0)


def train(recipe: PretrainRecipe) -> Path:
    """In this process, as if it were a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return pretrain(recipe)


def check_shared_folder(accelerator: Accelerator, folder: Path) -> None:
    """A folder that all processes see passes; one that each has for itself is refused by all of them."""
    refuse_unshared_folder(folder, accelerator)
    with pytest.raises(UserError, match="not seen by 1;"):
        refuse_unshared_folder(folder / str(accelerator.process_index), accelerator, patience=0)


def main() -> None:
    folder, *training = sys.argv[1:]
    accelerator = make_accelerator(recipe_without_data())
    found = {topology_name(accelerator): gradients(accelerator)}
    check_shared_folder(accelerator, Path(folder))
    if not training:
        del os.environ["ACCELERATE_USE_FSDP"]
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = make_accelerator(recipe_without_data())
        found[topology_name(accelerator)] = gradients(accelerator)
    if accelerator.is_main_process:
        torch.save(found, f"{folder}/gradients.pt")
    for part in training[1:]:
        name, stop = part.split(":")
        changes = {"output_dir": f"{folder}/{name}", "stop_at_step": int(stop)}
        train(build(PretrainRecipe, {**read_yaml(training[0]), **changes}, training[0]))


if __name__ == "__main__":
    main()
