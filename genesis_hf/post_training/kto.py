"""KTO (Ethayarajh et al. 2024) of a chat model through TRL's KTOTrainer: answers labelled good or bad, no pairs needed.

As in DPO the reference is the starting policy, and the first step has to show it: every reward and the divergence 0.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from genesis_hf.config import KTORecipe, write_text
from genesis_hf.conversations.mixture import prepare_labelled
from genesis_hf.conversations.report import mixture_table
from genesis_hf.errors import UserError
from genesis_hf.post_training.adapters import adapter_config
from genesis_hf.post_training.order import LengthGroupedMixin, LengthGroupedOrder
from genesis_hf.post_training.phase import finish, longest_row, open_chat_model, prepare_mixtures
from genesis_hf.post_training.preference_figures import answer_lengths, compare_labelled
from genesis_hf.post_training.processes import LaunchedTrainer
from genesis_hf.post_training.recipe import parse_training_recipe, resolved_yaml
from genesis_hf.post_training.reference import (
    Reference,
    ReferenceMixin,
    StartsAtReference,
    first_step_figures,
    refuse_another_start,
)
from genesis_hf.post_training.run import checkpoint_to_resume, finished_summary, run_training
from genesis_hf.post_training.sampled_lengths import sampled_lengths
from genesis_hf.processes import is_main

DEFAULTS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "beta": 0.1,
    "max_length": 1024,
    "precompute_ref_log_probs": True,
    "train_sampling_strategy": "sequential",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "save_steps": 500,
    "save_total_limit": 2,
}
"""Values for TRL's keys; learning rate and β are TRL's own. The order is `in_training_order`, TRL keeps to it."""

BALANCE = (1.0, 4 / 3)
"""Desirable over undesirable answers, each times its weight, as Ethayarajh et al. 2024 advise (equation 8)."""


def parse_kto_recipe(argv: list[str] | None = None) -> tuple[KTORecipe, KTOConfig]:
    """The recipe of `scripts/kto.py`: `KTORecipe`'s keys and trl.KTOConfig's.

    Raises:
        UserError: settings under which KTO does not work.
    """
    recipe, training = parse_training_recipe(KTORecipe, KTOConfig, DEFAULTS, argv)
    if not training.precompute_ref_log_probs or training.sync_ref_model:
        raise UserError("precompute_ref_log_probs must be true and sync_ref_model false: the reference is the start")
    if training.train_sampling_strategy != "sequential":
        raise UserError("train_sampling_strategy: leave it out; KTO compares each answer with others of its batch")
    if training.per_device_train_batch_size < 2:
        raise UserError(
            "per_device_train_batch_size must be at least 2: KTO compares each answer with others of its batch "
            "(gradient_accumulation_steps does not help)"
        )
    training.logging_first_step = True  # which proves the reference
    return recipe, training


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def in_training_order(dataset: Dataset, training: KTOConfig) -> Dataset:
    """The answers in the order in which every epoch reads them: steps of like length, shuffled.

    A last batch of a single answer is left out, which has no other to be compared with.
    """
    batch_size = training.per_device_train_batch_size
    step_rows = batch_size * training.world_size * training.gradient_accumulation_steps
    order = list(LengthGroupedOrder(dataset["length"][:], step_rows, training.seed))
    return dataset.select(order[:-1] if len(order) % batch_size == 1 else order)


def with_mismatched_answers(dataset: Dataset, batch_size: int) -> Dataset:
    """The answers with `KL_completion_ids`: that of another prompt of the same batch, the one before if it is another.

    Their log-probabilities estimate how far the policy has moved from the reference (section 4.1 of the paper).
    """
    prompts, rows = dataset["prompt_ids"], []
    for start in range(0, len(dataset), batch_size):
        size = min(batch_size, len(dataset) - start)
        for i in range(size):
            others = [start + (i - step) % size for step in range(1, size)]
            rows.append(next((j for j in others if prompts[j] != prompts[start + i]), start + (i - 1) % size))
    table = dataset.with_format("arrow")[:]
    return Dataset(table.append_column("KL_completion_ids", table["completion_ids"].take(np.array(rows))))


def balance(labels: list[bool], training: KTOConfig) -> dict[str, Any]:
    """How many answers are good and bad, the ratio of their weights, and advice where it lies outside `BALANCE`."""
    good, bad = sum(labels), len(labels) - sum(labels)
    if not good or not bad:
        raise UserError(f"KTO needs desirable and undesirable answers: there are {good:,} and {bad:,}")
    ratio = training.desirable_weight * good / (training.undesirable_weight * bad)
    low, high = (bound / ratio for bound in BALANCE)
    advice = None
    if not BALANCE[0] - 1e-6 <= ratio <= BALANCE[1] + 1e-6:
        desirable = [f"{training.desirable_weight * bound:.2f}" for bound in (low, high)]
        undesirable = [f"{training.undesirable_weight / bound:.2f}" for bound in (high, low)]
        advice = (
            f"{good:,} desirable and {bad:,} undesirable answers weigh {ratio:.2f} : 1, where 1 : 1 to 4 : 3 is "
            f"advised: set desirable_weight between {desirable[0]} and {desirable[1]}, or undesirable_weight "
            f"between {undesirable[0]} and {undesirable[1]}"
        )
    return {"desirable": good, "undesirable": bad, "weighted_ratio": ratio, "advice": advice}


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class LabelledTrainer(ReferenceMixin, LengthGroupedMixin, LaunchedTrainer, KTOTrainer):
    """KTOTrainer over encoded answers, in the order of the dataset."""

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """The mismatched answers' only for losses that estimate the divergence."""
        return ("ref_logps", "ref_KL_logps") if self.calculate_KL else ("ref_logps",)


