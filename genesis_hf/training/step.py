"""One optimizer step."""

import torch
from accelerate import Accelerator
from torch import nn

from genesis_hf.config import PretrainRecipe
from genesis_hf.data.stream import StepBatch


def train_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: StepBatch,
    recipe: PretrainRecipe,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step over this process's micro-batches.

    Each micro-batch's loss is its sum over trained tokens divided by those of the whole step on all processes, so the
    gradient equals that of one large batch. Distributed wrappers average gradients over processes, which the factor
    `num_processes` undoes.

    Returns:
        this process's part of the step's mean loss, and the gradient norm before clipping; scalars on the device.
    """
    micro_batches = list(batch.micro_batches(recipe.per_device_train_batch_size))
    total = torch.zeros((), device=accelerator.device)
    for index, inputs in enumerate(micro_batches):
        inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in inputs.items()}
        last = index == len(micro_batches) - 1
        with torch.enable_grad() if last else accelerator.no_sync(model):
            loss = model(**inputs, num_items_in_batch=batch.num_items).loss
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    limit = recipe.max_grad_norm or float("inf")
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), limit)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def read_numbers(accelerator: Accelerator, loss: torch.Tensor, grad_norm: torch.Tensor) -> tuple[float, float]:
    """The step's loss summed over processes and its gradient norm: one reduction, one read from the device."""
    if hasattr(grad_norm, "full_tensor"):
        grad_norm = grad_norm.full_tensor()
    loss = accelerator.reduce(loss, "sum")
    loss_sum, norm = torch.stack([loss, grad_norm.to(loss)]).tolist()
    return loss_sum, norm
