"""A base model to fine-tune, recipes of a few steps, and what their runs left."""

import json
from pathlib import Path
from typing import Any

from tiny_chat import echo_rows, make_tokenizer, small_model, write_rows

from genesis_hf.files import file_sha256
from genesis_hf.post_training.sft import parse_sft_recipe, train_sft
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics


def make_base(folder: Path) -> Path:
    """The folder, with an exported base model in `model`, the same with untied embeddings, and conversations."""
    tokenizer = load_tokenizer(make_tokenizer(folder))
    for name, tied in (("model", True), ("untied", False)):
        small_model(tied).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_rows(folder / "train.jsonl", echo_rows(96, seed=1))
    write_rows(folder / "heldout.jsonl", echo_rows(23, seed=2))
    return folder


def arguments(base: Path, output_dir: Path, **settings: Any) -> list[str]:
    """A recipe of two epochs of 11 steps, as a command line."""
    values = {
        "model": base / "model",
        "output_dir": output_dir,
        "mixture": json.dumps([{"name": "echo", "paths": [f"{base}/train.jsonl"]}]),
        "eval_mixture": json.dumps([{"name": "echo", "paths": [f"{base}/heldout.jsonl"]}]),
        "learning_rate": 2e-2,
        "num_train_epochs": 2,
        "max_length": 64,
        "logging_steps": 3,
        "save_steps": 7,
        "bf16": "false",
        "disable_tqdm": "true",
        **settings,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run(base: Path, output_dir: Path, **settings: Any) -> dict[str, Any] | None:
    """SFT in this process."""
    return train_sft(*parse_sft_recipe(arguments(base, output_dir, **settings)))


def metrics(output_dir: Path) -> dict[int, tuple[float, ...]]:
    """By logged step: loss, gradient norm, learning rate and tokens so far."""
    names = ("loss", "grad_norm", "learning_rate", "num_tokens")
    records = [record for record in read_metrics(output_dir / "metrics.jsonl") if "loss" in record]
    assert len(records) == len({record["step"] for record in records})
    return {record["step"]: tuple(record[name] for name in names) for record in records}


def weights(output_dir: Path) -> str:
    """The hash of the final weights."""
    return file_sha256(output_dir / "final/model.safetensors")
