"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024), many at once, sharded or whole.

torch.optim.Muon takes one matrix after the other, knows no `found_inf`, and under FSDP2 computes every matrix on every
process.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from genesis_hf.processes import local_part

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that is iterated; Jordan et al. 2024."""

MAX_ELEMENTS = 2**26
"""Of a batch of matrices: more would gain no speed and take memory."""


class Muon(torch.optim.Optimizer):
    """Updates of orthogonal matrices, for the hidden layers' weights.

    An update is scaled to the size of AdamW's, 0.2 × sqrt(max(rows, columns)) (Liu et al. 2025, "match_rms_adamw").
    Where `found_inf`, an attribute that the caller may set as with torch's fused optimizers, is a scalar of 1, a step
    changes neither weights nor momentum.

    Args:
        params: matrices (rows, columns), plain or sharded by FSDP2 over their rows.
        lr: of updates of AdamW's size. momentum: Nesterov's. ns_steps: iterations.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}
        super().__init__(params, defaults)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                size = max(1, MAX_ELEMENTS // shape.numel())
                for start in range(0, len(parameters), size):
                    self._update(parameters[start : start + size], group)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, float]) -> None:
        """Matrices of one shape: momentum, orthogonalisation, decay and step."""
        momentum, device = group["momentum"], parameters[0].device
        skip = getattr(self, "found_inf", None)
        skip = torch.zeros((), device=device) if skip is None else skip.to(device)
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(local_part(state["momentum_buffer"]))
        grads = [torch.where(skip > 0, 0, local_part(parameter.grad)) for parameter in parameters]
        torch._foreach_mul_(buffers, torch.where(skip > 0, 1.0, momentum))
        torch._foreach_add_(buffers, grads, alpha=1 - momentum)
        nesterov = torch.stack(torch._foreach_lerp(grads, buffers, momentum)).bfloat16()
        updates = orthogonal_shards(nesterov, parameters[0], group["ns_steps"])
        rate = group["lr"] * (1 - skip)
        weights = [local_part(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(parameters[0].shape))
        torch._foreach_add_(weights, list((updates.float() * (-rate * scale)).unbind()))


def orthogonal_shards(shards: torch.Tensor, like: torch.Tensor, steps: int) -> torch.Tensor:
    """Each process's rows of the matrices' orthogonal factors, from its rows of the matrices.

    Of sharded matrices each process gathers an equal number whole, orthogonalises them, and hands the rows back.

    Args:
        shards: (matrices, rows here, columns) bf16. like: one of the parameters; its placement is that of all.
    """
    mesh_dimensions = [i for i, p in enumerate(like.placements) if p == Shard(0)] if isinstance(like, DTensor) else []
    if not mesh_dimensions:
        return newton_schulz(shards, steps)
    group = like.device_mesh.get_group(mesh_dimensions[0])
    world = dist.get_world_size(group)
    matrices, rows, columns = shards.shape
    # As FSDP2 shards: all but the last processes have this many rows. Zeros fill up, and stay zeros.
    height, count = -(-like.shape[0] // world), -(-matrices // world)
    padded = torch.nn.functional.pad(shards, (0, 0, 0, height - rows, 0, count * world - matrices))
    mine = torch.empty_like(padded)
    dist.all_to_all_single(mine, padded, group=group)
    whole = mine.view(world, count, height, columns).transpose(0, 1).reshape(count, world * height, columns)
    whole = newton_schulz(whole, steps)
    back = whole.view(count, world, height, columns).transpose(0, 1).contiguous()
    dist.all_to_all_single(padded, back.view_as(padded), group=group)
    return padded[:matrices, :rows]


def newton_schulz(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Roughly the orthogonal factor of each matrix: singular values come out between 0.7 and 1.2.

    Args:
        matrices: (matrices, rows, columns) bf16, which is enough for that.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
