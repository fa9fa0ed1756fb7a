"""The results of an evaluation, as files that others read.

evaluation.json           tasks → metrics → value, stderr, chance, n; provenance of each task
evaluation_items.jsonl    a line a task and metric: the value of every item, for paired tests
"""

import json
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.files import read_json

RESULTS, ITEMS = "evaluation.json", "evaluation_items.jsonl"

Items = dict[tuple[str, str], dict[str, Any]]
"""(task, metric) → its line of the items file: `task`, `metric`, `aggregation`, `values`."""


class Evaluation:
    """The two result files of one model, rewritten whole after every task."""

    def __init__(self, model: str, model_sha256: str, output_dir: Path, use_cache: bool = True) -> None:
        """Go on with what stands in `output_dir` if the same model wrote it, else start with nothing."""
        self.output_dir = output_dir
        self.values = {"model": model, "model_sha256": model_sha256, "tasks": {}, "provenance": {}}
        self.items: Items = {}
        standing = read_json(output_dir / RESULTS)
        if use_cache and standing.get("model_sha256") == model_sha256:
            self.values, self.items = standing, read_items(output_dir)

    def holds(self, task: str, provenance: dict[str, Any]) -> bool:
        """Whether this task's scores stand here, measured with the same settings on the same data."""
        recorded = self.values["provenance"].get(task, {})
        return all(recorded.get(key) == value for key, value in provenance.items())

    def add(self, task: str, metrics: dict[str, Any], items: list[dict[str, Any]], provenance: dict[str, Any]) -> None:
        self.values["tasks"][task] = metrics
        self.values["provenance"][task] = provenance
        self.items.update({(task, line["metric"]): {"task": task, **line} for line in items})

    def write(self) -> None:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.items.values()]
        write_text(self.output_dir / ITEMS, "".join(lines))
        write_text(self.output_dir / RESULTS, json.dumps(self.values, indent=2, ensure_ascii=False) + "\n")


def read_items(folder: Path) -> Items:
    """(task, metric) → its line of the items file; {} where there is none."""
    path = folder / ITEMS
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["task"], line["metric"]): line for line in lines}