def train_kto(recipe: KTORecipe, training: KTOConfig) -> dict[str, Any] | None:
    """Train, evaluate and save a chat model on labelled answers.

    Returns:
        the summary, as in summary.json, with `already_finished`; None where a signal ended the run early.

    Raises:
        UserError: whatever of model, data or run directory the user has to mend.
    """
    summary = finished_summary(recipe, training)
    if summary:
        return {**summary, "already_finished": True}
    start = time.perf_counter()
    run = Path(training.output_dir)
    folder, model, tokenizer = open_chat_model(recipe.model, training)
    max_length = longest_row(model, training)
    train, held_out, reports = prepare_mixtures(prepare_labelled, tokenizer, recipe, training, max_length)
    if held_out:
        held_out = with_mismatched_answers(held_out, training.per_device_eval_batch_size)
    train = with_mismatched_answers(in_training_order(train, training), training.per_device_train_batch_size)
    balanced = balance(train["label"], training)
    if is_main():
        print(mixture_table(reports))
        if balanced["advice"]:
            print(f"warning: {balanced['advice']}")
    resolved = resolved_yaml(recipe, training)  # TRL's trainer changes its settings
    trainer = LabelledTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter_config(recipe, model),
        reference=Reference(folder, recipe.cache_dir),
    )
    if is_main():
        write_text(run / "recipe.yaml", resolved)
    refuse_another_start(training.output_dir, trainer.reference.inputs, bool(checkpoint_to_resume(training)))
    same_weight = training.desirable_weight == training.undesirable_weight
    trainer.add_callback(StartsAtReference(0.5 * training.desirable_weight if same_weight else None))
    lengths = sampled_lengths(trainer, recipe, tokenizer)
    if not run_training(trainer, training):
        return None
    figures = {
        "balance": balanced,
        "first_step": first_step_figures(trainer.state.log_history),
        "sampled": lengths and lengths.summary(),
        "held_out": held_out and held_out_figures(trainer),
    }
    return finish("kto", trainer, recipe, tokenizer, reports, start, figures)


def held_out_figures(trainer: LabelledTrainer) -> dict[str, Any]:
    """The held-out answers under the reference and under the policy as it is now."""
    answers = trainer.eval_dataset
    policy = trainer.policy_log_probabilities(answers)
    desirable = np.array(answers.examples["label"], dtype=bool)
    tokens = answer_lengths(answers.examples, ("completion_ids",))[:, 0]
    return compare_labelled(answers.values[:, 0], policy[:, 0], desirable, tokens, trainer.args.beta)
