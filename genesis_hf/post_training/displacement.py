"""Likelihood displacement: chosen answers that become less likely while they outrank the rejected ones.

What DPO rewards is a difference; it can grow while both answers lose (Razin et al. 2024, Unintentional
Unalignment: Likelihood Displacement in Direct Preference Optimization).
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genesis_hf.processes import is_main
from genesis_hf.training.metrics import MetricsWriter

WINDOW = 10
"""Logged lines of training over which the change is averaged: each is that of a few batches only."""


def chosen_changes(history: list[dict[str, Any]], beta: float) -> dict[str, list[tuple[int, float]]]:
    """By kind, `train` and `held_out`, the step and the change in nats of each logged line; train's averaged.

    Args:
        history: of `TrainerState`. TRL's reward of an answer is β times its gain in log-probability.
    """
    changes: dict[str, list[tuple[int, float]]] = {}
    for kind, name, window in (("train", "rewards/chosen", WINDOW), ("held_out", "eval_rewards/chosen", 1)):
        found = [(line["step"], line[name] / beta) for line in history if name in line]
        recent = [found[max(0, end - window) : end] for end in range(1, len(found) + 1)]
        changes[kind] = [(lines[-1][0], sum(change for _, change in lines) / len(lines)) for lines in recent]
    return changes


def displacement_summary(history: list[dict[str, Any]], beta: float, limit: float) -> dict[str, Any]:
    """The change at the end and at its lowest, of training batches and held out, and where it passed the limit."""
    summary: dict[str, Any] = {"max_displacement": limit, "passed_at_step": None}
    passed = []
    for kind, changes in chosen_changes(history, beta).items():
        summary[kind] = None
        if changes:
            step, lowest = min(changes, key=lambda change: change[1])
            summary[kind] = {"last": changes[-1][1], "lowest": lowest, "lowest_at_step": step}
        passed += [step for step, change in changes if change < -limit]
    return {**summary, "passed_at_step": min(passed, default=None)}


class DisplacementWatch(TrainerCallback):
    """Says once when chosen answers have lost more than `limit` nats on average; the run goes on."""

    def __init__(self, output_dir: str, limit: float) -> None:
        self.output_dir, self.limit, self.warned = output_dir, limit, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run that goes on may have said it before."""
        self.warned = displacement_summary(state.log_history, args.beta, self.limit)["passed_at_step"] is not None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """The line that was just logged stands at the end of the history."""
        if self.warned or not {"rewards/chosen", "eval_rewards/chosen"} & set(logs or {}):
            return
        kind = "train" if "rewards/chosen" in logs else "held_out"
        _, change = chosen_changes(state.log_history, args.beta)[kind][-1]
        if change < -self.limit:
            self.warned = True
            self.warn(state.global_step, {"train": "training", "held_out": "held-out"}[kind], change)

    def warn(self, step: int, kind: str, change: float) -> None:
        """One line for the reader and one event."""
        text = (
            f"chosen answers of the {kind} pairs have become less likely by {-change:.1f} nats, more than "
            f"max_displacement {self.limit:g}: a smaller learning_rate, a larger beta or an SFT term hold them"
        )
        if is_main():
            print(f"warning, step {step}: {text}")
        MetricsWriter(self.output_dir, is_main(), step).event(step, "displacement", text)
