"""What six minutes on this machine teach a model of 8.4M parameters: our recipe and HF Trainer's plain one.

python benchmarks/equal_time.py [--paths "books/*.jsonl.gz"] [--minutes 6] [--output_file F]

Same text, same tokenizer, same model shape, same cores, same time, compilation included. How many steps fit is found by
a short trial of each before, so that each learning rate reaches its end when the time does. See benchmarks/README.md.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

import torch
from data_text import make_text, make_tokenizer
from train_speed import SMALL, WorkerSettings, machine, stdout_as_stderr

from genesis_hf.checkpoint.restore import load_model
from genesis_hf.config import PretrainRecipe, Source, build, parse_recipe, read_yaml, setting, write_text
from genesis_hf.data.readers import read_documents
from genesis_hf.data.selection import document_hash
from genesis_hf.errors import report_user_errors
from genesis_hf.evaluation.bits_per_byte import bits_per_byte
from genesis_hf.files import read_json
from genesis_hf.tokenizer import encode_documents, load_tokenizer

HELD_OUT = 50
"""One document in so many is held out, by its hash."""

RECIPE = "recipes/demo/pretrain.yaml"
"""Ours: the demo's optimizer and schedule."""

TRIAL_STEPS = 12
"""After as many to warm up; their time tells how many steps fit."""


@dataclass
class EqualTimeSettings(WorkerSettings):
    """`benchmarks/equal_time.py`"""

    paths: list[str] | None = setting(None, "text, as a source's paths; null: what the running Python's folders hold")
    megabytes: float = setting(30, "of text, at most")
    minutes: float = setting(6.0, "for each, compilation included")
    contenders: list[str] = setting(["genesis_hf", "HF Trainer"])
    trainer_learning_rate: float = setting(1e-3, "of HF Trainer's AdamW")
    held_out_bytes: int = setting(300_000, "of held-out text that is measured")
    work_dir: str = setting("runs/equal_time", "folder for text, tokenizer and runs")
    max_steps: int = setting(0, "used by the benchmark itself: steps of the worker; 0: the trial")


@dataclass
class Text:
    """What both train on, and what they are measured on."""

    train: str
    held_out: list[str]
    tokenizer: str


def make_texts(settings: EqualTimeSettings) -> Text:
    """Training documents in a .jsonl file, and held-out ones; a tokenizer of the model's vocabulary."""
    files = make_text(settings.paths, settings.megabytes, 42, settings.work_dir)["files"]
    train, held_out = Path(files[0]).with_name("train.jsonl"), []
    lines = []
    for text in read_documents(Source("text", paths=files)):
        if document_hash(text) % HELD_OUT == 0:
            held_out.append(text)
        else:
            lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    write_text(train, "".join(lines))
    kept = []
    for text in held_out:
        if sum(map(len, kept)) < settings.held_out_bytes:
            kept.append(text[:20_000])
    text = Text(str(train), kept, make_tokenizer([str(train)], SMALL["model"]["vocab_size"]))
    write_text(Path(settings.work_dir) / "texts.json", json.dumps(asdict(text)) + "\n")
    return text


# ---------------------------------------------------------------------------------------------------------
# The contenders
# ---------------------------------------------------------------------------------------------------------


def our_recipe(settings: EqualTimeSettings, text: Text, folder: str, steps: int) -> PretrainRecipe:
    """The demo's recipe on this text and shape; a tenth of the steps warms up, two fifths anneal as there."""
    demo = read_yaml(RECIPE)
    kept = ("optim", "learning_rate", "min_learning_rate", "muon_learning_rate", "lr_scheduler_type")
    values = {
        **{key: demo[key] for key in kept if key in demo},
        **SMALL,
        "output_dir": folder,
        "tokenizer": text.tokenizer,
        "sources": [{"name": "text", "paths": [text.train]}],
        "per_device_train_batch_size": demo["per_device_train_batch_size"],
        "max_steps": steps,
        "warmup_steps": max(1, round(steps * demo["warmup_steps"] / demo["max_steps"])),
        "decay_steps": round(steps * demo["decay_steps"] / demo["max_steps"]),
        "torch_compile": demo.get("torch_compile", False),
        "save_steps": 10**9,
        "logging_steps": 20,
        "bf16": True,
        **settings.set,
    }
    return build(PretrainRecipe, values, "equal_time")


def train_ours(settings: EqualTimeSettings, text: Text, folder: str, steps: int) -> dict[str, Any]:
    import genesis_hf.training.pretrain as loop

    recipe = our_recipe(settings, text, folder, steps or 2 * TRIAL_STEPS)
    marks: list[float] = []
    backward = loop.backward

    def marked(*arguments: Any) -> torch.Tensor:
        marks.append(time.perf_counter())
        return backward(*arguments)

    loop.backward = marked
    begun = time.perf_counter()
    checkpoint = loop.pretrain(recipe)
    tokens = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.sequence_length
    return {**timing(begun, marks), "tokens": tokens * recipe.max_steps, "model": checkpoint, "load": load_model}


