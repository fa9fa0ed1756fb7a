"""The runs, exports and models below some folders."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from genesis_hf.checkpoint.folders import checkpoint_step, complete_checkpoints
from genesis_hf.config import read_yaml
from genesis_hf.errors import UserError
from genesis_hf.exporting.source import holds_llama
from genesis_hf.files import file_sha256, read_json
from genesis_hf.lineage.nodes import Kind, Node
from genesis_hf.report.log import read_records

FORK = "fork.json"
"""In a run that began as a fork: the run, step and manifest it goes on from, what was set, and `data_changed_at`, the
steps at which its data had changed before."""

CLOSED = ("checkpoints", "cache", "logs", "held_out", "data", "tokenizer")
"""Subfolders of a run in which no model is looked for; elsewhere a branch may bear such a name."""

DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading a file can raise that has another form than it was written in."""

PHASES = {"sft": "chat_format", "dpo": "length_normalized"}
"""A key that only this phase's recipe has; KTO's has neither."""


def find_nodes(roots: Sequence[str | Path]) -> list[Node]:
    """All models below the folders, without parents; a run's checkpoints by their steps.

    Raises:
        UserError: no such folder.
    """
    nodes: dict[Path, Node] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name runs, or a folder that holds them")
        for folder in walk(root):
            for node in nodes_of(folder, name_below(root, folder)):
                nodes.setdefault((node.folder or node.run).resolve(), node)
    return list(nodes.values())


def walk(root: Path) -> Iterator[Path]:
    """A folder and its subfolders, in the order of their names, but for those where no model is looked for."""

    def inside(folder: Path, names: list[str]) -> list[str]:
        if is_post_training(folder):
            return []
        closed = CLOSED if is_run(folder) else ()
        return [name for name in names if not name.startswith("checkpoint-") and name not in closed]

    return real_folders(root, inside)


def real_folders(root: Path, inside: Callable[[Path, list[str]], list[str]]) -> Iterator[Path]:
    """A folder and what is below it, links followed, but for those to a folder above: each real folder once, if it can
    by its own name.

    Args:
        inside: of a folder's subfolders, those to go into; hidden ones never are.
    """
    seen = {str(above) for above in Path(os.path.realpath(root)).parents}
    starts = [root]
    for start in starts:
        for path, names, _ in os.walk(start):
            if os.path.realpath(path) in seen:
                names.clear()
                continue
            seen.add(os.path.realpath(path))
            names[:] = inside(Path(path), sorted(name for name in names if not name.startswith(".")))
            starts += [Path(path, name) for name in names if os.path.islink(os.path.join(path, name))]
            yield Path(path)


def name_below(root: Path, folder: Path) -> str:
    return Path(root.resolve().name, folder.relative_to(root)).as_posix()


def nodes_of(folder: Path, name: str) -> list[Node]:
    """The models that a folder is or holds."""
    if (folder / "checkpoints").is_dir():
        changes = data_changes(folder)
        checkpoints = reversed(complete_checkpoints(folder))
        return [read_checkpoint(point, folder, f"{name}/{point.name}", changes) for point in checkpoints]
    if is_post_training(folder):
        return [read_post_training(folder, name)]
    if holds_llama(folder):
        return [read_model(folder, name)]
    return []


def is_run(folder: Path) -> bool:
    """Whether a folder is a training's own."""
    has_files = any((folder / name).is_file() for name in ("recipe.yaml", "metrics.jsonl"))
    return has_files or bool(complete_checkpoints(folder))


def is_post_training(folder: Path) -> bool:
    """Whether a folder is a run of SFT, DPO or KTO, which alone have a mixture, and at their end a summary."""
    return (folder / "metrics.jsonl").is_file() and (
        (folder / "summary.json").is_file() or "mixture" in recipe_of(folder)
    )


def recipe_of(folder: Path) -> dict[str, Any]:
    """A folder's recipe.yaml; {} where there is none that can be read."""
    try:
        return read_yaml(folder / "recipe.yaml")
    except UserError:
        return {}


