"""A comparison as bars with error bars, each set of bars beside its chance level."""

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INTERVAL = 1.96
"""Standard errors either way: 95 %."""


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw scores between 0 and 1 (accuracies) as bars, and below them the losses, as PNG or SVG.

    Error bars are 95 % intervals, a dash in each group of bars is the chance level. Impossible figures are hatched.
    """
    rows = [row for row in result["rows"] if not row["task"].startswith("held_out/")]
    shares = [row for row in rows if row["higher_is_better"] and 0 <= row["value"] <= 1]
    losses = [row for row in result["rows"] if row["metric"] in ("bits_per_byte", "loss")]
    panels = [(panel, label) for panel, label in ((shares, "score"), (losses, "bits per byte")) if panel]
    widest = max([len(groups_of(panel)) for panel, _ in panels], default=1)
    size = (max(6.0, 1.2 + 0.35 * widest * (len(result["models"]) + 1)), 3.6 * max(1, len(panels)) + 0.6)
    figure, axes = plt.subplots(max(1, len(panels)), figsize=size, squeeze=False, layout="constrained")
    for (panel, label), axis in zip(panels, axes[:, 0], strict=False):
        draw(axis, panel, result, label)
    if result["warnings"]:
        figure.suptitle(f"hatched: figures that cannot be right ({', '.join(result['warnings'])})", color="#a00000")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    figure.savefig(beside, format=path.suffix[1:], dpi=150)
    plt.close(figure)
    os.replace(beside, path)


def groups_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["task"], row["metric"]) for row in rows))


def draw(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any], label: str) -> None:
    """A group of bars for each task and metric, a bar for each model that has it."""
    groups, models = groups_of(rows), result["models"]
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        mine = [(groups.index((row["task"], row["metric"])), row) for row in rows if row["model"] == model]
        if not mine:
            continue
        axis.bar(
            [place + (number - (len(models) - 1) / 2) * width for place, _ in mine],
            [row["value"] for _, row in mine],
            width,
            yerr=[INTERVAL * (row["stderr"] or 0.0) for _, row in mine],
            capsize=2,
            label=model,
            hatch="//" if model in result["warnings"] else None,
        )
    chances = {(row["task"], row["metric"]): row.get("chance") for row in rows}
    known = [(place, chances[group]) for place, group in enumerate(groups) if chances[group] is not None]
    if known:
        places, levels = zip(*known, strict=True)
        axis.hlines(levels, [p - 0.45 for p in places], [p + 0.45 for p in places], "black", "dashed", label="chance")
    names = [f"{task.removeprefix('held_out/')}\n{metric}" for task, metric in groups]
    axis.set_xticks(range(len(groups)), names, rotation=0 if len(groups) < 6 else 60, fontsize=8)
    axis.set_ylabel(f"{label}, 95 % intervals")
    axis.legend(fontsize=8)
