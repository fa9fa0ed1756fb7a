"""One optimizer step: gradients, their norm, the update."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

from genesis_hf.checkpoint.state import inner
from genesis_hf.config import PretrainRecipe
from genesis_hf.data.stream import StepBatch
from genesis_hf.training.distributed import accumulating
from genesis_hf.training.guard import StepGuard


def backward(
    model: nn.Module,
    batch: StepBatch,
    micro_batch_size: int,
    accelerator: Accelerator,
    beat: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Accumulate the gradients of one step over this process's micro-batches; they are reduced once, with the last.

    Each micro-batch's loss is its sum over trained tokens divided by those of the whole step on all processes, so the
    gradient equals that of one large batch. Distributed wrappers average gradients over processes, which the factor
    `num_processes` undoes.

    Args:
        beat: called after each micro-batch.

    Returns:
        the step's mean loss over all processes; an fp32 scalar on the device.
    """
    micro_batches = list(batch.micro_batches(micro_batch_size))
    total = torch.zeros((), device=accelerator.device)
    for index, inputs in enumerate(micro_batches):
        inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in inputs.items()}
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accumulating(model, accelerator):
            loss = model(**inputs, num_items_in_batch=batch.num_items).loss
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
        beat()
    return accelerator.reduce(total, "sum")


def update(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss: torch.Tensor,
    recipe: PretrainRecipe,
    accelerator: Accelerator,
    guard: StepGuard,
) -> torch.Tensor:
    """Clip the gradients, let every optimizer step unless the guard says no, and clear the gradients.

    Returns:
        the gradient norm before clipping; a scalar on the device.
    """
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm or float("inf"))
    if hasattr(grad_norm, "full_tensor"):
        grad_norm = grad_norm.full_tensor()
    skip = guard.judge(loss, grad_norm)
    for optimizer in optimizers:
        # The name under which torch's fused optimizers look for a scalar that says "leave all as it is".
        inner(optimizer).found_inf = skip
        optimizer.step()
    clear_gradients(optimizers)
    return grad_norm


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and nothing compiled for the few passes; training mode again afterwards."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        try:
            yield
        finally:
            model.train()


def clear_gradients(optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
