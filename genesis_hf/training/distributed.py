"""The Accelerator: topology from `accelerate launch`, precision from the recipe, and the checks that both hold."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

from genesis_hf.config import PretrainRecipe
from genesis_hf.errors import UserError


def make_accelerator(recipe: PretrainRecipe) -> Accelerator:
    """The Accelerator of this process.

    Under `accelerate launch` with an FSDP YAML but no GPU, FSDP runs on CPU over gloo, so that the same launch can be
    tried on any machine.

    Raises:
        UserError: the launch and what came of it disagree.
    """
    precision = "bf16" if use_bf16(recipe.bf16) else "no"
    on_cpu = not torch.accelerator.is_available()
    plugin = fsdp_plugin(recipe, precision) if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, fsdp_plugin=plugin, log_with=recipe.report_to or None
    )
    if on_cpu and plugin is not None and accelerator.num_processes > 1:
        force_fsdp_on_cpu(plugin)
    if plugin is not None and plugin.fsdp_version == 2 and precision == "bf16":
        # Accelerate's default also reduces gradients in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; check the YAML given "
            "to `accelerate launch --config_file`"
        )
    if launched > 1 and (plugin is not None) != (accelerator.distributed_type == DistributedType.FSDP):
        raise UserError(
            f"the launch asks for {'FSDP' if plugin else 'no FSDP'}, but Accelerate runs "
            f"{accelerator.distributed_type.value}"
        )
    return accelerator


def fsdp_plugin(recipe: PretrainRecipe, precision: str) -> FullyShardedDataParallelPlugin:
    """The plugin that the YAML describes (through the launcher's environment), plus the recipe's settings."""
    plugin = FullyShardedDataParallelPlugin()
    plugin.activation_checkpointing = recipe.gradient_checkpointing
    if precision != "no":
        plugin.set_mixed_precision(precision)
    return plugin


def force_fsdp_on_cpu(plugin: FullyShardedDataParallelPlugin) -> None:
    """Make Accelerate treat several CPU processes as FSDP, which it does by itself for GPU-like backends only."""
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    PartialState._shared_state["device"] = torch.device("cpu")


def use_bf16(setting: bool | None) -> bool:
    """Whether to compute in bfloat16; None asks the hardware: a GPU with bf16, or a CPU with instructions for it.

    A CPU without them (AMX or AVX512-BF16) computes bf16 matrix products no faster than fp32.
    """
    if setting is not None:
        return setting
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
