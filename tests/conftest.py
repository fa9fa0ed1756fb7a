"""Fixtures that several test files share. One thread a process: the suite's processes share two cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "True"  # Gradio's word for it, which it sets when it is imported

import atexit
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each process gets a run of files, and in the end some of what the slower ones have left (`--dist=worksteal`).

    xdist's own default deals tests out by turns, so that all processes make the fixtures of every file.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def conversation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded conversations of tests are kept apart from the user's own."""
    os.environ["GENESIS_HF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


LIBRARIES = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.run",
    "pyarrow.dataset",
    "pandas",
    "sklearn.metrics",
    "matplotlib.pyplot",
)
"""What takes longest to import, none of it ours and none that knows the Hub."""

EVERYTHING = (
    *LIBRARIES,
    "accelerate.commands.accelerate_cli",
    "lm_eval.evaluator",
    "genesis_hf.training.pretrain",
    "genesis_hf.post_training.dpo",
    "genesis_hf.publishing.publish",
)


def run_script(
    *arguments: object, check: bool = True, warm: tuple = EVERYTHING, **environment: str
) -> subprocess.CompletedProcess:
    """`python scripts/…` as a user calls it, in a fork of a Python that has imported `warm` (tests/warm_python.py).

    warm: fewer where `environment` changes what those read when they are imported; nothing for a Python of its own.
    """
    return run_python(list(arguments), check, environment, warm)


def launch(
    topology: str, *arguments: object, check: bool = True, options: tuple = (), warm: tuple = EVERYTHING
) -> subprocess.CompletedProcess:
    """`accelerate launch --config_file accelerate_configs/TOPOLOGY.yaml [options] scripts/…`; warm: see `run_script`.

    All else is as ever: the launcher's processes are its children, in the environment that it makes for them.
    """
    accelerate = ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    configuration = ["--config_file", f"accelerate_configs/{topology}.yaml", *options]
    return run_python([*accelerate, *configuration, *arguments], check, {}, warm)


def run_python(arguments: list, check: bool, changes: dict[str, str], warm: tuple) -> subprocess.CompletedProcess:
    """In a fork of a Python that was started in the same environment, but for what is read later, or in its own."""
    words = [str(word) for word in arguments]
    environment = {**user_environment(), **changes}
    changed = {key for key, _ in environment.items() ^ IMPORTED.items()} - READ_LATER
    if any(not key.startswith("HF_") for key in changed):
        warm = ()
    elif changed and warm == EVERYTHING:
        warm = LIBRARIES
    if warm:
        result = run_warm(warm, words, environment)
    else:
        result = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    if check and result.returncode:
        raise AssertionError(f"exit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


IMPORTED = dict(os.environ)
READ_LATER = {"PYTEST_CURRENT_TEST", "GENESIS_HF_CACHE"}
"""What no library looks at when it is imported."""
SET_BY_IMPORTS = {
    "GRADIO_ANALYTICS_ENABLED",
    "HF_XET_HIGH_PERFORMANCE",
    "KMP_DUPLICATE_LIB_OK",
    "OMP_WAIT_POLICY",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}
"""What the playground, lm_eval, torch and scripts leave in the environment of a process that imports them."""


def user_environment() -> dict[str, str]:
    """That of the suite, as tests have changed it."""
    return {key: value for key, value in os.environ.items() if key in IMPORTED or key not in SET_BY_IMPORTS}


@functools.cache
def warm_python(modules: tuple) -> subprocess.Popen:
    """One for a worker of the suite; it ends with the worker, when its stdin is closed."""
    command = [sys.executable, ROOT / "tests" / "warm_python.py", *modules]
    python = subprocess.Popen(command, cwd=ROOT, env=IMPORTED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(python.communicate)
    return python


def run_warm(modules: tuple, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    python = warm_python(modules)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, name) for name in ("stdout", "stderr")}
        asked = {"arguments": arguments, "environment": environment, **files}
        print(json.dumps(asked), file=python.stdin, flush=True)
        code = int(python.stdout.readline())
        written = {name: Path(path).read_text() for name, path in files.items()}
    return subprocess.CompletedProcess(arguments, code, **written)


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
