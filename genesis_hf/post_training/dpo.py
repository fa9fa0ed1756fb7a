"""Direct preference optimisation (Rafailov et al. 2023) of a chat model through TRL's DPOTrainer.

The reference is the starting policy itself: its log-probabilities are computed before the first step, which then has
to show a margin of 0 and a loss of ln 2.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from genesis_hf.chat import encode_conversations, encode_prompts, lint_chat
from genesis_hf.config import ConversationSource, DPORecipe, write_text
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.mixture import SourceReport, mixture_table, read_mixture
from genesis_hf.conversations.preferences import to_pair
from genesis_hf.errors import UserError
from genesis_hf.export import resolve_model
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.post_training.models import load_model, save_final
from genesis_hf.post_training.order import LengthGroupedMixin
from genesis_hf.post_training.recipe import parse_training_recipe, resolved_yaml
from genesis_hf.post_training.run import finished_summary, run_training, write_summary
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics
from genesis_hf.uncertainty import standard_error

DEFAULTS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "beta": 0.1,
    "max_length": 1024,
    "precompute_ref_log_probs": True,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "save_steps": 500,
    "save_total_limit": 2,
}
"""Values for TRL's keys; learning rate and β are TRL's own, β as in Rafailov et al. 2023, appendix B."""

START_TOLERANCE = 0.02
"""How far the first step's loss may be from ln 2: padding differs between batches, and bf16 sums round."""


def parse_dpo_recipe(argv: list[str] | None = None) -> tuple[DPORecipe, DPOConfig]:
    """The recipe of `scripts/dpo.py`: `DPORecipe`'s keys and trl.DPOConfig's."""
    return parse_training_recipe(DPORecipe, DPOConfig, DEFAULTS, argv)


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def encode_preferences(
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[ConversationSource],
    max_length: int,
    seed: int = 42,
) -> tuple[Dataset, list[SourceReport]]:
    """Pairs of a mixture as `prompt_ids`, `chosen_ids` and `rejected_ids`, and a report of each source.

    The ids are those of SFT: an answer ends with its stop token, without the line break that follows it. Pairs stand
    in order of their length.

    Raises:
        UserError: an unreadable source, or one of which no row is left.
    """
    columns: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "length": []}
    reports = []
    for name, rows in read_mixture(sources, seed):
        report = SourceReport(name, rows=len(rows))
        reports.append(report)
        for where, row in tqdm(rows, desc=f"encoding {name}", unit="pair", disable=None):
            try:
                pair = to_pair(row)
            except Fault as fault:
                report.drop(str(fault), where)
                continue
            (prompt,) = encode_prompts(tokenizer, [pair.prompt])
            answers = (pair.chosen, pair.rejected)
            dialogues = [[*pair.prompt, {"role": "assistant", "content": answer}] for answer in answers]
            chosen, rejected = (
                answer_ids(ids, labels, len(prompt)) for ids, labels in encode_conversations(tokenizer, dialogues)
            )
            length = len(prompt) + max(len(chosen), len(rejected))
            if length > max_length:
                report.drop("too long", where)
                continue
            for key, value in zip(columns, (prompt, chosen, rejected, length), strict=True):
                columns[key].append(value)
            report.examples += 1
            report.tokens += 2 * len(prompt) + len(chosen) + len(rejected)
            report.trained_tokens += len(chosen) + len(rejected)
        if not report.examples:
            raise UserError(f"source {name!r}: none of its {len(rows):,} rows is usable ({report.first_fault})")
    # In order of length the reference's pass pads little; training has an order of its own.
    return Dataset.from_dict(columns).sort("length"), reports


def answer_ids(ids: list[int], labels: list[int], prompt_length: int) -> list[int]:
    """The ids of the last answer and its stop token: what follows the prompt and is trained."""
    end = len(labels)
    while labels[end - 1] == IGNORE_INDEX:
        end -= 1
    return ids[prompt_length:end]


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class PreferenceTrainer(LengthGroupedMixin, DPOTrainer):
    """DPOTrainer over encoded pairs."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL's own would tokenise again, parse special tokens out of typed text, and train the line break after
        # the stop token.
        return dataset


class StartsAtReference(TrainerCallback):
    """Refuses a run whose first step is not at the reference: a margin of 0 and, for the sigmoid loss, ln 2."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Looks at the first step's line, which is computed before any weight has moved."""
        if state.global_step != 1 or not logs or "rewards/margins" not in logs:
            return
        loss, margin = logs["loss"], logs["rewards/margins"]
        plain = args.loss_type == ["sigmoid"] and not args.label_smoothing
        if abs(margin) > START_TOLERANCE or (plain and abs(loss - math.log(2)) > START_TOLERANCE):
            raise UserError(
                f"the reference is not the starting policy: the first step has loss {loss:.4f} (ln 2 is 0.6931) "
                f"and margin {margin:.4f} (0)"
            )


