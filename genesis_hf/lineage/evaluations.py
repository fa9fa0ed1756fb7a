"""Which evaluation is of which model: told by the hash of the model's files, wherever either lies."""

from collections.abc import Sequence
from pathlib import Path

from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import Evaluated, load_evaluation
from genesis_hf.evaluation.results import RESULTS
from genesis_hf.exporting.source import WEIGHTS
from genesis_hf.files import MODEL_FILES, folder_sha256, read_json, remembered_sha256
from genesis_hf.lineage.folders import DAMAGE, damage, real_folders
from genesis_hf.lineage.nodes import Node


def assign_evaluations(nodes: list[Node], roots: Sequence[str | Path]) -> None:
    """Fill `evaluations` of the models; a checkpoint's own are those of its unchanged exports."""
    wanted: dict[str, list[Path]] = {}
    for folder in evaluation_folders(roots):
        wanted.setdefault(str(read_json(folder / RESULTS).get("model_sha256")), []).append(folder)
    if not wanted:
        return
    for node in nodes:
        if node.kind != "checkpoint" and node.folder is not None:
            node.evaluations = wanted.get(model_sha256(node.folder), [])


def evaluation_folders(roots: Sequence[str | Path]) -> list[Path]:
    """Folders with an evaluation.json below the roots."""

    def inside(_: Path, names: list[str]) -> list[str]:
        return [name for name in names if not name.startswith("checkpoint")]

    folders = [folder for root in map(Path, roots) for folder in real_folders(root, inside)]
    return [folder for folder in folders if (folder / RESULTS).is_file()]


def read_evaluation(folder: Path) -> Evaluated:
    """An evaluation whose scores can be shown.

    Raises:
        UserError: the file is damaged.
    """
    try:
        evaluation = load_evaluation(folder)
        for metrics in evaluation.values["tasks"].values():
            for figure in metrics.values():
                _ = [float(figure["value"]), *(float(figure.get(key) or 0) for key in ("stderr", "chance"))]
    except DAMAGE as error:
        raise UserError(f"{folder / RESULTS}: {damage(error)}; evaluate the model anew") from None
    return evaluation


def model_sha256(folder: Path) -> str:
    """What an evaluation calls a model by."""
    return folder_sha256(folder, MODEL_FILES, remembered_sha256)


def weights_sha256(folder: Path) -> str:
    """What an export calls the Llama folder by that it was made of."""
    return folder_sha256(folder, WEIGHTS, remembered_sha256)
