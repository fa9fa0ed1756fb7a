"""A training checkpoint from the Hub into a run directory, from which training goes on.

It is downloaded to `OUTPUT_DIR/.pull`, verified by its manifest, and renamed; then the recipe, the figures so far and
`latest` follow. Interrupted at any point, the same call goes on.
"""

import os
import shutil
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from genesis_hf.checkpoint.folders import checkpoint_folder, checkpoint_step, complete_checkpoints, put_in_place
from genesis_hf.checkpoint.manifest import file_problem, verify_checkpoint
from genesis_hf.checkpoint.space import free_bytes
from genesis_hf.config import PullRecipe, read_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import read_json, sync_folder
from genesis_hf.publishing.layout import CHECKPOINT, RUN, branch_step, is_training_file, manifest_sha256
from genesis_hf.publishing.repository import Repository

NEWEST = "newest"

MANIFEST, STATE = f"{CHECKPOINT}/manifest.json", f"{CHECKPOINT}/trainer_state.json"

PLACE_KEYS = {
    *("output_dir", "resume_from_checkpoint", "env", "dry_run", "tokenizer", "model", "report_to", "stop_at_step"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "save_copy_dir", "logging_steps", "save_steps"),
    *("save_minutes", "save_total_limit", "save_async", "dataloader_num_workers", "dataloader_prefetch_factor"),
}
"""Keys in which a run may differ from itself on another machine."""


@dataclass
class Pulled:
    """A checkpoint that lies in a run directory now."""

    checkpoint: Path
    revision: str
    processes: int
    """that wrote it"""
    already_there: bool = False
    notes: list[str] = field(default_factory=list)
    """what the recipe names and this machine lacks"""


def pull_checkpoint(recipe: PullRecipe) -> Pulled:
    """Bring a revision's training checkpoint into `output_dir`.

    Raises:
        UserError: no such revision, or one without a training checkpoint; another run in `output_dir`, or one that is
            further; no room; a download that was damaged; a Hub that refuses or can't be reached.
    """
    hub, run = Repository(recipe.hub_model_id), Path(recipe.output_dir)
    revision = find_revision(hub, recipe.revision)
    commit = hub.head(revision)
    sizes = {path: size for path, size in hub.sizes(commit).items() if is_training_file(path)}
    if MANIFEST not in sizes:
        raise UserError(f"{revision} of {hub.name} holds no training checkpoint, only a model ({MANIFEST} is missing)")
    staging = run / ".pull" / revision
    clear_other_downloads(staging)
    hub.download(commit, [f"{RUN}/*", MANIFEST, STATE], staging)
    state = read_json(staging / STATE)
    folder = checkpoint_folder(run, state.get("step", 0))
    pulled = Pulled(folder, revision, state.get("num_processes", 1))
    values, pulled.notes = recipe_for_here(staging / RUN / "recipe.yaml", run)
    try:
        refuse_other_run(run, folder, values, staging)
    except UserError:
        shutil.rmtree(staging.parent)
        raise
    pulled.already_there = manifest_sha256(folder) == manifest_sha256(staging / CHECKPOINT)
    if not pulled.already_there:
        refuse_full_disk(run, staging, sizes)
        hub.download(commit, [f"{CHECKPOINT}/*"], staging)
        verify_download(staging / CHECKPOINT)
        flush(staging / CHECKPOINT)
        folder.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(staging / CHECKPOINT, folder)
        sync_folder(folder.parent)
    place_run_files(staging / RUN, folder, values)
    shutil.rmtree(run / ".pull")
    return pulled


def find_revision(hub: Repository, revision: str) -> str:
    """The branch to pull: the one named, or that of the latest step which holds a training checkpoint."""
    if revision != NEWEST:
        return revision
    branches = [branch for branch in hub.branches() if branch_step(branch) is not None]
    for branch in sorted(branches, key=branch_step, reverse=True):
        if MANIFEST in hub.sizes(branch):
            return branch
    raise UserError(f"{hub.name} holds no training checkpoint (looked at {len(branches)} branches step-…)")


def clear_other_downloads(staging: Path) -> None:
    """Remove what was begun of another revision."""
    for other in staging.parent.glob("*"):
        if other != staging:
            shutil.rmtree(other, ignore_errors=True)


