"""The runs, exports and models below some folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_step, complete_checkpoints, read_trainer_state
from genesis_hf.config import read_yaml
from genesis_hf.errors import UserError
from genesis_hf.exporting.source import holds_llama
from genesis_hf.files import file_sha256, read_json
from genesis_hf.lineage.nodes import Node

FORK = "fork.json"
"""In a run that began as a fork: the run, step and manifest it goes on from, and what was set."""

CLOSED = ("checkpoints", "cache", "logs", "stages", "held_out", "data", "tokenizer")
"""Subfolders in which no model is looked for."""

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
    for path, names, _ in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith((".", "checkpoint-")) and n not in CLOSED)
        if is_post_training(Path(path)):
            names.clear()
        yield Path(path)


def name_below(root: Path, folder: Path) -> str:
    return Path(root.resolve().name, folder.relative_to(root)).as_posix()


def nodes_of(folder: Path, name: str) -> list[Node]:
    """The models that a folder is or holds."""
    if (folder / "checkpoints").is_dir():
        return [read_checkpoint(c, folder, f"{name}/{c.name}") for c in reversed(complete_checkpoints(folder))]
    if is_post_training(folder):
        return [read_post_training(folder, name)]
    if holds_llama(folder):
        return [read_model(folder, name)]
    return []


def is_post_training(folder: Path) -> bool:
    return (
        (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file() and "mixture" in recipe_of(folder)
    )


def recipe_of(folder: Path) -> dict[str, Any]:
    """A folder's recipe.yaml; {} where there is none that can be read."""
    try:
        return read_yaml(folder / "recipe.yaml")
    except UserError:
        return {}


def read_checkpoint(folder: Path, run: Path, name: str) -> Node:
    """A complete checkpoint of a pretraining run."""
    try:
        state = read_trainer_state(folder)
        stream = state["stream"]
    except (OSError, ValueError, LookupError):
        return Node(name, "checkpoint", folder, run, recipe_of(folder), checkpoint_step(folder))
    since = state.get("repeated_since", {})
    repeated = {
        source: f"pass {epoch + 1}" + (f", repeated since step {since[source]:,}" if source in since else "")
        for source, epoch in stream["epochs"].items()
        if epoch
    }
    return Node(
        name,
        "checkpoint",
        folder,
        run,
        recipe_of(folder),
        state["step"],
        stream["tokens"],
        repeated,
        {key: state[key] for key in ("loss", "held_out") if key in state},
        file_sha256(folder / "manifest.json"),
    )


def read_post_training(folder: Path, name: str) -> Node:
    """SFT, DPO or KTO, finished or not."""
    recipe, summary = recipe_of(folder), read_json(folder / "summary.json")
    kind = summary.get("phase") or next((phase for phase, key in PHASES.items() if key in recipe), "kto")
    epochs = summary.get("epochs", 1)
    final = folder / "final"
    return Node(
        name,
        kind,
        final if summary and holds_llama(final) else None,
        folder,
        recipe,
        summary.get("steps"),
        {source["name"]: round(source["tokens"] * epochs) for source in summary.get("mixture", [])},
        {source["name"]: f"{epochs:g} epochs" for source in summary.get("mixture", []) if epochs > 1},
        {"held_out": summary.get("held_out")} if summary.get("held_out") else {},
        start=str(recipe["model"]) if recipe.get("model") else None,
    )


def read_model(folder: Path, name: str) -> Node:
    """An exported folder, or a Llama folder from elsewhere."""
    parity = read_json(folder / "parity.json")
    training = parity.get("training", {})
    return Node(
        name,
        "export" if parity else "model",
        folder,
        folder,
        step=training.get("step"),
        figures={key: training[key] for key in ("loss", "held_out") if key in training},
        start=parity.get("checkpoint"),
    )
