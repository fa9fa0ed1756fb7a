"""Which evaluation is of which model: told by the hash of the model's files, wherever either lies."""

import os
from collections.abc import Sequence
from pathlib import Path

from genesis_hf.evaluation.results import RESULTS
from genesis_hf.exporting.source import WEIGHTS
from genesis_hf.files import MODEL_FILES, folder_sha256, read_json, remembered_sha256
from genesis_hf.lineage.nodes import Node


def assign_evaluations(nodes: list[Node], roots: Sequence[str | Path]) -> None:
    """Fill `evaluations` of the models; a checkpoint's own are those of its unchanged exports."""
    found = evaluation_folders(roots)
    wanted = {read_json(folder / RESULTS).get("model_sha256"): [] for folder in found}
    for folder in found:
        wanted[read_json(folder / RESULTS).get("model_sha256")].append(folder)
    if not wanted:
        return
    for node in nodes:
        if node.kind != "checkpoint" and node.folder is not None:
            node.evaluations = wanted.get(model_sha256(node.folder), [])


def evaluation_folders(roots: Sequence[str | Path]) -> list[Path]:
    """Folders with an evaluation.json below the roots."""
    found = []
    for root in roots:
        for path, names, files in os.walk(root):
            names[:] = sorted(n for n in names if not n.startswith((".", "checkpoint")))
            if RESULTS in files:
                found.append(Path(path))
    return found


def model_sha256(folder: Path) -> str:
    """What an evaluation calls a model by."""
    return folder_sha256(folder, MODEL_FILES, remembered_sha256)


def weights_sha256(folder: Path) -> str:
    """What an export calls the Llama folder by that it was made of."""
    return folder_sha256(folder, WEIGHTS, remembered_sha256)