def data_changes(run: Path) -> list[int]:
    """Steps at which a run, or what it was forked from, went on with other data (`accept_data_change`)."""
    inherited = read_json(run / FORK).get("data_changed_at")
    events = [event for event in read_records(run / "events.jsonl") if event and event.get("event") == "data change"]
    steps = [*(inherited if isinstance(inherited, list) else []), *(event.get("step") for event in events)]
    return [step for step in steps if isinstance(step, int)]


def read_checkpoint(folder: Path, run: Path, name: str, changes: Sequence[int]) -> Node:
    """A complete checkpoint of a pretraining run.

    Args:
        changes: steps at which the run went on with other data.
    """
    node = Node(name, "checkpoint", folder, run, recipe_of(folder), checkpoint_step(folder))
    note_recipe(node)
    node.data_changed = min((step for step in changes if step < node.step), default=None)
    with noted(node, folder / "manifest.json") as file:
        node.identity = file_sha256(file)
    with noted(node, folder / "trainer_state.json") as file:
        state = json_object(file)
        stream, since = state["stream"], state.get("repeated_since") or {}
        node.repeated = {
            source: f"pass {epoch + 1}" + (f", repeated since step {since[source]:,}" if source in since else "")
            for source, epoch in stream["epochs"].items()
            if epoch
        }
        node.tokens = {source: int(count) for source, count in stream["tokens"].items()}
        held_out = state.get("held_out") or {}
        bits = {source: float(figures["bits_per_byte"]) for source, figures in held_out.items()}
        node.figures = {"loss": state.get("loss"), "held_out": bits}
    return node


def read_post_training(folder: Path, name: str) -> Node:
    """SFT, DPO or KTO, finished or not."""
    recipe, summary_file, final = recipe_of(folder), folder / "summary.json", folder / "final"
    node = Node(
        name,
        next((phase for phase, key in PHASES.items() if key in recipe), "kto"),
        final if summary_file.is_file() and holds_llama(final) else None,
        folder,
        recipe,
        start=str(recipe["model"]) if recipe.get("model") else None,
    )
    note_recipe(node)
    if summary_file.is_file():
        with noted(node, summary_file):
            summary = json_object(summary_file)
            node.kind = summary["phase"] if summary.get("phase") in get_args(Kind) else node.kind
            epochs = float(summary.get("epochs", 1))
            node.tokens = {source["name"]: round(source["tokens"] * epochs) for source in summary["mixture"]}
            node.repeated = {source: f"{epochs:g} epochs" for source in node.tokens if epochs > 1}
            node.step = int(summary["steps"])
    return node


def read_model(folder: Path, name: str) -> Node:
    """An exported folder, or a Llama folder from elsewhere."""
    parity_file = folder / "parity.json"
    node = Node(name, "export" if parity_file.is_file() else "model", folder, folder)
    if parity_file.is_file():
        with noted(node, parity_file):
            parity = json_object(parity_file)
            node.start = parity.get("checkpoint")
            training = parity.get("training") or {}
            node.step = training.get("step")
            node.figures = {key: training[key] for key in ("loss", "held_out") if key in training}
    return node


def note_recipe(node: Node) -> None:
    """Say of a training without a recipe that it has none."""
    if not node.recipe:
        node.unreadable["recipe.yaml"] = "no recipe in it"


@contextmanager
def noted(node: Node, file: Path) -> Iterator[Path]:
    """While a file is read: if it is damaged, the node says so, and what the file would have told stays unknown."""
    try:
        yield file
    except DAMAGE as error:
        node.unreadable[file.name] = damage(error)


def damage(error: Exception) -> str:
    """What is wrong with a file that led to an error, in a few words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "not valid JSON"
    return f"it has no {error}" if isinstance(error, KeyError) else "its values are not of the form that was written"


def json_object(file: Path) -> dict[str, Any]:
    """A file's JSON object; raises OSError, ValueError or TypeError."""
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"{file} holds no JSON object")
    return value
