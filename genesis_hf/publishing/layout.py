"""Where files lie in a repository of the Hub.

main                      the newest published model and its card
step-040000               a checkpoint, one branch each
    README.md, *.safetensors, config.json, …   the exported model, once it is published
    checkpoint/           the training checkpoint as it lies in the run
    run/                  recipe.yaml, metrics.jsonl and events.jsonl of the run up to then
"""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

from genesis_hf.checkpoint.folders import checkpoint_step
from genesis_hf.files import read_json

Files = dict[str, Path | bytes]
"""By path in the repository: a file, or its content."""

MAIN, CHECKPOINT, RUN = "main", "checkpoint", "run"

STEP_BRANCH = re.compile(r"step-(\d{6,})")

MODEL_PATTERNS = (
    *("README.md", "loss.png", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja"),
    *("parity.json", "evaluation*.json*", "model.pt", "onnx/*", "gguf/*"),
)
"""What a published model consists of: such files of an older one go when another takes its place."""


def step_branch(step: int) -> str:
    """`step-040000`"""
    return f"step-{step:06d}"


def branch_step(branch: str) -> int | None:
    """The step of a checkpoint's branch; None for other branches."""
    match = STEP_BRANCH.fullmatch(branch)
    return int(match[1]) if match else None


def is_model_file(path: str) -> bool:
    """Whether a path in a repository is a published model's."""
    return not is_training_file(path) and any(fnmatch(path, pattern) for pattern in MODEL_PATTERNS)


def is_training_file(path: str) -> bool:
    """Whether a path in a repository is of a training checkpoint or its run's files."""
    return path.startswith((f"{CHECKPOINT}/", f"{RUN}/"))


def training_files(checkpoint: Path) -> Files:
    """A checkpoint and its run's files up to it, by their paths in the repository."""
    names = [*read_json(checkpoint / "manifest.json").get("files", {}), "manifest.json"]
    files: Files = {f"{CHECKPOINT}/{name}": checkpoint / name for name in names}
    run, step = checkpoint.parent.parent, checkpoint_step(checkpoint)
    files[f"{RUN}/recipe.yaml"] = checkpoint / "recipe.yaml"
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl"):
        if (run / name).is_file():
            files[f"{RUN}/{name}"] = lines_up_to(run / name, step)
    return files


def model_files(folder: Path) -> Files:
    """The files of a model's folder by their paths in the repository; a README.md in it is not the model card."""
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in named.items() if is_model_file(name) and name != "README.md"}


def lines_up_to(path: Path, step: int) -> bytes:
    """The records of a .jsonl file up to a step; a file that is being written may end in half a line."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, LookupError, TypeError):
            continue
    return b"".join(kept)


def manifest_sha256(folder: Path) -> str | None:
    """What tells a checkpoint from every other one: the hash that its manifest ends with."""
    return read_json(folder / "manifest.json").get("sha256")
