"""Run directories as files to read: what a training wrote down. Never imported by training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genesis_hf.config import read_yaml
from genesis_hf.files import read_json
from genesis_hf.training.metrics import read_metrics


@dataclass
class Run:
    """One training: its folder, recipe, logged steps and, once finished, its summary."""

    folder: Path
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]


def read_run(folder: Path) -> Run:
    """A training run's files; what is missing is empty."""
    recipe = read_yaml(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else {}
    metrics = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    return Run(folder, recipe, metrics, read_json(folder / "summary.json"))
