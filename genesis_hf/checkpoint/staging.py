"""A copy of a run's tensors on the CPU, made while the next step computes its gradients.

torch's own stager copies whole storages, and on a CPU holds Python's lock while it does: training would stand still.
"""

import mmap
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves, tree_map_only

from genesis_hf.processes import local_part

ALIGNMENT = 64


class Staging:
    """Memory for one copy, used again by every save: new memory costs as much time as the copy.

    On a machine with a GPU it is page-locked, and the copy has a stream of its own.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._pinned: torch.Tensor | None = None
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, state: Any) -> Any:
        """`state` with tensors of this memory in place of its own, empty until `copy`."""
        places: dict[tuple, int] = {}
        size = 0

        for local in (local_part(leaf) for leaf in tree_leaves(state) if torch.is_tensor(leaf)):
            if identity(local) not in places:
                places[identity(local)] = size
                size += -(-local.nbytes // ALIGNMENT) * ALIGNMENT
        if self._memory is None or len(self._memory) < size:
            self._allocate(max(size, 1))
        copies: dict[tuple, torch.Tensor] = {}

        def place(tensor: torch.Tensor) -> torch.Tensor:
            local = local_part(tensor)
            key = identity(local)
            if key not in copies:
                copies[key] = self._tensor(local, places[key])
                self._pairs.append((copies[key], local))
            return (
                DTensor(copies[key], tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else copies[key]
            )

        staged = tree_map_only(torch.Tensor, place, state)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        return staged

    @torch.no_grad()
    def copy(self) -> None:
        """Fill the tensors that `prepare` gave out; in any thread, until the next step of the optimizers."""
        pairs, self._pairs = self._pairs, []
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._pairs = []
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.data_ptr())
        self._memory = self._pinned = None

    def _allocate(self, size: int) -> None:
        self.close()
        self._memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        if self._stream is not None:
            self._pinned = torch.frombuffer(self._memory, dtype=torch.uint8)
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._pinned.data_ptr(), size, 0))

    def _tensor(self, like: torch.Tensor, offset: int) -> torch.Tensor:
        """A tensor with a storage of its own in this memory: DCP would copy a view into a larger one once more."""
        if like.numel() == 0:
            return torch.empty(like.shape, dtype=like.dtype)
        flat = torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel(), offset=offset)
        return flat.view(like.shape)


def can_stage(state: Any) -> bool:
    """Whether every tensor is a plain one or a DTensor. FSDP1 has a kind of its own."""
    return not any(isinstance(leaf, ShardedTensor) for leaf in tree_leaves(state))


def identity(tensor: torch.Tensor) -> tuple:
    """The same for tensors that are the same memory, as tied weights are."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
