"""Supervised fine-tuning: conversations, trained on what the assistant says, through TRL's SFTTrainer."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from genesis_hf.attention import DOCUMENTS
from genesis_hf.chat import prepare_for_chat
from genesis_hf.chat_lint import lint_chat
from genesis_hf.config import SFTRecipe, write_text
from genesis_hf.conversations.mixture import prepare_conversations
from genesis_hf.conversations.packing import PackedConversations
from genesis_hf.conversations.report import mixture_table
from genesis_hf.errors import UserError
from genesis_hf.post_training.adapters import adapter_config
from genesis_hf.post_training.conversation_trainer import ConversationTrainer, answer_loss
from genesis_hf.post_training.models import load_model, resolve_together
from genesis_hf.post_training.phase import finish, longest_row, prepare_mixtures
from genesis_hf.post_training.recipe import parse_training_recipe, resolved_yaml
from genesis_hf.post_training.run import finished_summary, run_training
from genesis_hf.post_training.samples import AnswerSamples
from genesis_hf.processes import is_main
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics

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

OTHERS_DO = {
    "assistant_only_loss": "what is trained follows from the chat format",
    "completion_only_loss": "what is trained follows from the chat format",
    "padding_free": "set packing: true, which has no padding either",
    "label_smoothing_factor": "the loss is the plain cross-entropy",
    "use_liger_kernel": "the loss never holds all logits anyway",
    "chat_template_path": "set chat_format",
    "eos_token": "it follows from chat_format",
    "average_tokens_across_devices": "the loss is the mean over all trained tokens of a step",
}
"""TRL's keys that would change nothing here or the wrong thing, and what to do instead."""


def parse_sft_recipe(argv: list[str] | None = None) -> tuple[SFTRecipe, SFTConfig]:
    """The recipe of `scripts/sft.py`: `SFTRecipe`'s keys and trl.SFTConfig's.

    Raises:
        UserError: also for TRL's keys that this phase does otherwise.
    """
    recipe, training = parse_training_recipe(SFTRecipe, SFTConfig, DEFAULTS, argv)
    defaults = {field.name: field.default for field in SFTConfig.__dataclass_fields__.values()}
    for key, instead in OTHERS_DO.items():
        if getattr(training, key) != defaults[key]:
            raise UserError(f"{key}: {getattr(training, key)} is not supported: {instead}")
    if training.packing and training.packing_strategy == "wrapped":
        raise UserError("packing_strategy: wrapped lets conversations see each other and cuts them; leave the key out")
    if training.loss_type != "nll":
        raise UserError(f"loss_type: {training.loss_type} is not supported: the loss is the plain cross-entropy")
    return recipe, training


class StartLoss(TrainerCallback):
    """Measures the held-out answers' loss before the first step, as the line of step 0; once in the life of a run."""

    def __init__(self, trainer: ConversationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The model is on its device by now, and sharded where it is to be."""
        if state.global_step == 0:
            self.trainer.evaluate()


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
    run = Path(training.output_dir)
    folder = resolve_together(recipe.model, training)
    model = load_model(folder)
    tokenizer = load_tokenizer(recipe.tokenizer or folder)
    prepare_for_chat(model, tokenizer, recipe.chat_format)
    lint_chat(tokenizer, model.config, model.generation_config)

    max_length = longest_row(model, training)
    train, held_out, reports = prepare_mixtures(prepare_conversations, tokenizer, recipe, training, max_length)
    packed = PackedConversations(train, max_length) if training.packing else None
    if is_main():
        print(mixture_table(reports))
        if packed:
            print(f"packed into {len(packed):,} rows of {max_length:,} tokens, {packed.padding:.1%} of them padding")
    resolved = resolved_yaml(recipe, training)
    if training.packing and training.use_cpu:
        model.set_attn_implementation(DOCUMENTS)  # a fifth faster there than a mask of who sees whom
    trainer = ConversationTrainer(
        model=model,
        args=training,
        train_dataset=packed or train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter_config(recipe, model, tokenizer),
    )
    if held_out:
        trainer.add_callback(StartLoss(trainer))
    if recipe.sample_steps:
        trainer.add_callback(AnswerSamples(trainer, recipe, tokenizer))
    if is_main():  # nothing is left of a recipe that was refused
        write_text(run / "recipe.yaml", resolved)
    if not run_training(trainer, training):
        return None
    figures = {
        "chat_format": recipe.chat_format,
        "held_out": {"before": start_loss(run), "after": answer_loss(trainer, held_out)} if held_out else None,
    }
    return finish("sft", trainer, recipe, tokenizer, reports, start, figures)


def start_loss(run: Path) -> dict[str, float]:
    """What `StartLoss` wrote."""
    record = next(r for r in read_metrics(run / "metrics.jsonl") if r["step"] == 0 and "eval_loss" in r)
    return {name: record[f"eval_{name}"] for name in ("loss", "stderr", "tokens")}
