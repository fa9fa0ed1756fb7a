"""Recipes of a few steps, and what their runs wrote down."""

from pathlib import Path
from typing import Any

import yaml
from conftest import TINY_MODEL

from genesis_hf.training.metrics import read_metrics


def small_recipe(corpus: Path, tokenizer_folder: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """A pretraining recipe in fp32 as plain values; `changes` are keys that differ."""
    values = {
        "output_dir": str(output_dir),
        "model": TINY_MODEL,
        "tokenizer": str(tokenizer_folder),
        "sequence_length": 64,
        "sources": [
            {"name": "prose", "weight": 0.7, "paths": [str(corpus / "prose.jsonl")]},
            {"name": "code", "weight": 0.3, "paths": [str(corpus / "code.jsonl")]},
        ],
        "max_steps": 12,
        "warmup_steps": 3,
        "learning_rate": 0.003,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "bf16": False,
    }
    return {**values, **changes}


def write_recipe(values: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def losses(folder: str | Path) -> dict[int, tuple[float, float]]:
    """By step: loss and gradient norm."""
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in read_metrics(f"{folder}/metrics.jsonl") if "loss" in r}