def train_dpo(recipe: DPORecipe, training: DPOConfig) -> dict[str, Any] | None:
    """Train, evaluate and save a chat model on preferences.

    Returns:
        the summary, as in summary.json, with `already_finished`; None where a signal ended the run early.

    Raises:
        UserError: whatever of model, data or run directory the user has to mend.
    """
    summary = finished_summary(recipe, training)
    if summary:
        return {**summary, "already_finished": True}
    start = time.perf_counter()
    training.logging_first_step = True  # which proves the reference
    with training.main_process_first():
        folder = resolve_model(recipe.model)
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    lint_chat(tokenizer, model.config, model.generation_config)
    context = model.config.max_position_embeddings
    max_length = min(training.max_length or context, context)
    train, reports = encode_preferences(tokenizer, recipe.mixture, max_length, training.seed)
    print(mixture_table(reports))
    held_out = None
    if recipe.eval_mixture:
        held_out, _ = encode_preferences(tokenizer, recipe.eval_mixture, max_length, training.seed)

    write_text(Path(training.output_dir) / "recipe.yaml", resolved_yaml(recipe, training))
    trainer = PreferenceTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=held_out if training.eval_strategy != "no" else None,
        processing_class=tokenizer,
    )
    trainer.lengths = train["length"]
    trainer.add_callback(StartsAtReference())
    reference = pair_log_probabilities(trainer, held_out) if held_out else None
    if not run_training(trainer, training):
        return None
    first = next(r for r in read_metrics(Path(training.output_dir) / "metrics.jsonl") if "rewards/margins" in r)
    summary = {
        "phase": "dpo",
        "model": recipe.model,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(time.perf_counter() - start, 1),
        "mixture": [asdict(report) for report in reports],
        "mean_tokens": mean_lengths(train),
        "first_step": {"loss": first["loss"], "margin": first["rewards/margins"]},
        "held_out": held_out and compare_with_reference(trainer, held_out, reference),
    }
    save_final(trainer, tokenizer, Path(training.output_dir) / "final")
    if training.should_save:
        write_summary(training.output_dir, summary)
    return {**summary, "already_finished": False}


# ---------------------------------------------------------------------------------------------------------
# Held-out preferences
# ---------------------------------------------------------------------------------------------------------


def pair_log_probabilities(trainer: PreferenceTrainer, dataset: Dataset) -> np.ndarray:
    """(pairs, 2) log-probabilities in nats of the chosen and the rejected answers under the trainer's policy."""
    loader = DataLoader(dataset, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    model = trainer.model_wrapped
    model.eval()
    scores = []
    for batch in tqdm(loader, desc="held-out pairs", unit="batch", disable=None):
        batch = {key: value.to(trainer.args.device) for key, value in batch.items()}
        chosen, rejected = trainer.compute_ref_log_probs(model, batch)
        scores += zip(chosen.tolist(), rejected.tolist(), strict=True)
    return np.array(scores, dtype=np.float64)


def compare_with_reference(trainer: PreferenceTrainer, dataset: Dataset, reference: np.ndarray) -> dict[str, Any]:
    """Held-out accuracies and log-probabilities before (the reference) and after (the policy now).

    `ranked` is the share of pairs with log p(chosen) > log p(rejected); `ranked_per_token` the same of means over the
    answer's tokens; `implicit_reward` the share whose chosen answer gained more over the reference than the rejected
    one. Each with its standard error.
    """
    policy = pair_log_probabilities(trainer, dataset)
    tokens = np.array([[len(c), len(r)] for c, r in zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)])
    gains = policy - reference
    return {
        "pairs": len(dataset),
        "mean_tokens": mean_lengths(dataset),
        "before": ranking(reference, tokens),
        "after": ranking(policy, tokens),
        "implicit_reward": share(gains[:, 0] > gains[:, 1]),
        "reward_margin": trainer.args.beta * float((gains[:, 0] - gains[:, 1]).mean()),
    }


def ranking(log_probabilities: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """How a model ranks pairs by log-probability, (pairs, 2), in all and per token."""
    means = log_probabilities / tokens
    return {
        "ranked": share(log_probabilities[:, 0] > log_probabilities[:, 1]),
        "ranked_per_token": share(means[:, 0] > means[:, 1]),
        "log_probability_chosen": float(log_probabilities[:, 0].mean()),
        "log_probability_rejected": float(log_probabilities[:, 1].mean()),
    }


def share(hits: np.ndarray) -> dict[str, float | None]:
    """A share and its standard error."""
    return {"value": float(hits.mean()), "stderr": standard_error(hits.astype(np.float64))}


def mean_lengths(dataset: Dataset) -> dict[str, float]:
    """Mean tokens of chosen and rejected answers, the stop token counted: a length bias shows here."""
    return {key: float(np.mean([len(ids) for ids in dataset[f"{key}_ids"]])) for key in ("chosen", "rejected")}
