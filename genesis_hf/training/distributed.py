"""The Accelerator: topology from `accelerate launch`, precision from the recipe, and the checks that both hold."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
)

from genesis_hf.config import PretrainRecipe, write_text
from genesis_hf.errors import UserError

TIMEOUT_MARGIN = timedelta(minutes=10)
"""How much longer than `hang_minutes` a collective waits, so that the watchdog speaks before NCCL or gloo do."""


def make_accelerator(recipe: PretrainRecipe) -> Accelerator:
    """The Accelerator of this process.

    Under `accelerate launch` with an FSDP YAML but no GPU, FSDP runs on CPU over gloo, so that the same launch can be
    tried on any machine.

    Raises:
        UserError: the launch, the recipe and what came of them disagree.
    """
    precision = "bf16" if use_bf16(recipe.bf16) else "no"
    on_cpu = not torch.accelerator.is_available()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    mesh = launched_mesh()
    refuse_unfit_mesh(mesh, launched)
    timeout = collective_timeout(recipe)
    method = rendezvous_of_this_attempt()
    plugin = None
    if launched_with_fsdp():
        if recipe.cpu_offload:
            # The launcher's own name for it: Accelerate then also gives the process group a backend for CPU tensors.
            os.environ["FSDP_OFFLOAD_PARAMS"] = "true"
        plugin = fsdp_plugin(precision, on_cpu)
        if on_cpu and launched > 1:
            force_fsdp_on_cpu(timeout, method)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        fsdp_plugin=plugin,
        kwargs_handlers=[
            InitProcessGroupKwargs(init_method=method, timeout=timeout),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # otherwise a second copy of all gradients
        ],
    )
    refuse_other_topology(accelerator, launched, mesh)
    refuse_unfit(recipe, accelerator)
    if mesh:
        sharding_mesh = accelerator.torch_device_mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
        for group in sharding_mesh.get_all_groups():  # these start with their backend's own timeout
            _set_pg_timeout(timeout, group)
    return accelerator


def fsdp_plugin(precision: str, on_cpu: bool) -> FullyShardedDataParallelPlugin:
    """The plugin that the YAML describes through the launcher's environment, computing in `precision`.

    Gradients are reduced in fp32 over fp32 weights, and buffers (RoPE's frequencies) stay fp32; Accelerate's default is
    bf16 for all of them. Recomputation is the model's own affair, whatever the topology.
    """
    plugin = FullyShardedDataParallelPlugin()
    plugin.activation_checkpointing = False
    if precision == "bf16" and plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    elif precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecision(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.float32
        )
    if on_cpu and isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # only a GPU driver can pin
    return plugin


def force_fsdp_on_cpu(timeout: timedelta, method: str | None) -> None:
    """Start the process group of several CPU processes such that Accelerate makes FSDP of them.

    It does so for GPU-like backends only; called one, this group takes the same path as GPUs.
    """
    state = PartialState(cpu=True, timeout=timeout, init_method=method)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state.device = torch.device("cpu")


def rendezvous_of_this_attempt() -> str | None:
    """The `init_method` by which processes that `--max_restarts` has started again find each other; None at first.

    torch's launcher keeps one store for all attempts: processes started again would find the addresses of dead ones.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return None

    def handler(url: str, **options: Any) -> Iterator[tuple[dist.Store, int, int]]:
        for store, rank, world_size in dist.rendezvous("env://", **options):
            yield dist.PrefixStore(f"attempt_{attempt}", store), rank, world_size

    dist.register_rendezvous_handler(f"attempt{attempt}", handler)
    return f"attempt{attempt}://"


def collective_timeout(recipe: PretrainRecipe) -> timedelta:
    """How long a collective may wait for the other processes; without `hang_minutes`, torch's usual half an hour."""
    return timedelta(minutes=recipe.hang_minutes or 20) + TIMEOUT_MARGIN


def launched_with_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def launched_mesh() -> dict[str, int]:
    """The YAML's `parallelism_config`: size by dimension; empty without one."""
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") != "true":
        return {}
    names = ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    return {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1")) for name in names}


def refuse_unfit_mesh(mesh: dict[str, int], launched: int) -> None:
    """Raise `UserError` unless the mesh is replicas × shards of all processes, each of which gets rows of its own."""
    if not mesh:
        return
    for name in ("tp", "cp", "sp"):
        if mesh[name] != 1:
            raise UserError(
                f"parallelism_config_{name}_size: {mesh[name]} is not supported; only data is parallel here"
            )
    replicas, shards = mesh["dp_replicate"], mesh["dp_shard"]
    if shards == 1:
        raise UserError("parallelism_config_dp_shard_size: 1 shards nothing; launch with ddp_multinode.yaml instead")
    if replicas * shards != launched:
        raise UserError(
            f"dp_replicate_size {replicas} x dp_shard_size {shards} is not the number of processes, {launched}; give "
            "--parallelism_config_dp_replicate_size (nodes) and --parallelism_config_dp_shard_size (GPUs of a node)"
        )


def refuse_other_topology(accelerator: Accelerator, launched: int, mesh: dict[str, int]) -> None:
    """Raise `UserError` unless what runs is what the launcher was asked for."""
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; check the YAML given "
            "to `accelerate launch --config_file`"
        )
    if launched == 1:
        return
    asked = f"FSDP{os.environ['FSDP_VERSION']}" if launched_with_fsdp() else "no FSDP"
    running = f"FSDP{1 + accelerator.is_fsdp2}" if accelerator.distributed_type == DistributedType.FSDP else "no FSDP"
    if asked != running:
        raise UserError(f"the launch asks for {asked}, but Accelerate runs {running}")
    if mesh:
        shape = accelerator.torch_device_mesh.shape
        wanted = tuple(mesh[name] for name in ("dp_replicate", "dp_shard") if mesh[name] > 1)
        if shape != wanted:
            raise UserError(f"the launch asks for a mesh of {wanted}, but Accelerate runs {shape}")


def refuse_unfit(recipe: PretrainRecipe, accelerator: Accelerator) -> None:
    """Raise `UserError` where a recipe asks for what its topology can't do."""
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if recipe.cpu_offload and not accelerator.is_fsdp2:
        raise UserError(
            "cpu_offload needs FSDP2: launch with accelerate_configs/fsdp2_2gpu.yaml (--num_processes 1 on one GPU)"
        )
    if recipe.optim == "muon" and sharded and not accelerator.is_fsdp2:
        raise UserError(
            "optim: muon needs whole matrices, which FSDP1 flattens; launch with accelerate_configs/fsdp2_2gpu.yaml"
        )


def checkpoint_as_dtensors(model: nn.Module, accelerator: Accelerator) -> None:
    """Let FSDP1 hand out its shards as DTensors, as FSDP2 does, in place of the older ShardedTensors; else do nothing.

    torch decides by the mesh that FSDP1 was built with, which Accelerate has no argument for.
    """
    if isinstance(model, FullyShardedDataParallel):
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for module in FullyShardedDataParallel.fsdp_modules(model):
            module._device_mesh = mesh


@contextlib.contextmanager
def accumulating(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Micro-batches before the last one of a step: gradients add up on each process, and nothing is reduced.

    Where the YAML keeps weights gathered between forward and backward (`fsdp_reshard_after_forward: false`), FSDP2
    keeps them from one micro-batch to the next too, so that a step gathers them once. FSDP1 does so by itself.
    """
    keep = accelerator.is_fsdp2 and not accelerator.state.fsdp_plugin.reshard_after_forward
    if keep:
        model.set_reshard_after_backward(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        if keep:
            model.set_reshard_after_backward(True)


def refuse_unshared_folder(folder: str | Path, accelerator: Accelerator, patience: float = 10.0) -> None:
    """Raise `UserError` on every process unless all of them see one and the same folder.

    Every process writes its shard of a checkpoint, and the main one renames the whole: on separate disks no checkpoint
    would ever be complete.

    Args:
        patience: seconds in which a network file system may come to show a new file.
    """
    if accelerator.num_processes == 1:
        return
    path = Path(folder) / broadcast_object_list([f".shared_{secrets.token_hex(8)}"])[0]
    if accelerator.is_main_process:
        write_text(path, "seen by every process\n")
    accelerator.wait_for_everyone()
    deadline = time.monotonic() + patience
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    missing = [str(rank) for rank, seen in enumerate(gather_object([path.exists()])) if not seen]
    if accelerator.is_main_process:
        path.unlink()
    if missing:
        raise UserError(
            f"output_dir {folder}: what process 0 writes there is not seen by {', '.join(missing)}; it must lie on a "
            "file system that all nodes share"
        )


def use_bf16(setting: bool | None) -> bool:
    """Whether to compute in bfloat16; None asks the hardware: a GPU with bf16, or a CPU with instructions for it.

    A CPU without them (AMX or AVX512-BF16) computes bf16 matrix products no faster than fp32.
    """
    if setting is not None:
        return setting
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
