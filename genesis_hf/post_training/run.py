"""Run directories of TRL's trainers, which resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from genesis_hf.config import read_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.post_training.processes import (
    LaunchedTrainer,
    clear_leftovers,
    complete_checkpoints,
    is_complete,
    refuse_other_launch,
)
from genesis_hf.post_training.recipe import resolved_yaml
from genesis_hf.processes import barrier, is_main
from genesis_hf.training.metrics import MetricsWriter
from genesis_hf.training.signals import StopSignal

FREE_KEYS = {
    *("env", "dry_run", "resume_from_checkpoint", "use_cpu", "report_to", "disable_tqdm", "logging_steps"),
    *("save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "dataloader_num_workers"),
    *("sample_prompts", "sample_steps", "sample_num_examples", "sample_max_new_tokens", "cache_dir"),
    *("per_device_eval_batch_size", "dataloader_pin_memory", "push_to_hub", "hub_model_id", "hub_private_repo"),
}
"""Keys that may differ when a run is gone on with: they change nothing about what is learned."""


def finished_summary(recipe: Any, training: TrainingArguments) -> dict[str, Any] | None:
    """The summary of a finished run of this recipe; None where there is something to do.

    Raises:
        UserError: the run directory holds another recipe's run, or `resume_from_checkpoint` is none and it isn't
            empty.
    """
    folder = Path(training.output_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if training.resume_from_checkpoint is None:
        raise UserError(f"output_dir {folder} is not empty and resume_from_checkpoint is none: name another folder")
    if (folder / "recipe.yaml").exists():
        now = yaml.safe_load(resolved_yaml(recipe, training))
        before = read_yaml(folder / "recipe.yaml")
        keys = sorted(key for key in {*now, *before} - FREE_KEYS if now.get(key) != before.get(key))
        if keys:
            raise UserError(
                f"output_dir {folder} holds a run of another recipe, which differs in {', '.join(keys)}: "
                "name another folder, or remove it"
            )
    return read_json(folder / "summary.json") or None


def checkpoint_to_resume(training: TrainingArguments) -> str | None:
    """The checkpoint to go on from, None to start; what a kill left behind is removed. Every process calls it.

    Raises:
        UserError: the folder that `resume_from_checkpoint` names is no complete checkpoint, or another launch's.
    """
    named, run = training.resume_from_checkpoint, Path(training.output_dir)
    if is_main():
        clear_leftovers(run)
        for path in run.glob("checkpoint-*"):
            if path.is_dir() and not is_complete(path):
                print(f"{path} is incomplete and removed")
                shutil.rmtree(path)
    barrier()
    if named in (None, "auto"):
        checkpoint = next(iter(complete_checkpoints(run)), None)
    else:
        checkpoint = Path(named)
        if not is_complete(checkpoint):
            raise UserError(f"resume_from_checkpoint {named}: not a complete checkpoint of this phase")
    if checkpoint is None:
        return None
    refuse_other_launch(checkpoint)
    return str(checkpoint)


class RunCallback(TrainerCallback):
    """Writes metrics.jsonl and latest.json; on SIGTERM or Ctrl-C has the step finished, saved and the run left."""

    def __init__(self, trainer: LaunchedTrainer, stop: StopSignal, checkpoint: str | None) -> None:
        self.trainer, self.stop, self.checkpoint = trainer, stop, checkpoint
        self.writer = MetricsWriter(trainer.args.output_dir, is_main(), step_of(checkpoint))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """What Trainer's checkpoints leave out comes back; a run that was stopped is one no longer."""
        self.trainer.refuse_other_precision()
        if self.checkpoint:
            self.trainer.restore_progress(self.checkpoint)
        control.should_training_stop = control.should_save = False
        return control

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Accelerate tells a sampler of its epoch, but not where several processes skip what they have trained on."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """One line a logged step."""
        self.writer.write({"step": state.global_step, **(logs or {})})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Every process leaves at the same step, even where the signal reached them at different ones."""
        leaving, _ = self.stop.agreed()
        if leaving:
            control.should_save = control.should_training_stop = True
        return control


class QuietProgress(ProgressCallback):
    """The Trainer's bar with the loss at its end, instead of a dictionary between its lines."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Loss and learning rate behind the bar."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            loss, rate = float(logs["loss"]), float(logs["learning_rate"])
            self.training_bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}")


def run_training(trainer: LaunchedTrainer, training: TrainingArguments) -> bool:
    """Train from the newest complete checkpoint or the start; False where a signal ended it early.

    Every process calls it. `trainer` is a Trainer with `LaunchedTrainer` and `LengthGroupedMixin` mixed in.
    """
    checkpoint = checkpoint_to_resume(training)
    if checkpoint and is_main():
        print(f"going on from {checkpoint}")
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not training.disable_tqdm:
        trainer.add_callback(QuietProgress)
    with StopSignal() as stop:
        callback = RunCallback(trainer, stop, checkpoint)
        # First, so that what other callbacks log when training begins is not forgotten again.
        trainer.callback_handler.callbacks.insert(0, callback)
        trainer.train(resume_from_checkpoint=checkpoint)
        # A signal in the very last step interrupts nothing.
        ended = trainer.state.global_step >= trainer.state.max_steps
    if not ended and is_main():
        print(f"stopped at step {trainer.state.global_step}; the same command goes on from there")
    return ended


def step_of(checkpoint: str | Path | None) -> int:
    """The step of a checkpoint; 0 without one."""
    return read_json(Path(checkpoint) / "trainer_state.json")["global_step"] if checkpoint else 0


def write_summary(output_dir: str | Path, summary: dict[str, Any]) -> None:
    """summary.json, which marks the run as finished."""
    write_text(Path(output_dir) / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
