"""Parameter groups and optimizers."""

import torch
from torch import nn

from genesis_hf.config import PretrainRecipe
from genesis_hf.training.muon import Muon


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
        # Updates are of AdamW's size, so one learning rate would serve both; small models take a higher one here.
        muon = Muon(hidden, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        groups = [{"params": others, "weight_decay": 0.0}]
        groups += [{"params": rest, "weight_decay": recipe.weight_decay}] if rest else []
        return [muon, torch.optim.AdamW(groups, **adamw)]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, **adamw)]
