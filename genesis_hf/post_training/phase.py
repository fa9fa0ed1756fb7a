"""What SFT, DPO and KTO begin and end with."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from genesis_hf.chat_lint import lint_chat
from genesis_hf.conversations.report import SourceReport
from genesis_hf.post_training.adapters import save_adapter
from genesis_hf.post_training.models import load_model, resolve_together, save_final
from genesis_hf.post_training.run import write_summary
from genesis_hf.processes import barrier, is_main
from genesis_hf.publishing.publish import publish_finished_run
from genesis_hf.tokenizer import load_tokenizer

Prepare = Callable[..., tuple[Dataset, list[SourceReport]]]
"""`conversations.mixture.prepare_conversations`, `prepare_preferences` or `prepare_labelled`."""


def open_chat_model(name: str, training: TrainingArguments) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]:
    """The folder, model and tokenizer of a chat model, whose format has passed the lint.

    Raises:
        UserError: no such model, or a format that trains the wrong things.
    """
    folder = resolve_together(name, training)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    lint_chat(tokenizer, model.config, model.generation_config)
    return folder, model, tokenizer


def longest_row(model: PreTrainedModel, training: Any) -> int:
    """Tokens of a row at most: `max_length`, and what the model's context holds."""
    context = model.config.max_position_embeddings
    return min(training.max_length or context, context)


def prepare_mixtures(
    prepare: Prepare, tokenizer: PreTrainedTokenizerFast, recipe: Any, training: TrainingArguments, max_length: int
) -> tuple[Dataset, Dataset | None, list[SourceReport]]:
    """The data to train on, the held-out data, and reports of the former; one process encodes, the others map."""
    with training.main_process_first():
        train, reports = prepare(tokenizer, recipe.mixture, max_length, recipe, training.seed)
        held_out = None
        if recipe.eval_mixture:
            held_out, _ = prepare(tokenizer, recipe.eval_mixture, max_length, recipe, training.seed)
    return train, held_out, reports


def finish(
    phase: str,
    trainer: Trainer,
    recipe: Any,
    tokenizer: PreTrainedTokenizerFast,
    reports: list[SourceReport],
    start: float,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Write the adapter, the plain model and summary.json, which marks the run as finished; every process calls it.

    With `push_to_hub` the model is published then.

    Args:
        start: `time.perf_counter()` when the phase began.
        figures: the phase's own part of the summary.
    """
    run = Path(trainer.args.output_dir)
    summary = {
        "phase": phase,
        "model": recipe.model,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(time.perf_counter() - start, 1),
        "mixture": [asdict(report) for report in reports],
        **figures,
    }
    if recipe.use_peft:
        save_adapter(trainer, tokenizer, run / "adapter")
    save_final(trainer, tokenizer, run / "final")
    if is_main():
        write_summary(run, summary)
    barrier()
    if trainer.args.push_to_hub and is_main():
        publish_finished_run(run / "final", trainer.args.hub_model_id, trainer.args.hub_private_repo)
    return {**summary, "already_finished": False}