def train_trainer(settings: EqualTimeSettings, text: Text, folder: str, steps: int) -> dict[str, Any]:
    """transformers.Trainer: documents joined and cut into rows, shuffled, AdamW with a cosine schedule, bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    marks: list[float] = []
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps or 2 * TRIAL_STEPS,
        per_device_train_batch_size=SMALL["per_device_train_batch_size"],
        learning_rate=settings.trainer_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * steps),
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    begun = time.perf_counter()
    rows = list(joined_rows(text, SMALL["sequence_length"]))
    model = LlamaForCausalLM(LlamaConfig(**SMALL["model"], use_cache=False))
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    tokens = SMALL["per_device_train_batch_size"] * SMALL["sequence_length"] * arguments.max_steps
    return {**timing(begun, marks), "tokens": tokens, "model": model, "load": lambda model: model.cpu().eval()}


def joined_rows(text: Text, length: int) -> Iterator[torch.Tensor]:
    """Rows of all documents joined with EOS, as transformers' run_clm.py groups texts."""
    tokenizer = load_tokenizer(text.tokenizer)
    documents = list(read_documents(Source("text", paths=[text.train])))
    ids = [i for document in encode_documents(tokenizer, documents) for i in [*document, tokenizer.eos_token_id]]
    joined = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    yield from joined


def timing(begun: float, marks: list[float]) -> dict[str, float]:
    """Seconds of the whole, before the steps that count, and of one step (median)."""
    steps = sorted(b - a for a, b in itertools.pairwise(marks[TRIAL_STEPS // 2 :]))
    step = steps[len(steps) // 2]
    return {"seconds": time.perf_counter() - begun, "step": step, "start": marks[TRIAL_STEPS // 2] - begun}


CONTENDERS = {"genesis_hf": train_ours, "HF Trainer": train_trainer}


# ---------------------------------------------------------------------------------------------------------
# One process a run
# ---------------------------------------------------------------------------------------------------------


def work(settings: EqualTimeSettings) -> None:
    """Train and measure one contender in this process; the last line printed is its figures."""
    text = Text(**read_json(Path(settings.work_dir) / "texts.json"))
    with tempfile.TemporaryDirectory(dir=settings.work_dir) as folder, stdout_as_stderr():
        figures = CONTENDERS[settings.worker](settings, text, str(Path(folder) / "run"), settings.max_steps)
        model, load = figures.pop("model"), figures.pop("load")
        if settings.max_steps:
            tokenizer = load_tokenizer(text.tokenizer)
            figures["held_out"] = bits_per_byte(load(model), tokenizer, text.held_out, SMALL["sequence_length"])
    print(json.dumps(figures))


def in_new_process(settings: EqualTimeSettings, name: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--max_steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr[-3000:])
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> None:
    (settings,) = parse_recipe(EqualTimeSettings)
    if settings.dry_run:
        print(settings)
        return
    if settings.worker:
        work(settings)
        return
    make_texts(settings)
    figures: dict[str, dict[str, Any]] = {}
    for name in settings.contenders:
        trial = in_new_process(settings, name, 0)
        # the start holds the trial's first steps, and compilation
        steps = TRIAL_STEPS // 2 + int((60 * settings.minutes - trial["start"]) / trial["step"])
        print(f"{name}: {trial['step']:.3f} s a step, {steps} steps fit …", file=sys.stderr, flush=True)
        figures[name] = {"steps": steps, **in_new_process(settings, name, steps)}
        held_out = figures[name]["held_out"]
        print(f"{name}: {held_out['bits_per_byte']:.4f} bits per byte", file=sys.stderr, flush=True)
    print("| | steps | tokens | seconds | held-out bits per byte | below HF Trainer |\n|---|---|---|---|---|---|")
    reference = figures.get("HF Trainer", {}).get("held_out", {}).get("bits_per_byte")
    for name, found in figures.items():
        bits, error = found["held_out"]["bits_per_byte"], found["held_out"]["stderr"]
        below = f"{1 - bits / reference:.1%}" if reference else "–"
        print(
            f"| {name} | {found['steps']} | {found['tokens'] / 1e6:.2f}M | {found['seconds']:.0f} | {bits:.4f} ± "
            f"{error:.4f} | {below} |"
        )
    if settings.output_file:
        about = {"machine": machine(), "torch": torch.__version__, "command": " ".join(sys.argv)}
        write_text(settings.output_file, json.dumps({**about, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    with report_user_errors():
        main()
