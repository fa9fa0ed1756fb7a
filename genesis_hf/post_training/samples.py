"""Answers to fixed prompts by the live model: how it reads, and whether it stops, from step to step."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genesis_hf.chat import encode_prompts
from genesis_hf.config import SampleSettings
from genesis_hf.errors import UserError
from genesis_hf.generate import pad_left, read_prompts
from genesis_hf.post_training.processes import LaunchedTrainer
from genesis_hf.processes import is_main
from genesis_hf.training.metrics import append_json
from genesis_hf.training.step import evaluating

PROMPTS = "style_prompts.jsonl"
"""The prompts among the package's assets that are answered where the recipe names none."""


class AnswerSamples(TrainerCallback):
    """Answers prompts greedily every `sample_steps`, so that no random number is drawn; appends to samples.jsonl.

    Every process computes the same forward passes, as sharded models need. The share of answers that ended by
    themselves is logged as `stop_rate`.

    Raises:
        UserError: prompts that can't be read, or that leave no room for an answer.
    """

    def __init__(self, trainer: LaunchedTrainer, recipe: SampleSettings, tokenizer: PreTrainedTokenizerFast) -> None:
        self.trainer, self.tokenizer, self.steps = trainer, tokenizer, recipe.sample_steps
        self.path = Path(trainer.args.output_dir) / "samples.jsonl"
        self.new_tokens = recipe.sample_max_new_tokens
        room = trainer.model.config.max_position_embeddings - self.new_tokens
        if room < 1:
            raise UserError(
                f"sample_max_new_tokens: {self.new_tokens} leaves no room for a prompt in the model's context"
            )
        path = recipe.sample_prompts or str(resources.files("genesis_hf") / "assets" / PROMPTS)
        self.prompts = read_prompts(path, recipe.sample_num_examples)
        self.ids = [ids[-room:] for ids in encode_prompts(tokenizer, self.prompts)]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A record of all answers, when it is time."""
        if state.global_step % self.steps:
            return
        rows = greedy_answers(self.trainer.model_wrapped, self.tokenizer, self.ids, self.new_tokens, args.device)
        stop = self.tokenizer.eos_token_id
        samples = [
            {
                "prompt": prompt,
                "answer": self.tokenizer.decode(row[: row.index(stop)] if stop in row else row),
                "stopped": stop in row,
            }
            for prompt, row in zip(self.prompts, rows, strict=True)
        ]
        if is_main():
            append_json(self.path, {"step": state.global_step, "samples": samples})
        due = control.should_log  # which logging takes back
        self.trainer.log({"stop_rate": sum(sample["stopped"] for sample in samples) / len(samples)})
        control.should_log = due


def greedy_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
    max_new_tokens: int,
    device: torch.device,
) -> list[list[int]]:
    """The likeliest next token, `max_new_tokens` times or until every answer has its stop token, for each prompt."""
    inputs = pad_left(prompts, tokenizer.pad_token_id, device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), None
    answers = torch.empty((len(prompts), 0), dtype=torch.long, device=device)
    with evaluating(model):
        for _ in range(max_new_tokens):
            outputs = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            ids, cache = outputs.logits[:, -1:].argmax(dim=-1), outputs.past_key_values
            answers = torch.cat([answers, ids], dim=1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
            if stopped_everywhere(answers == tokenizer.eos_token_id):
                break
    return answers.tolist()


def stopped_everywhere(stops: torch.Tensor) -> bool:
    """Whether each row holds a stop, on all processes, which have to make the same forward passes."""
    stopped = stops.any(dim=1).all().int()
    if dist.is_initialized():
        dist.all_reduce(stopped, dist.ReduceOp.MIN)
    return bool(stopped)
