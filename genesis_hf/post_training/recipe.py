"""Recipes beside TRL's own keys."""

import warnings
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from genesis_hf.config import SECRET, check_repository, parse_recipe, recipe_dict
from genesis_hf.errors import UserError
from genesis_hf.training.distributed import use_bf16

# TRL 1 uses names that transformers 5.23 warns of and 5.17 needs.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
# `datasets` sorts with an argument that pyarrow is about to rename.
warnings.filterwarnings("ignore", message="Specifying null_placement", category=FutureWarning)


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
        "ddp_find_unused_parameters": False,
    }
    try:
        recipe, training = parse_recipe(kind, arguments, argv=argv, defaults={**common, **defaults})
    except ValueError as error:
        raise UserError(f"recipe: {' '.join(str(error).split())}") from None
    if training.output_dir in (None, "", "trainer_output"):
        raise UserError("recipe: `output_dir` is missing (the run directory)")
    refuse_hub_settings(training)
    training.report_to = [tracker for tracker in training.report_to if tracker]  # `none` is read as null
    return recipe, training


def refuse_hub_settings(training: TrainingArguments) -> None:
    """Raise `UserError` for a token in a recipe, which is written down, and for what `push_to_hub` doesn't do here."""
    if training.hub_token is not None:
        raise UserError("hub_token: a recipe is written down; set HF_TOKEN in the environment, or run `hf auth login`")
    if training.push_to_hub:
        check_repository(training.hub_model_id)
    others = {f.name: f.default for f in fields(TrainingArguments)}
    for key in ("hub_strategy", "hub_always_push", "hub_revision"):
        if plain(getattr(training, key)) != plain(others[key]):
            raise UserError(f"{key} is not supported: the finished model is published, checkpoints stay here")


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
    """The resolved recipe as YAML text, which gives the same run again; without secrets in `env`."""
    values = resolved_recipe(recipe, training)
    values["env"] = {key: "(not stored)" if SECRET.search(key) else value for key, value in values["env"].items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def batch_plan(training: TrainingArguments, what: str) -> str:
    """A line on how many rows make an optimizer step."""
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    total = rows * accumulation * training.world_size
    return f"{total} {what} a step = {rows} a device × {accumulation} accumulation × {training.world_size} processes"
