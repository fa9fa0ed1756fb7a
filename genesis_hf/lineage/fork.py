"""A new run that goes on from a checkpoint of another, with another recipe from there on."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from genesis_hf.checkpoint.folders import checkpoint_folder, checkpoint_step, complete_checkpoints
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.config import PretrainRecipe, build, read_yaml, recipe_yaml, set_dotted, write_text
from genesis_hf.data.fingerprint import PLACE
from genesis_hf.errors import UserError
from genesis_hf.files import file_sha256, read_json
from genesis_hf.lineage.folders import FORK

FIXED = ("model", *PLACE)
"""A checkpoint can't go on with other values of these."""

NOT_STORED = "(not stored)"
"""In recipe.yaml, what stands for a secret."""


def fork(run: str | Path, step: int, settings: Sequence[str] = (), output_dir: str | Path | None = None) -> Path:
    """Make a run directory that holds one checkpoint of another run and a recipe that says how it goes on.

    The checkpoint's files are linked where the file system can, else copied: a link costs no space, and deleting one
    leaves the other. `weights={…}` and `seed=N` become an entry of `data_changes` from this step on, so that the order
    of rows stays exact; all other keys are set as they are.

    Args:
        run: a pretraining run.
        step: of one of its complete checkpoints.
        settings: `key=value` of the recipe, dotted where it is nested.
        output_dir: the new run directory; default `RUN-from-STEP`.

    Returns:
        the new run directory.

    Raises:
        UserError: no such checkpoint, or a damaged one; a key that can't change on the way; a folder in use.
    """
    run = Path(run)
    source = checkpoint_folder(run, step)
    if not (source / "manifest.json").is_file():
        there = ", ".join(f"{checkpoint_step(folder):,}" for folder in complete_checkpoints(run)) or "none"
        raise UserError(f"{run} holds no complete checkpoint of step {step:,}; complete there: {there}")
    problems = verify_checkpoint(source)
    if problems:
        raise UserError(f"{source} is damaged: {problems[0]}")
    target = Path(output_dir or f"{run}-from-{step}")
    if target.exists():
        raise UserError(f"{target} exists; name another folder with --output_dir")
    recipe = forked_recipe(source, step, settings, target)

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, checkpoint_folder(partial, step), copy_function=link_or_copy)
        write_text(partial / "checkpoints" / "latest", f"{source.name}\n")
        write_text(partial / "recipe.yaml", recipe_yaml(recipe))
        shutil.copy2(source / "config.json", partial)
        parent = {"run": str(run), "step": step, "manifest_sha256": file_sha256(source / "manifest.json")}
        write_text(partial / FORK, json.dumps({**parent, "set": list(settings)}, indent=2) + "\n")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def forked_recipe(checkpoint: Path, step: int, settings: Sequence[str], output_dir: Path) -> PretrainRecipe:
    """The recipe that a checkpoint was saved under, with what the fork sets."""
    values = read_yaml(checkpoint / "recipe.yaml")
    values["env"] = {key: value for key, value in (values.get("env") or {}).items() if value != NOT_STORED}
    change: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: give KEY=VALUE")
        if key.split(".")[0] in FIXED:
            raise UserError(f"--set {key}: a run can't go on with another {key}; start one afresh")
        if key in ("weights", "seed"):
            change[key] = yaml.safe_load(value)
        else:
            set_dotted(values, key, value)
    if change:
        values["data_changes"] = [*(values.get("data_changes") or []), {"step": step, **change}]
    values.update(output_dir=str(output_dir), resume_from_checkpoint="auto", stop_at_step=None)
    if values.get("keep_steps"):
        values["keep_steps"] = [kept for kept in values["keep_steps"] if kept > step]
    recipe = build(PretrainRecipe, values, "the fork's recipe")
    if recipe.last_step <= step:
        raise UserError(f"the schedule ends at step {recipe.last_step:,}; a fork at {step:,} needs --set max_steps=…")
    rows = read_json(checkpoint / "trainer_state.json").get("rows_per_step")
    own = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * (recipe.num_processes or 0)
    if recipe.num_processes and rows and own != rows:
        raise UserError(f"the checkpoint was trained with {rows} rows a step and the fork's recipe has {own}")
    return recipe


def link_or_copy(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none (another disk, an object store)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
