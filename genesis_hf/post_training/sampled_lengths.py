"""How long the live model's answers are before the first step and after the last."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genesis_hf.config import SampleSettings
from genesis_hf.post_training.processes import LaunchedTrainer
from genesis_hf.post_training.samples import AnswerSamples, greedy_answers
from genesis_hf.training.metrics import read_metrics
from genesis_hf.uncertainty import standard_error


def sampled_lengths(
    trainer: LaunchedTrainer, recipe: SampleSettings, tokenizer: PreTrainedTokenizerFast
) -> "AnswerLengths | None":
    """Have the trainer answer prompts as the recipe says, and its answers measured; None where it asks for none."""
    if not recipe.sample_steps:
        return None
    samples = AnswerSamples(trainer, recipe, tokenizer)
    lengths = AnswerLengths(samples)
    trainer.add_callback(samples)
    trainer.add_callback(lengths)
    return lengths


class AnswerLengths(TrainerCallback):
    """Answers the prompts of `samples` when a run begins, as its line of step 0; later where it is asked."""

    def __init__(self, samples: AnswerSamples) -> None:
        self.samples, self.trainer = samples, samples.trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The model is on its device by now, and sharded where it is to be."""
        if state.global_step == 0:
            self.trainer.log(self.measure())

    def measure(self) -> dict[str, float | None]:
        """Mean tokens of an answer, the stop token counted, with its standard error; the share that stopped."""
        stop = self.samples.tokenizer.eos_token_id
        rows = greedy_answers(
            self.trainer.model_wrapped,
            self.samples.tokenizer,
            self.samples.ids,
            self.samples.new_tokens,
            self.trainer.args.device,
        )
        lengths = np.array([row.index(stop) + 1 if stop in row else len(row) for row in rows], dtype=np.float64)
        return {
            "answer_tokens": float(lengths.mean()),
            "answer_tokens_stderr": standard_error(lengths),
            "stop_rate": float(np.mean([stop in row for row in rows])),
        }

    def summary(self) -> dict[str, Any]:
        """The figures of the run's beginning, as metrics.jsonl has them, and of the model as it is now."""
        lines = read_metrics(Path(self.trainer.args.output_dir) / "metrics.jsonl")
        before = next(line for line in lines if line["step"] == 0 and "answer_tokens" in line)
        after = self.measure()
        return {"prompts": len(self.samples.ids), "before": {name: before[name] for name in after}, "after": after}
