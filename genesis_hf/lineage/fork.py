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
from genesis_hf.config import SECRET, PretrainRecipe, build, read_yaml, recipe_dict, recipe_yaml, set_dotted, write_text
from genesis_hf.data.fingerprint import PLACE
from genesis_hf.errors import UserError
from genesis_hf.files import file_sha256, read_json
from genesis_hf.lineage.folders import FORK, data_changes

FIXED = ("model", *PLACE)
"""A checkpoint can't go on with other values of these."""

CHANGES = {"weights": "weights={SOURCE: NUMBER, …}", "seed": "seed=NUMBER"}
"""Keys that become an entry of `data_changes`, and their form."""

ELSEWHERE = {
    "output_dir": "name the new run with --output_dir",
    "stop_at_step": "give --stop_at_step to scripts/pretrain.py",
    "resume_from_checkpoint": "a fork goes on from its own checkpoint",
}
"""Keys that a fork sets itself, and what to do instead."""

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
        UserError: no such checkpoint, or a damaged one; a key that can't change on the way; a folder in use, or one
            that can't be made.
    """
    run = Path(run) if Path(run).name not in ("", "..") else Path(run).resolve()
    source = checkpoint_folder(run, step)
    if not (source / "manifest.json").is_file():
        there = ", ".join(f"{checkpoint_step(folder):,}" for folder in complete_checkpoints(run)) or "none"
        raise UserError(f"{run} holds no complete checkpoint of step {step:,}; complete there: {there}")
    problems = verify_checkpoint(source)
    if problems:
        raise UserError(f"{source} is damaged: {problems[0]}")
    target = Path(output_dir or f"{run}-from-{step}")
    if os.path.lexists(target):
        raise UserError(f"{target} exists; name another folder with --output_dir")
    values = read_yaml((run if began_here(run, source) else source) / "recipe.yaml")
    recipe = forked_recipe(values, step, settings, target)
    check_rows(source, recipe)

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, checkpoint_folder(partial, step), copy_function=link_or_copy)
        write_text(partial / "checkpoints" / "latest", f"{source.name}\n")
        write_text(partial / "recipe.yaml", recipe_yaml(recipe))
        shutil.copy2(source / "config.json", partial)
        parent = {"run": str(run), "step": step, "manifest_sha256": file_sha256(source / "manifest.json")}
        changed = [changed for changed in data_changes(run) if changed < step]
        said = {**parent, "set": [without_secret(setting) for setting in settings], "data_changed_at": changed}
        write_text(partial / FORK, json.dumps(said, indent=2) + "\n")
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise UserError(f"{target} can't be made ({reason}); name another folder with --output_dir") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def began_here(run: Path, checkpoint: Path) -> bool:
    """Whether a run is a fork whose first checkpoint is this one: another run's, with that run's recipe in it."""
    return read_json(run / FORK).get("manifest_sha256") == file_sha256(checkpoint / "manifest.json")


def without_secret(setting: str) -> str:
    """`key=value` as it may be written down: `--set env.HF_TOKEN=…` holds a secret, told by its name."""
    key = setting.partition("=")[0]
    secret = key == "env" or (key.startswith("env.") and SECRET.search(key.removeprefix("env.")))
    return f"{key}={NOT_STORED}" if secret else setting


def forked_recipe(values: dict[str, Any], step: int, settings: Sequence[str], output_dir: Path) -> PretrainRecipe:
    """A recipe's values with what the fork sets."""
    values["env"] = {key: value for key, value in (values.get("env") or {}).items() if value != NOT_STORED}
    change: dict[str, Any] = {}
    for setting in settings:
        key, value = parsed(setting)
        if key in CHANGES:
            change[key] = value
        elif "." in key:
            set_dotted(values, key, setting.partition("=")[2])
        else:
            values[key] = value
    values.update(output_dir=str(output_dir), resume_from_checkpoint="auto", stop_at_step=None)
    values = recipe_dict(build(PretrainRecipe, values, "the fork's recipe"))
    values["keep_steps"] = [kept for kept in values["keep_steps"] if kept > step]
    if change:
        values["data_changes"].append({"step": step, **change})
    recipe = build(PretrainRecipe, values, "the fork's recipe")
    if recipe.last_step <= step:
        raise UserError(f"the schedule ends at step {recipe.last_step:,}; a fork at {step:,} needs --set max_steps=…")
    return recipe


def parsed(setting: str) -> tuple[str, Any]:
    """`key=value` as a pair; the value is read as YAML where it is a list, a mapping, or nested.

    Raises:
        UserError: another form, not valid YAML, or a key that a fork can't set.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting}: give KEY=VALUE")
    first = key.split(".")[0]
    if first in FIXED:
        raise UserError(f"--set {key}: a run can't go on with another {key}; start one afresh")
    if first in ELSEWHERE:
        raise UserError(f"--set {key}: {ELSEWHERE[first]}")
    if key not in CHANGES and "." not in key and not value.startswith(("[", "{")):
        return key, value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {setting}: {value!r} is not valid YAML") from None
    if key in CHANGES and read is None:
        raise UserError(f"--set {setting}: give {CHANGES[key]}, or leave it out to keep what the run has")
    return key, read


def check_rows(checkpoint: Path, recipe: PretrainRecipe) -> None:
    """Raise `UserError` where a step of the recipe has other rows than the checkpoint was trained with."""
    rows = read_json(checkpoint / "trainer_state.json").get("rows_per_step")
    own = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * (recipe.num_processes or 0)
    if recipe.num_processes and rows and own != rows:
        raise UserError(f"the checkpoint was trained with {rows} rows a step and the fork's recipe has {own}")


def link_or_copy(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none (another disk, an object store)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
