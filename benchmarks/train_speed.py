"""Tokens per second of pretraining: our whole loop beside a bare compiled loop, HF Trainer and litgpt, in one run.

python benchmarks/train_speed.py [--steps 40] [--rounds 2] [--contenders genesis_hf,bare_compiled] [--output_file F]

Without a GPU the model is small (8 layers, hidden 256, sequence 512, micro-batch 8); with one it is genesis-1b, and MFU
is printed too. Every contender has a process of its own; they take turns. See benchmarks/README.md.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

import itertools

import torch
from data_text import make_text, make_tokenizer

from genesis_hf.config import PretrainRecipe, build, parse_recipe, setting, write_text
from genesis_hf.data.preparation.prepare import PrepareSettings, prepare
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.modeling import model_config, parameter_count
from genesis_hf.training.metrics import flops_per_token, peak_flops

SMALL = {
    "model": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "vocab_size": 8192,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
    },
    "sequence_length": 512,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
}
"""What is measured on a CPU: 8.4M parameters, 4,096 tokens a step."""

LARGE = {
    "model": {
        "hidden_size": 1536,
        "num_hidden_layers": 32,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "intermediate_size": 4736,
        "vocab_size": 49152,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
    },
    "sequence_length": 2048,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
}
"""What is measured on a GPU: genesis-1b."""

WARMUP = 6
"""Steps before the clock starts: compilation, and allocators that settle."""


@dataclass
class WorkerSettings:
    """Settings of a benchmark whose contenders have a process each."""

    set: dict[str, Any] = setting({}, "recipe keys of ours that differ, as {torch_compile: false}")
    output_file: str | None = setting(None, "all figures as .json")
    worker: str | None = setting(None, "used by the benchmark itself: measure this contender and print its figures")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the settings and touch nothing")


@dataclass
class TrainSpeedSettings(WorkerSettings):
    """`benchmarks/train_speed.py`"""

    contenders: list[str] | None = setting(None, "which; null: all that are installed")
    steps: int = setting(40, "steps that count, in each round")
    rounds: int = setting(2, "the contenders take turns so many times; figures are medians over all")
    threads: int = setting(0, "OpenMP threads; 0: all cores")
    megabytes: float = setting(20, "of text for ours: what the running Python's folders hold")
    work_dir: str = setting("runs/train_speed", "folder for text, tokenizer and runs")
    contenders_dir: str = setting("runs/train_speed/contenders", "where benchmarks/requirements-train.txt is")


def shape() -> dict[str, Any]:
    return LARGE if torch.cuda.is_available() else SMALL


def prepared(files: list[str], settings: TrainSpeedSettings) -> Path:
    """Token shards of the text, as a long run has them; made once."""
    folder = Path(files[0]).parent / "prepared"
    if not (folder / "pretrain.yaml").exists():
        values = {
            "output_dir": "none",
            "model": shape()["model"],
            "tokenizer": make_tokenizer(files, shape()["model"]["vocab_size"]),
            "sources": [{"name": "text", "paths": files}],
            "max_steps": 1000,
        }
        prepare(build(PretrainRecipe, values, "train_speed"), PrepareSettings(prepared_dir=str(folder)))
    return folder


def recipe_of(settings: TrainSpeedSettings, output_dir: str, **changes: Any) -> PretrainRecipe:
    """The recipe of our own loop; the others take their shapes from it."""
    files = make_text(None, settings.megabytes, 42, settings.work_dir)["files"]
    values = {
        **shape(),
        "output_dir": output_dir,
        "tokenizer": make_tokenizer(files, shape()["model"]["vocab_size"]),
        "sources": [{"name": "text", "prepared": str(prepared(files, settings) / "text")}],
        "max_steps": WARMUP + settings.steps,
        "warmup_steps": 10,
        "logging_steps": 10,
        "save_steps": 10**9,
        "bf16": True,
        "torch_compile": True,
        "gradient_checkpointing": False,
        **settings.set,
        **changes,
    }
    return build(PretrainRecipe, values, "train_speed")


# ---------------------------------------------------------------------------------------------------------
# The contenders: each yields once a step
# ---------------------------------------------------------------------------------------------------------


def batches(recipe: PretrainRecipe) -> Iterator[torch.Tensor]:
    """(rows, length) int64 of random ids: what a loop costs that waits for no data."""
    generator = torch.Generator().manual_seed(0)
    rows, length = recipe.per_device_train_batch_size, recipe.sequence_length
    while True:
        yield torch.randint(3, 8000, (rows, length), generator=generator)


def bare(recipe: PretrainRecipe, compiled: bool) -> dict[str, Any]:
    """transformers' LlamaForCausalLM under autocast with fused AdamW, and nothing else."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlamaForCausalLM(LlamaConfig(**recipe.model, use_cache=False)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if compiled else model
    data = batches(recipe)
    times = []
    for _ in range(recipe.max_steps):
        begun = time.perf_counter()
        for _ in range(recipe.gradient_accumulation_steps):
            ids = next(data).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                loss = run(input_ids=ids, labels=ids).loss / recipe.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        times.append(time.perf_counter() - begun)
    return {"seconds": times}


