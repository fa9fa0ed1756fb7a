"""A model, its card and its training checkpoint to the Hub."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from genesis_hf.checkpoint.upload import send_checkpoint
from genesis_hf.config import PublishRecipe
from genesis_hf.export import REPORT
from genesis_hf.post_training.models import LAUNCHED
from genesis_hf.publishing.card import make_card
from genesis_hf.publishing.layout import MAIN, Files, is_model_file, model_files, step_branch
from genesis_hf.publishing.model import Model, find_model, training_checkpoint
from genesis_hf.publishing.repository import Repository
from genesis_hf.publishing.secrets import refuse_secrets


@dataclass
class Published:
    """What stands on the Hub now."""

    revision: str
    commit: str
    changed: int
    """files that this changed; 0: all of it was there already"""


def publish(recipe: PublishRecipe) -> list[Published]:
    """Upload a model with its card, a commit a revision; what is on the Hub already is not sent again.

    Returns:
        the revisions in the order in which they were brought up to date: the checkpoint's branch, then `main`.

    Raises:
        UserError: a model that isn't proved, a file with a secret, a Hub that refuses or can't be reached. What was
            uploaded by then stays there, and the same command goes on.
    """
    hub = Repository(recipe.hub_model_id)
    hub.make(recipe.hub_private_repo)  # before an export takes its time
    model = find_model(recipe)
    branch = branch_of(model, recipe)
    files = published_files(model, recipe, branch)
    refuse_secrets(files)
    message = f"{model.folder.name}: model and card"
    done = []
    if recipe.include_checkpoint:
        checkpoint = training_checkpoint(model)
        done.append(Published(step_branch(model.step), *send_checkpoint(hub, checkpoint, recipe.hub_private_repo)))
    if branch != MAIN:
        hub.make_branch(branch)
        done.append(Published(branch, *hub.commit(branch, files, message, is_model_file)))
    if branch == MAIN or is_newest(hub, model):
        done.append(Published(MAIN, *hub.commit(MAIN, files, message, is_model_file)))
    if recipe.tag:
        hub.tag(recipe.tag, done[-1].commit)
    return done


def branch_of(model: Model, recipe: PublishRecipe) -> str:
    """Where the model is published, beside `main`: the branch named, or that of its step."""
    return recipe.revision or (step_branch(model.step) if model.step is not None else MAIN)


def published_files(model: Model, recipe: PublishRecipe, branch: str) -> Files:
    """The model's folder, its evaluation, and the card."""
    files = model_files(model.folder)
    if model.evaluation:
        files["evaluation.json"] = model.evaluation
    card, curve = make_card(model, recipe, branch)
    files["README.md"] = card.encode()
    if curve:
        files["loss.png"] = curve
    return files


def is_newest(hub: Repository, model: Model) -> bool:
    """Whether `main` holds no model of a later step."""
    standing = hub.read_json(REPORT, MAIN).get("training", {}).get("step")
    return standing is None or model.step is None or standing <= model.step


def describe(recipe: PublishRecipe) -> str:
    """What `--dry_run true` prints of a model whose folder stands: its files and their sizes."""
    folders = (Path(recipe.model), Path(recipe.model, "final"))
    if not any(any(folder.glob("*.safetensors")) for folder in folders):
        return f"# {recipe.model} would be exported first, then uploaded with its card"
    model = find_model(recipe)
    files = published_files(model, recipe, branch_of(model, recipe))
    refuse_secrets(files)
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in files.items()}
    lines = [f"#  {size:>15,}  {name}" for name, size in sorted(sizes.items())]
    return "\n".join([f"# {len(files)} files, {sum(sizes.values()) / 2**30:.2f} GiB", *lines])


def report(recipe: PublishRecipe, done: list[Published]) -> str:
    """A line a revision: what was done, and its page."""
    lines = []
    for one in done:
        words = f"uploaded ({one.changed} files changed)" if one.changed else "already there"
        page = f"{constants.ENDPOINT}/{recipe.hub_model_id}/tree/{one.revision}"
        lines.append(f"{one.revision}: {words}, commit {one.commit[:8]}: {page}")
    if recipe.tag:
        lines.append(f"{recipe.tag}: names {done[-1].commit[:8]}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------
# At the end of a run
# ---------------------------------------------------------------------------------------------------------

ALONE = """
from genesis_hf.config import PublishRecipe, parse_recipe
from genesis_hf.errors import report_user_errors
with report_user_errors():
    from genesis_hf.publishing.publish import publish, report
    (recipe,) = parse_recipe(PublishRecipe)
    print(report(recipe, publish(recipe)))
"""


def publish_finished_run(model: str | Path, hub_model_id: str, private: bool | None) -> None:
    """Publish what a run ended with, in a process of its own; a failure is a warning, for the run itself is done.

    A checkpoint is read with collectives where there is a process group, and the run's own process may have one.

    Args:
        model: the run directory, or the folder of its model.
        private: `hub_private_repo`; None is true.
    """
    words = ["--model", str(model), "--hub_model_id", hub_model_id]
    words += ["--hub_private_repo", "false"] if private is False else []
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    child = subprocess.run([sys.executable, "-c", ALONE, *words], env=environment, stderr=subprocess.PIPE, text=True)
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
        print(
            f"WARNING: the model is not on the Hub ({lines[-1].removeprefix('error: ')}). "
            f"Later: python scripts/push_to_hub.py {' '.join(words)}"
        )
