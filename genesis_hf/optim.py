"""Parameter groups, optimizers, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from genesis_hf.config import PretrainRecipe


def learning_rate(step: int, recipe: PretrainRecipe) -> float:
    """Learning rate of update number `step`, counted from 1.

    Linear warmup to `learning_rate`, which the update `warmup_steps` is the first to use; then by `lr_scheduler_type`
    down to `min_learning_rate` at `max_steps`: "cosine" as in Loshchilov & Hutter 2017; "warmup_stable_decay" constant,
    then linear over the last `decay_steps` (Hu et al. 2024).
    """
    peak, low = recipe.learning_rate, recipe.min_learning_rate
    if step <= recipe.warmup_steps:
        return peak * step / recipe.warmup_steps
    if recipe.lr_scheduler_type == "constant":
        return peak
    begin = recipe.warmup_steps
    if recipe.lr_scheduler_type == "warmup_stable_decay":
        begin = max(begin, recipe.max_steps - recipe.decay_steps)
    progress = min(1.0, max(0.0, (step - begin) / max(1, recipe.max_steps - begin)))
    if recipe.lr_scheduler_type == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak + (low - peak) * progress


def make_optimizers(model: nn.Module, recipe: PretrainRecipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    Weight decay falls on matrices only, never on norms and embeddings. Each group carries `peak`, its learning rate at
    the schedule's top relative to the recipe's.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    matrices, others, seen = [], [], set()
    for parameter in model.parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        (matrices if parameter.ndim == 2 and parameter is not embedding else others).append(parameter)
    adamw = {
        "lr": recipe.learning_rate,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "eps": recipe.adam_epsilon,
        "fused": True,
    }
    if recipe.optim == "muon":
        hidden = [p for p in matrices if p is not head]
        rest = [p for p in matrices if p is head]
        # match_rms_adamw scales updates to AdamW's size (Liu et al. 2025), so one learning rate would serve both;
        # small models take a higher one for the matrices.
        muon = torch.optim.Muon(
            hidden,
            lr=recipe.muon_learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        groups = [{"params": others, "weight_decay": 0.0}]
        groups += [{"params": rest, "weight_decay": recipe.weight_decay}] if rest else []
        return [muon, torch.optim.AdamW(groups, **adamw)]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, **adamw)]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], step: int, recipe: PretrainRecipe) -> float:
    """Give every group its learning rate for this step; returns the recipe's own."""
    rate = learning_rate(step, recipe)
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)
        peak = recipe.muon_learning_rate if isinstance(inner, torch.optim.Muon) else recipe.learning_rate
        for group in inner.param_groups:
            group["lr"] = rate * (peak / recipe.learning_rate)
    return rate
