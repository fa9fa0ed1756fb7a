"""Supervised fine-tuning: conversations, trained on what the assistant says, through TRL's SFTTrainer."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from genesis_hf.chat import INPUT_MARK, encode_conversations, lint_chat, prepare_for_chat
from genesis_hf.config import ConversationSource, SFTRecipe, write_text
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.mixture import SourceReport, mixture_table, read_mixture
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.export import resolve_model
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.post_training.models import load_model, save_final
from genesis_hf.post_training.order import LengthGroupedMixin
from genesis_hf.post_training.recipe import parse_training_recipe, resolved_yaml
from genesis_hf.post_training.run import finished_summary, run_training, write_summary
from genesis_hf.tokenizer import load_tokenizer

DEFAULTS = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "max_length": 2048,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "save_steps": 500,
    "save_total_limit": 2,
}
"""Values for TRL's keys; the learning rate and the schedule are genesis-1b's."""

ENCODING_BATCH = 1000


def parse_sft_recipe(argv: list[str] | None = None) -> tuple[SFTRecipe, SFTConfig]:
    """The recipe of `scripts/sft.py`: `SFTRecipe`'s keys and trl.SFTConfig's."""
    return parse_training_recipe(SFTRecipe, SFTConfig, DEFAULTS, argv)


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def encode_mixture(
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[ConversationSource],
    max_length: int | None,
    input_mark: str = "\n\n",
    seed: int = 42,
) -> tuple[Dataset, list[SourceReport]]:
    """Conversations of a mixture as `input_ids` and `labels`, and a report of each source.

    Rows that fit no shape, are no conversation, have nothing to train on or are longer than `max_length` tokens are
    dropped and counted.

    Raises:
        UserError: an unreadable source, or one of which no row is left.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
    reports = []
    for source, (name, rows) in zip(sources, read_mixture(sources, seed), strict=True):
        report = SourceReport(name, rows=len(rows))
        reports.append(report)
        progress = tqdm(total=len(rows), desc=f"encoding {name}", unit="row", disable=None)
        for start in range(0, len(rows), ENCODING_BATCH):
            batch = rows[start : start + ENCODING_BATCH]
            wheres, conversations = [], []
            for where, row in batch:
                try:
                    conversations.append(to_messages(row, source.format, input_mark))
                    wheres.append(where)
                except Fault as fault:
                    report.drop(str(fault), where)
            for where, (ids, labels) in zip(wheres, encode_conversations(tokenizer, conversations), strict=True):
                trained = len(labels) - labels.count(IGNORE_INDEX)
                if max_length is not None and len(ids) > max_length:
                    report.drop("too long", where)
                elif not trained:
                    report.drop("nothing to train on", where)
                else:
                    columns["input_ids"].append(ids)
                    columns["labels"].append(labels)
                    columns["length"].append(len(ids))
                    report.examples += 1
                    report.tokens += len(ids)
                    report.trained_tokens += trained
            progress.update(len(batch))
        progress.close()
        if not report.examples:
            raise UserError(f"source {name!r}: none of its {len(rows):,} rows is usable ({report.first_fault})")
    return Dataset.from_dict(columns), reports


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class ConversationTrainer(LengthGroupedMixin, SFTTrainer):
    """SFTTrainer over encoded conversations."""


def train_sft(recipe: SFTRecipe, training: SFTConfig) -> dict[str, Any] | None:
    """Train, evaluate and save a chat model.

    Returns:
        the summary, as in summary.json, with `already_finished`; None where a signal ended the run early.

    Raises:
        UserError: whatever of model, tokenizer, data or run directory the user has to mend.
    """
    summary = finished_summary(recipe, training)
    if summary:
        return {**summary, "already_finished": True}
    start = time.perf_counter()
    with training.main_process_first():
        folder = resolve_model(recipe.model)
    model = load_model(folder)
    tokenizer = load_tokenizer(recipe.tokenizer or folder)
    prepare_for_chat(model, tokenizer, recipe.chat_format)
    lint_chat(tokenizer, model.config, model.generation_config)

    max_length = min(training.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    mark = INPUT_MARK if recipe.chat_format == "alpaca" else "\n\n"
    train, reports = encode_mixture(tokenizer, recipe.mixture, max_length, mark, training.seed)
    print(mixture_table(reports))
    held_out = None
    if recipe.eval_mixture:
        held_out, _ = encode_mixture(tokenizer, recipe.eval_mixture, max_length, mark, training.seed)

    write_text(Path(training.output_dir) / "recipe.yaml", resolved_yaml(recipe, training))
    if not training.packing:
        training.dataset_kwargs = {**(training.dataset_kwargs or {}), "skip_prepare_dataset": True}
    trainer = ConversationTrainer(
        model=model, args=training, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer
    )
    if not training.packing:
        trainer.lengths = train["length"]
    before = answer_loss(trainer, held_out) if held_out else None
    if not run_training(trainer, training):
        return None
    after = answer_loss(trainer, held_out) if held_out else None
    summary = {
        "phase": "sft",
        "model": recipe.model,
        "chat_format": recipe.chat_format,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(time.perf_counter() - start, 1),
        "mixture": [asdict(report) for report in reports],
        "held_out": {"before": before, "after": after} if held_out else None,
    }
    save_final(trainer, tokenizer, Path(training.output_dir) / "final")
    if training.should_save:
        write_summary(training.output_dir, summary)
    return {**summary, "already_finished": False}


@torch.no_grad()
def answer_loss(trainer: SFTTrainer, dataset: Dataset) -> dict[str, float]:
    """Mean loss of the held-out answers' tokens.

    Returns:
        `loss` in nats a trained token; its standard error `stderr` over conversations (the ratio estimator's:
        sd(s_i - loss · n_i) / (mean(n) · sqrt(N)), Cochran, Sampling Techniques, 1977, 6.4); `tokens`.
    """
    model = trainer.model_wrapped
    model.eval()
    sums, counts = [], []
    loader = trainer.get_eval_dataloader(dataset.sort("length"))  # little padding
    for batch in tqdm(loader, desc="held-out loss", unit="batch", disable=None):
        with trainer.accelerator.autocast():
            outputs = model(**batch, use_cache=False, fused_lm_head=True)
        row = (-outputs.log_probs.float().sum(dim=1), outputs.label_mask.sum(dim=1))
        loss, tokens = trainer.accelerator.gather_for_metrics(row)
        sums += loss.tolist()
        counts += tokens.tolist()
    sums, counts = np.array(sums), np.array(counts)
    loss = sums.sum() / counts.sum()
    residuals = sums - loss * counts
    stderr = residuals.std(ddof=1) / counts.mean() / math.sqrt(len(counts)) if len(counts) > 1 else None
    return {"loss": float(loss), "stderr": stderr and float(stderr), "tokens": int(counts.sum())}
