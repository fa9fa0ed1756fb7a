"""What a launch finds on this machine: devices, memory, peer access, the speed of an all-reduce.

python -m genesis_hf.preflight.probe RECIPE.yaml ANSWER.json BYTES, alone or under `accelerate launch -m`. It goes
through `make_accelerator`, as training does, so that it measures the backend and the devices that training gets.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator

from genesis_hf.config import PretrainRecipe, build, write_text
from genesis_hf.errors import report_user_errors
from genesis_hf.training.distributed import make_accelerator

REPETITIONS = 5
"""All-reduces timed, after one that is not."""


def probe(recipe: PretrainRecipe, size: int) -> dict[str, Any]:
    """The same on every process: a record of each process, peer access, and the all-reduce where there are several."""
    accelerator = make_accelerator(recipe)
    mine = {"device": device_name(accelerator.device), "memory_bytes": device_memory(accelerator.device)}
    records = [mine]
    if dist.is_initialized():
        records = [None] * accelerator.num_processes
        dist.all_gather_object(records, mine)
    return {
        "python": platform.python_version(),
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "processes": records,
        "peer_access": peer_access(accelerator),
        "all_reduce": all_reduce(accelerator, size) if accelerator.num_processes > 1 else None,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_memory(device: torch.device) -> int:
    """Bytes in all: the card's, or the computer's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def peer_access(accelerator: Accelerator) -> bool | None:
    """Whether each card that training uses reads every other's memory; None where there are fewer than two."""
    cards = range(min(accelerator.num_processes, torch.cuda.device_count()))
    if accelerator.device.type != "cuda" or len(cards) < 2:
        return None
    return all(torch.cuda.can_device_access_peer(i, j) for i in cards for j in cards if i != j)


def all_reduce(accelerator: Accelerator, size: int) -> dict[str, Any]:
    """Seconds of an fp32 all-reduce of `size` bytes, and whether its sums are right.

    The sums are small whole numbers, which every order of adding gives exactly.
    """
    count, world = size // 4, accelerator.num_processes
    pattern = torch.arange(count, device=accelerator.device, dtype=torch.float32) % 1021
    correct, seconds = True, []
    for _ in range(1 + REPETITIONS):
        values = pattern * (accelerator.process_index + 1)
        accelerator.wait_for_everyone()
        synchronize(accelerator.device)
        start = time.perf_counter()
        dist.all_reduce(values)
        synchronize(accelerator.device)
        seconds.append(time.perf_counter() - start)
        correct &= bool(torch.equal(values, pattern * (world * (world + 1) // 2)))
    agreed = torch.tensor([float(not correct), sorted(seconds[1:])[REPETITIONS // 2]], device=accelerator.device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return {"bytes": 4 * count, "seconds": agreed[1].item(), "correct": agreed[0].item() == 0}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    recipe_file, answer, size = sys.argv[1:]
    values = yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8"))
    found = probe(build(PretrainRecipe, values, recipe_file), int(size))
    if int(os.environ.get("RANK", "0")) == 0:
        write_text(answer, json.dumps(found, indent=1) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    with report_user_errors():
        main()