def trainer(recipe: PretrainRecipe) -> dict[str, Any]:
    """transformers.Trainer with its own defaults, in bf16."""
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Rows(Dataset):
        def __init__(self) -> None:
            count = recipe.max_steps * recipe.gradient_accumulation_steps
            data = batches(recipe)
            self.rows = torch.cat([next(data) for _ in range(count)])

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.rows[index], "labels": self.rows[index]}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=recipe.max_steps,
            per_device_train_batch_size=recipe.per_device_train_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            optim="adamw_torch_fused",
        )
        model = LlamaForCausalLM(LlamaConfig(**recipe.model, use_cache=False))
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return {"seconds": [b - a for a, b in itertools.pairwise(times)]}


def ours(recipe: PretrainRecipe) -> dict[str, Any]:
    """`genesis_hf.training.pretrain`, from text to the last checkpoint; the loop's own parts timed apart."""
    import genesis_hf.training.pretrain as loop

    marks: list[tuple[float, float]] = []  # when a step's gradients begin, and seconds of gradients and update in it

    def timed(function: Callable[..., Any], first: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begun = time.perf_counter()
            result = function(*arguments)
            synchronize()
            spent = time.perf_counter() - begun
            if first:
                marks.append((begun, spent))
            else:
                marks[-1] = (marks[-1][0], marks[-1][1] + spent)
            return result

        return run

    loop.backward, loop.update = timed(loop.backward, True), timed(loop.update, False)
    loop.pretrain(recipe)
    steps = [later[0] - now[0] for now, later in itertools.pairwise(marks)]
    outside = [1 - spent / step for (_, spent), step in zip(marks, steps, strict=False)]
    return {"seconds": steps, "outside_share": statistics.mean(outside[WARMUP:])}


def litgpt(recipe: PretrainRecipe) -> dict[str, Any]:
    """`litgpt.pretrain.setup`, its own loop with its own compilation, on the same shapes."""
    from train_litgpt import run

    return run(recipe, batches)


CONTENDERS: dict[str, Callable[[PretrainRecipe], dict[str, Any]]] = {
    "bare, compiled": lambda recipe: bare(recipe, True),
    "genesis_hf": ours,
    "bare": lambda recipe: bare(recipe, False),
    "HF Trainer": trainer,
    "litgpt": litgpt,
}


# ---------------------------------------------------------------------------------------------------------
# One process a contender
# ---------------------------------------------------------------------------------------------------------


def work(settings: TrainSpeedSettings) -> None:
    """Measure one contender in this process; the last line printed is its figures."""
    sys.path.append(settings.contenders_dir)
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.work_dir) as folder:
        recipe = recipe_of(settings, str(Path(folder) / "run"))
        begun = time.perf_counter()
        with stdout_as_stderr():
            figures = CONTENDERS[settings.worker](recipe)
        figures["first_steps"] = sum(figures["seconds"][:WARMUP])
        figures["seconds"] = figures["seconds"][WARMUP:]
        figures["wall"] = time.perf_counter() - begun
        figures["memory"] = peak_memory()
    print(json.dumps(figures))


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)