def refuse_other_run(run: Path, folder: Path, values: dict[str, Any], staging: Path) -> None:
    """Raise `UserError` unless the run directory is empty, or holds the same run no further than this."""
    standing = read_yaml(run / "recipe.yaml") if (run / "recipe.yaml").is_file() else {}
    complete = complete_checkpoints(run)
    if not standing and (complete or (run / "metrics.jsonl").is_file()):
        raise UserError(f"output_dir {run} holds a run without a recipe.yaml: name another folder")
    keys = sorted(key for key in {*standing, *values} - PLACE_KEYS if standing.get(key) != values.get(key))
    if standing and keys:
        raise UserError(f"output_dir {run} holds another run, which differs in {', '.join(keys)}: name another folder")
    step = checkpoint_step(folder)
    if complete and checkpoint_step(complete[0]) > step:
        raise UserError(f"output_dir {run} is at {complete[0].name} already, past step {step:,}: name another folder")
    if folder in complete and manifest_sha256(folder) != manifest_sha256(staging / CHECKPOINT):
        raise UserError(f"{folder} is another checkpoint of that step: name another folder")


def refuse_full_disk(run: Path, staging: Path, sizes: dict[str, int]) -> None:
    """Raise `UserError` where what is still to come has no room."""
    here = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    needed, free = sum(sizes.values()) - here, free_bytes(run)
    if free < needed:
        raise UserError(
            f"output_dir {run}: {needed / 2**30:.2f} GiB are to come and {free / 2**30:.2f} GiB are free; make room"
        )


def verify_download(checkpoint: Path) -> None:
    """Raise `UserError` unless training can go on from what was downloaded; files that are not as they should be go."""
    problems = verify_checkpoint(checkpoint)
    if not problems:
        return
    entries = read_json(checkpoint / "manifest.json").get("files", {})
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        entry = entries.get(path.relative_to(checkpoint).as_posix())
        if entry is None or file_problem(path, entry["size"], entry["sha256"], None):
            path.unlink()
    words = problems[0].replace(f"{checkpoint}/", "")
    raise UserError(f"the download was damaged or is not complete ({words}): the same command fetches what is missing")


def flush(folder: Path) -> None:
    """Bring a downloaded folder to the disk before it gets its name."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------------------
# The run around it
# ---------------------------------------------------------------------------------------------------------


def recipe_for_here(path: Path, run: Path) -> tuple[dict[str, Any], list[str]]:
    """The run's recipe for another folder and machine, and what of it is to be seen to here.

    Tokenizer and model constants are taken from the checkpoint where their folders aren't here. Variables whose
    values were not stored are left out: they would stand in the way of the real ones.
    """
    values, notes = read_yaml(path), []
    values.update(output_dir=str(run), resume_from_checkpoint="auto", stop_at_step=None)
    stored = {key: value for key, value in (values.get("env") or {}).items() if value != "(not stored)"}
    hidden = sorted(set(values.get("env") or {}) - set(stored))
    if hidden:
        notes.append(f"set in the environment, for their values were not stored: {', '.join(hidden)}")
    if stored:
        notes.append(f"the recipe sets: {', '.join(f'{key}={value}' for key, value in stored.items())}")
    values["env"] = stored
    if not Path(values["tokenizer"]).is_dir():
        values["tokenizer"] = str(run / "tokenizer")
    if isinstance(values["model"], str) and not Path(values["model"]).exists():
        values["model"] = str(run)
    for source in [*values["sources"], *values.get("eval_sources", [])]:
        patterns = [*(source.get("paths") or []), *([source["prepared"]] if source.get("prepared") else [])]
        notes += [f"not here: {p} (source {source['name']})" for p in patterns if not glob(p, recursive=True)]
    return values, notes


def place_run_files(pulled: Path, checkpoint: Path, values: dict[str, Any]) -> None:
    """Put recipe, figures, constants and tokenizer where the run has them; `latest` last."""
    run = checkpoint.parent.parent
    for path in pulled.glob("*.jsonl"):
        os.replace(path, run / path.name)
    shutil.copyfile(checkpoint / "config.json", run / "config.json")
    if values["tokenizer"] == str(run / "tokenizer"):
        shutil.copytree(checkpoint / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    write_text(run / "recipe.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_text(checkpoint.parent / "latest", checkpoint.name + "\n")
    sync_folder(run)


def describe(recipe: PullRecipe) -> str:
    """What `--dry_run true` prints: the revision and its size."""
    hub = Repository(recipe.hub_model_id)
    revision = find_revision(hub, recipe.revision)
    size = sum(size for path, size in hub.sizes(revision).items() if is_training_file(path))
    return f"# {revision}: {size / 2**30:.2f} GiB to {recipe.output_dir}"


def how_to_go_on(pulled: Pulled) -> str:
    """The command that continues training, and what has to be seen to before."""
    run, several = pulled.checkpoint.parent.parent, pulled.processes > 1
    lines = [f"  {note}" for note in pulled.notes]
    if several:
        lines.append(f"  {pulled.processes} processes wrote it; on another number tokens a step stay what they are")
    launch = "accelerate launch --config_file accelerate_configs/YOURS.yaml" if several else "python"
    return "\n".join([*lines, f"{launch} scripts/pretrain.py --config {run}/recipe.yaml"])
