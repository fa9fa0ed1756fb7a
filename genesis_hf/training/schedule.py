"""The learning rate as a pure function of the step."""

import bisect
import math

import torch

from genesis_hf.checkpoint.state import inner
from genesis_hf.config import PretrainRecipe
from genesis_hf.training.muon import Muon


def learning_rate(step: int, recipe: PretrainRecipe) -> float:
    """Learning rate of update number `step`, counted from 1: a pure function of the recipe.

    Linear warmup to `learning_rate`, which the update `warmup_steps` is the first to use; then by `lr_scheduler_type`
    down to `min_learning_rate` at `max_steps`: "cosine" as in Loshchilov & Hutter 2017; "warmup_stable_decay" constant,
    then linear over the last `decay_steps` (Hu et al. 2024).

    A run that ended at a step of `extended_at` and goes on keeps what it did until then; from there it warms up
    linearly from where it stood to `learning_rate` in `warmup_steps`, and decays to the next end. From `anneal_at` on
    the rate falls linearly to `min_learning_rate` in `anneal_steps`, whatever the schedule says.
    """
    if recipe.anneal_at is not None and step > recipe.anneal_at:
        top, progress = scheduled_rate(recipe.anneal_at, recipe), (step - recipe.anneal_at) / recipe.anneal_steps
        return top + (recipe.min_learning_rate - top) * min(1.0, progress)
    return scheduled_rate(step, recipe)


def scheduled_rate(step: int, recipe: PretrainRecipe) -> float:
    """`learning_rate` without `anneal_at`."""
    ends = [*recipe.extended_at, recipe.max_steps]
    number = min(bisect.bisect_left(ends, step), len(ends) - 1)
    start, end = ([0, *ends])[number], ends[number]
    peak, low = recipe.learning_rate, recipe.min_learning_rate
    bottom = scheduled_rate(start, recipe) if number else 0.0
    if step - start <= recipe.warmup_steps:
        return bottom + (peak - bottom) * (step - start) / recipe.warmup_steps if recipe.warmup_steps else bottom
    if recipe.lr_scheduler_type == "constant":
        return peak
    begin = start + recipe.warmup_steps
    if recipe.lr_scheduler_type == "warmup_stable_decay":
        begin = max(begin, end - recipe.decay_steps)
    progress = min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
    if recipe.lr_scheduler_type == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak + (low - peak) * progress


def schedule_plot(recipe: PretrainRecipe, width: int = 64, height: int = 8) -> str:
    """The learning rate over the run, in characters: a column a stretch of steps, an eighth of a line at best."""
    last = recipe.last_step
    rates = [learning_rate(max(1, round(last * (column + 0.5) / width)), recipe) for column in range(width)]
    top = max(rates)
    lines = []
    for line in range(height, 0, -1):
        eighths = [max(0, min(8, round((rate / top * height - line + 1) * 8))) for rate in rates]
        label = f"{top * line / height:.1e}" if line in (height, height // 2) else ""
        lines.append(f"{label:>9} │{''.join(' ▁▂▃▄▅▆▇█'[e] for e in eighths)}")
    lines.append(f"{'0':>9} └{'─' * width}")
    lines.append(f"{'':>11}step 1{f'step {last:,}':>{width - 6}}")
    return "\n".join(lines)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], step: int, recipe: PretrainRecipe) -> float:
    """Give every group its learning rate for this step; returns the recipe's own."""
    rate = learning_rate(step, recipe)
    for optimizer in optimizers:
        peak = recipe.muon_learning_rate if isinstance(inner(optimizer), Muon) else recipe.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate * (peak / recipe.learning_rate)
    return rate
