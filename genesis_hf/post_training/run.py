"""Run directories of TRL's trainers, which resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from genesis_hf.config import read_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.post_training.recipe import resolved_yaml
from genesis_hf.training.metrics import MetricsWriter
from genesis_hf.training.signals import StopSignal

FREE_KEYS = {
    *("env", "dry_run", "resume_from_checkpoint", "use_cpu", "report_to", "disable_tqdm", "logging_steps"),
    *("save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "dataloader_num_workers"),
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
    """The checkpoint to go on from, None to start; incomplete ones that a kill left behind are removed.

    Raises:
        UserError: the folder that `resume_from_checkpoint` names is no complete checkpoint.
    """
    named = training.resume_from_checkpoint
    if named not in (None, "auto"):
        if not is_complete(Path(named)):
            raise UserError(f"resume_from_checkpoint {named}: not a complete checkpoint of this phase")
        return named
    found = [path for path in Path(training.output_dir).glob("checkpoint-*") if path.is_dir()]
    for path in found:
        if not is_complete(path) and training.should_save:
            print(f"{path} is incomplete and removed")
            shutil.rmtree(path)
    complete = [path for path in found if is_complete(path)]
    return (
        str(max(complete, key=lambda path: read_json(path / "trainer_state.json")["global_step"], default="")) or None
    )


def is_complete(checkpoint: Path) -> bool:
    """Whether everything is there; trainer_state.json is what Trainer writes last."""
    parts = ("model*.safetensors", "optimizer*", "scheduler.pt", "rng_state*")
    return "global_step" in read_json(checkpoint / "trainer_state.json") and all(
        any(checkpoint.glob(part)) for part in parts
    )


class RunCallback(TrainerCallback):
    """Writes metrics.jsonl; on SIGTERM or Ctrl-C has the step finished, saved and the run left."""

    def __init__(self, output_dir: str, stop: StopSignal, resumed_step: int) -> None:
        self.stop = stop
        self.writer = MetricsWriter(output_dir, not dist.is_initialized() or dist.get_rank() == 0, resumed_step)

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


def run_training(trainer: Trainer, training: TrainingArguments) -> bool:
    """Train from the newest complete checkpoint or the start; False where a signal ended it early."""
    checkpoint = checkpoint_to_resume(training)
    resumed_step = read_json(Path(checkpoint) / "trainer_state.json")["global_step"] if checkpoint else 0
    if checkpoint:
        print(f"going on from {checkpoint}")
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietProgress)
    with StopSignal() as stop:
        trainer.add_callback(RunCallback(training.output_dir, stop, resumed_step))
        trainer.train(resume_from_checkpoint=checkpoint)
        # A signal in the very last step interrupts nothing.
        ended = trainer.state.global_step >= trainer.state.max_steps
    if not ended:
        print(f"stopped at step {trainer.state.global_step}; the same command goes on from there")
    return ended


def write_summary(output_dir: str | Path, summary: dict[str, Any]) -> None:
    """summary.json, which marks the run as finished."""
    write_text(Path(output_dir) / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
