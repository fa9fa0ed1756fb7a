"""What SFT and DPO share: recipes beside TRL's own keys, run directories that resume, batches of like lengths.

A run directory holds `recipe.yaml`, `metrics.jsonl`, TRL's `checkpoint-N` folders, and in the end `final/` (a plain
Llama folder) and `summary.json`. A run whose `summary.json` stands is finished.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch.utils.data import Sampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

from genesis_hf.config import parse_recipe, read_yaml, recipe_dict, write_text
from genesis_hf.errors import UserError
from genesis_hf.export import speak_transformers_4
from genesis_hf.files import edit_json, read_json
from genesis_hf.tokenizer import save_tokenizer
from genesis_hf.training.distributed import use_bf16
from genesis_hf.training.metrics import MetricsWriter
from genesis_hf.training.signals import StopSignal

FREE_KEYS = {
    *("env", "dry_run", "resume_from_checkpoint", "use_cpu", "report_to", "disable_tqdm", "logging_steps"),
    *("save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "dataloader_num_workers"),
}
"""Keys that may differ when a run is gone on with: they change nothing about what is learned."""

# TRL 1 uses names that transformers 5.23 warns of and 5.17 needs.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
# `datasets` sorts with an argument that pyarrow is about to rename.
warnings.filterwarnings("ignore", message="Specifying null_placement", category=FutureWarning)

MEGABATCH = 50
"""Batches' worth of rows that are sorted by length together: little padding, and still a new order every epoch."""


# ---------------------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------------------


def parse_training_recipe(kind: type, arguments: type, defaults: dict[str, Any], argv: list[str] | None = None) -> Any:
    """Read a recipe whose keys are the phase's own and those of a TRL config; see `config.parse_recipe`.

    Args:
        kind: the phase's dataclass.
        arguments: `trl.SFTConfig` or `trl.DPOConfig`.
        defaults: the phase's values for TRL's keys. Those of both phases: no GPU means `use_cpu`, bf16 where the
            hardware has it, no tracker, `resume_from_checkpoint: auto`, no gradient checkpointing.

    Returns:
        an instance of `kind` and one of `arguments`.

    Raises:
        UserError: also for what TRL refuses.
    """
    has_gpu = torch.cuda.is_available()
    common = {
        "use_cpu": not has_gpu,
        "bf16": use_bf16(None),
        "report_to": [],
        "resume_from_checkpoint": "auto",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "logging_first_step": True,
        "dataloader_pin_memory": has_gpu,
    }
    try:
        recipe, training = parse_recipe(kind, arguments, argv=argv, defaults={**common, **defaults})
    except ValueError as error:
        raise UserError(f"recipe: {' '.join(str(error).split())}") from None
    if training.output_dir in (None, "", "trainer_output"):
        raise UserError("recipe: `output_dir` is missing (the run directory)")
    training.report_to = [tracker for tracker in training.report_to if tracker]  # `none` is read as null
    return recipe, training


def resolved_recipe(recipe: Any, training: TrainingArguments) -> dict[str, Any]:
    """The phase's keys, and TRL's where they differ from its defaults, as plain values."""
    values = recipe_dict(recipe)
    for f in fields(training):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        value, default = plain(getattr(training, f.name)), plain(default)
        if f.init and value != default and isinstance(value, (str, int, float, list, dict, type(None))):
            values[f.name] = value
    return values


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def resolved_yaml(recipe: Any, training: TrainingArguments) -> str:
    """The resolved recipe as YAML text, which gives the same run again."""
    return yaml.safe_dump(resolved_recipe(recipe, training), sort_keys=False, allow_unicode=True)


def batch_plan(training: TrainingArguments, what: str) -> str:
    """A line on how many rows make an optimizer step."""
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    total = rows * accumulation * training.world_size
    return f"{total} {what} a step = {rows} a device × {accumulation} accumulation × {training.world_size} processes"


# ---------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder (`export.resolve_model`); never runs code that comes with it.

    Raises:
        UserError: no model that can be read in it.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model {folder}: can't be loaded ({' '.join(str(error).split())[:200]})") from None


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer, chat template and generation config as one folder, put in place when complete.

    It is read by transformers 4.x and 5.x with no code of ours. Called on every process.
    """
    temporary = folder.with_name(f".{folder.name}.saving")
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    (temporary / "training_args.bin").unlink(missing_ok=True)
    edit_json(temporary / "config.json", speak_transformers_4)
    save_tokenizer(tokenizer, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


# ---------------------------------------------------------------------------------------------------------
# Run directories
# ---------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------
# Order of the rows
# ---------------------------------------------------------------------------------------------------------


class LengthGroupedOrder(Sampler[int]):
    """Batches of rows of like length in shuffled order, a pure function of seed and epoch.

    transformers' own `LengthGroupedSampler` draws from the global generator, so that a resumed epoch has another
    order, and goes from long to short inside each megabatch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * MEGABATCH
        for start in range(0, len(order), size):
            order[start : start + size] = sorted(order[start : start + size], key=self.lengths.__getitem__)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return (row for batch in [*(batches[i] for i in shuffled), *short] for row in batch)


class LengthGroupedMixin:
    """A Trainer whose `train_sampling_strategy: group_by_length` is `LengthGroupedOrder`, by a `length` column."""

    lengths: Sequence[int] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length" or self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.world_size
        return LengthGroupedOrder(self.lengths, batch_size, self.args.data_seed or self.args.seed)
