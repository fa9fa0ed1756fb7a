"""Fixtures that several test files share. One thread a process: the suite's processes share two cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import functools
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and all that it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]

TINY_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
"""`model:` of a recipe that trains in a second."""


@pytest.fixture(scope="session", autouse=True)
def conversation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded conversations of tests are kept apart from the user's own."""
    os.environ["GENESIS_HF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def run_script(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """`python scripts/…` as a user calls it; libraries are imported once for all calls in one environment."""
    if environment or warm_environment() != WARM_ENVIRONMENT or not str(arguments[0]).startswith("scripts/"):
        return run_command([sys.executable, *arguments], check, environment)
    return checked(run_warm([str(word) for word in arguments]), check)


def warm_environment() -> dict[str, str]:
    """What libraries may have read when they were imported."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTEST_CURRENT_TEST", "GENESIS_HF_CACHE")}


WARM_ENVIRONMENT = warm_environment()


@functools.cache
def warm_python() -> subprocess.Popen:
    """One for a worker of the suite; it ends with the worker, when its stdin is closed."""
    command = [sys.executable, ROOT / "tests" / "warm_python.py"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_warm(arguments: list[str]) -> subprocess.CompletedProcess:
    python = warm_python()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, name) for name in ("stdout", "stderr")}
        print(
            json.dumps({"arguments": arguments, "environment": dict(os.environ), **files}),
            file=python.stdin,
            flush=True,
        )
        code = int(python.stdout.readline())
        written = {name: Path(path).read_text() for name, path in files.items()}
    return subprocess.CompletedProcess(arguments, code, **written)


def launch(
    topology: str, *arguments: object, check: bool = True, options: tuple = (), **environment: str
) -> subprocess.CompletedProcess:
    """`accelerate launch --config_file accelerate_configs/TOPOLOGY.yaml [options] scripts/…`"""
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    return run_command(
        [*accelerate, "--config_file", f"accelerate_configs/{topology}.yaml", *options, *arguments], check, environment
    )


def run_command(command: list, check: bool, environment: dict[str, str]) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return checked(result, check)


def checked(result: subprocess.CompletedProcess, check: bool) -> subprocess.CompletedProcess:
    if check and result.returncode:
        raise AssertionError(f"exit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small sources, `prose.jsonl` and `code.jsonl`, and a held-out `heldout.jsonl`."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["river", "stone", "walks", "under", "bright", "cloud", "seven", "letters", "and", "the", "a", "old"]

    def prose() -> str:
        sentences = [" ".join(rng.choices(words, k=rng.randint(3, 12))).capitalize() + "." for _ in range(8)]
        return " ".join(sentences[: rng.randint(1, 8)])

    def code() -> str:
        name, value = rng.choice(words), rng.randint(0, 999)
        return f"def {name}_{value}(x):\n    y = x + {value}\n    return y * {rng.randint(2, 9)}\n"

    for name, make, count in (("prose", prose, 400), ("code", code, 300), ("heldout", prose, 40)):
        lines = [json.dumps({"text": make()}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece tokenizer of 384 pieces, trained on `corpus`."""
    from genesis_hf.config import Source, TokenizerRecipe
    from genesis_hf.tokenizer_training import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    sources = [Source(name=name, paths=[str(corpus / f"{name}.jsonl")]) for name in ("prose", "code")]
    build_tokenizer(TokenizerRecipe(output_dir=str(folder), sources=sources, vocab_size=384, model_max_length=64))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path):
    """`tokenizer_folder`, loaded."""
    from genesis_hf.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_folder)