def peak_memory() -> int:
    """Bytes: of the card where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(name: str, settings: TrainSpeedSettings) -> dict[str, Any]:
    """One round of one contender in a new process; `{"error": …}` where it fails."""
    threads = settings.threads or os.cpu_count()
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        return {"error": (result.stderr.strip().splitlines() or ["no word"])[-1][:200]}
    return json.loads(result.stdout.strip().splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------


def main() -> None:
    (settings,) = parse_recipe(TrainSpeedSettings)
    if settings.dry_run:
        print(settings)
        return
    if settings.worker:
        work(settings)
        return
    recipe = recipe_of(settings, "none")
    names = settings.contenders or list(CONTENDERS)
    unknown = set(names) - set(CONTENDERS)
    if unknown:
        raise UserError(f"--contenders: unknown {', '.join(sorted(unknown))}; known: {', '.join(CONTENDERS)}")
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(settings.rounds):
        for name in names:
            print(f"round {number + 1} of {settings.rounds}: {name} …", file=sys.stderr, flush=True)
            figures = measure(name, settings)
            rounds[name].append(figures)
            if "error" in figures:
                print(f"  {figures['error']}", file=sys.stderr)
    table = summarize(rounds, recipe)
    print(as_markdown(table))
    if settings.output_file:
        about = {"machine": machine(), "torch": torch.__version__, "command": " ".join(sys.argv), "shape": shape()}
        write_text(settings.output_file, json.dumps({**about, "table": table, "rounds": rounds}, indent=1) + "\n")


def summarize(rounds: dict[str, list[dict[str, Any]]], recipe: PretrainRecipe) -> list[dict[str, Any]]:
    tokens = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.sequence_length
    config = model_config(recipe.model)
    flops, peak = flops_per_token(config, recipe.sequence_length, parameter_count(config)), peak_flops()
    table = []
    for name, measured in rounds.items():
        good = [figures for figures in measured if "error" not in figures]
        if not good:
            table.append({"contender": name, "error": measured[-1]["error"]})
            continue
        speed = tokens / statistics.median(s for figures in good for s in figures["seconds"])
        table.append(
            {
                "contender": name,
                "tokens_per_second": speed,
                "by_round": [tokens / statistics.median(figures["seconds"]) for figures in good],
                "first_steps": statistics.median(figures["first_steps"] for figures in good),
                "memory": max(figures["memory"] for figures in good),
                "outside_share": good[0].get("outside_share")
                and statistics.median(figures["outside_share"] for figures in good),
                "mfu": speed * flops / peak if peak else None,
            }
        )
    return table


def as_markdown(table: list[dict[str, Any]]) -> str:
    reference = next((row for row in table if row["contender"] == "bare, compiled" and "error" not in row), None)
    lines = [
        f"| {'':16} | tokens/s | × bare, compiled | first {WARMUP} steps s | peak GiB | outside the step | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        if "error" in row:
            lines.append(f"| {row['contender']:16} | failed: {row['error']} |||||||")
            continue
        ratio = f"{row['tokens_per_second'] / reference['tokens_per_second']:.3f}" if reference else "–"
        outside = f"{row['outside_share']:.2%}" if row["outside_share"] is not None else "–"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "–"
        lines.append(
            f"| {row['contender']:16} | {row['tokens_per_second']:,.0f} | {ratio} | {row['first_steps']:.1f} | "
            f"{row['memory'] / 2**30:.2f} | {outside} | {mfu} |"
        )
    return "\n".join(lines)


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"


if __name__ == "__main__":
    with report_user_errors():
        main()
