"""Direct preference optimisation (Rafailov et al. 2023) of a chat model through TRL's DPOTrainer.

The reference is the starting policy itself: its log-probabilities are computed before the first step, or come from
the cache, and the first step then has to show a margin of 0 and a loss of ln 2 (`reference.py`).
"""

import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from genesis_hf.config import DPORecipe, write_text
from genesis_hf.conversations.encoding import TOO_LONG
from genesis_hf.conversations.mixture import prepare_preferences
from genesis_hf.conversations.report import SourceReport, mixture_table
from genesis_hf.errors import UserError
from genesis_hf.post_training.adapters import adapter_config
from genesis_hf.post_training.displacement import DisplacementWatch, displacement_summary
from genesis_hf.post_training.order import LengthGroupedMixin
from genesis_hf.post_training.phase import finish, longest_row, open_chat_model, prepare_mixtures
from genesis_hf.post_training.preference_figures import answer_lengths, compare_pairs, length_bias
from genesis_hf.post_training.processes import LaunchedTrainer
from genesis_hf.post_training.recipe import parse_training_recipe, resolved_yaml
from genesis_hf.post_training.reference import (
    Reference,
    ReferenceMixin,
    StartsAtReference,
    first_step_figures,
    refuse_another_start,
    sigmoid_start,
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
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "save_steps": 500,
    "save_total_limit": 2,
}
"""Values for TRL's keys; learning rate and β are TRL's own, β as in Rafailov et al. 2023, appendix B."""

ANSWERS = ("chosen_ids", "rejected_ids")

NO_LIMIT = 1 << 30
"""Tokens that no pair has."""


def parse_dpo_recipe(argv: list[str] | None = None) -> tuple[DPORecipe, DPOConfig]:
    """The recipe of `scripts/dpo.py`: `DPORecipe`'s keys and trl.DPOConfig's.

    `length_normalized` is TRL's loss `sigmoid_norm`: DPO of mean log-probabilities a token (Lambert et al. 2024,
    Tülu 3, section 5, where β is 5).

    Raises:
        UserError: what contradicts it or keeps the reference from being computed beforehand.
    """
    recipe, training = parse_training_recipe(DPORecipe, DPOConfig, DEFAULTS, argv)
    if not training.precompute_ref_log_probs or training.sync_ref_model:
        raise UserError("precompute_ref_log_probs must be true and sync_ref_model false: the reference is the start")
    if recipe.length_normalized:
        if not set(training.loss_type) <= {"sigmoid", "sigmoid_norm"} or training.ld_alpha is not None:
            raise UserError("length_normalized is a loss of its own: leave out loss_type and ld_alpha")
        training.loss_type = ["sigmoid_norm"]
    training.logging_first_step = True  # which proves the reference
    return recipe, training


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class PairTrainer(ReferenceMixin, LengthGroupedMixin, LaunchedTrainer, DPOTrainer):
    """DPOTrainer over encoded pairs."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")


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
    run = Path(training.output_dir)
    folder, model, tokenizer = open_chat_model(recipe.model, training)
    max_length = longest_row(model, training)
    train, held_out, reports = prepare_mixtures(prepare_preferences, tokenizer, recipe, training, max_length)
    if is_main():
        print(mixture_table(reports))
        if recipe.length_normalized and training.beta < 1:
            print(
                f"warning: length_normalized with beta {training.beta:g}: a token's reward is small, 2 to 10 are usual"
            )
    resolved = resolved_yaml(recipe, training)  # TRL's trainer changes its settings
    trainer = PairTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter_config(recipe, model),
        reference=Reference(folder, recipe.cache_dir),
    )
    trainer.lengths = train["length"][:]
    if is_main():
        write_text(run / "recipe.yaml", resolved)
    refuse_another_start(training.output_dir, trainer.reference.inputs, bool(checkpoint_to_resume(training)))
    trainer.add_callback(StartsAtReference(sigmoid_start(training)))
    trainer.add_callback(DisplacementWatch(training.output_dir, recipe.max_displacement))
    lengths = sampled_lengths(trainer, recipe, tokenizer)
    if not run_training(trainer, training):
        return None
    history = trainer.state.log_history
    figures = {
        "lengths": data_lengths(recipe, training, tokenizer, train, reports),
        "first_step": first_step_figures(history),
        "displacement": displacement_summary(history, training.beta, recipe.max_displacement),
        "sampled": lengths and lengths.summary(),
        "held_out": held_out and held_out_figures(trainer),
    }
    return finish("dpo", trainer, recipe, tokenizer, reports, start, figures)


def data_lengths(
    recipe: DPORecipe,
    training: DPOConfig,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    reports: list[SourceReport],
) -> dict[str, Any]:
    """The length bias of the pairs that are trained on, and of all, also those dropped as too long."""
    kept = length_bias(answer_lengths(train, ANSWERS))
    if not any(TOO_LONG in report.dropped for report in reports):
        return {"kept": kept, "all": kept}
    with training.main_process_first():
        every, _ = prepare_preferences(tokenizer, recipe.mixture, NO_LIMIT, recipe, training.seed)
    return {"kept": kept, "all": length_bias(answer_lengths(every, ANSWERS))}


def held_out_figures(trainer: PairTrainer) -> dict[str, Any]:
    """The held-out pairs under the reference and under the policy as it is now."""
    pairs = trainer.eval_dataset
    policy = trainer.policy_log_probabilities(pairs)
    return compare_pairs(pairs.values, policy, answer_lengths(pairs.examples, ANSWERS), trainer.args.beta)
