"""Which of several processes this is, and what of a tensor it holds."""

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def leave_processes() -> None:
    """End the process group, where there is one: its threads otherwise now and then abort Python when it ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a DTensor; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
