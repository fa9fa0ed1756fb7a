"""Time of a checkpoint, and how long training stands still for it, beside writing the same bytes with `dd`.

python benchmarks/checkpoint_speed.py [--megabytes 1200] [--repetitions 5] [--processes 2] [--folder DIR]

Trains a model of that size in fp32 with AdamW for a step between saves. Kinds of saves take turns, medians are
reported. With two processes it launches itself under accelerate_configs/fsdp2_2gpu.yaml. See benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer, models
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.checkpointer import Checkpointer
from genesis_hf.checkpoint.state import quiet_checkpoint_warnings, training_tensors
from genesis_hf.config import PretrainRecipe, Source, write_text
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM, parameter_count
from genesis_hf.processes import barrier, is_main
from genesis_hf.training.distributed import make_accelerator

ROOT = Path(__file__).parents[1]
SHAPE = {"vocab_size": 16384, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
TOKENS = 256
"""Of a training step on each process."""


def main() -> None:
    arguments = parse_arguments()
    if arguments.processes > 1 and "RANK" not in os.environ:
        sys.exit(launch(arguments.processes))
    folder = Path(arguments.folder or tempfile.gettempdir()) / "checkpoint_speed"
    records = measure(folder, arguments.megabytes, arguments.repetitions)
    if is_main():
        shutil.rmtree(folder)
        print(table(records))
        if arguments.output_file:
            write_text(arguments.output_file, json.dumps(records, indent=1) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1200, help="of weights and AdamW's state, 12 a parameter")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="with 2: FSDP2")
    parser.add_argument("--folder", help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--output_file", help="also write the figures of every repetition here, as JSON")
    return parser.parse_args()


def launch(processes: int) -> int:
    """This very command, in so many processes."""
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    topology = ["--config_file", str(ROOT / "accelerate_configs/fsdp2_2gpu.yaml"), "--num_processes", str(processes)]
    return subprocess.run([*accelerate, *topology, *sys.argv]).returncode


# ------------------------------------------------------------------------------------------------ training


class Training:
    """A model whose weights and optimizer state have a given size, and steps of it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.recipe = PretrainRecipe(
            output_dir=str(folder / "run"),
            model={},
            tokenizer="",
            sources=[Source(name="none", paths=["none"])],
            max_steps=10**6,
            bf16=False,
            save_total_limit=1,
        )
        self.accelerator = make_accelerator(self.recipe)
        config = GenesisConfig(**SHAPE, num_key_value_heads=4, num_hidden_layers=1, max_position_embeddings=TOKENS)
        one = parameter_count(config)
        config.num_hidden_layers = 2
        a_layer = parameter_count(config) - one
        config.num_hidden_layers = max(1, round((megabytes * 1e6 / 12 - one) / a_layer) + 1)
        self.parameters = parameter_count(config)
        model = GenesisForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.model, *self.optimizers = self.accelerator.prepare(model, optimizer)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
        self.ids = torch.randint(0, 1000, (1, TOKENS), device=self.accelerator.device)

    def step(self) -> None:
        self.accelerator.backward(self.model(input_ids=self.ids, labels=self.ids).loss)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.settle()

    def tensors(self) -> dict:
        return training_tensors(self.model, self.optimizers)

    def settle(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        barrier()


# ----------------------------------------------------------------------------------------------- measuring


def measure(folder: Path, megabytes: int, repetitions: int) -> list[dict]:
    """Figures of every kind of save, by turns: seconds in all, and seconds that training stood still."""
    quiet_checkpoint_warnings()
    training = Training(folder, megabytes)
    training.step()
    begun = time.perf_counter()
    training.step()
    if is_main():
        print(
            f"{training.parameters / 1e6:.0f}M parameters, {training.accelerator.num_processes} processes, "
            f"{training.accelerator.device.type}, a step of {time.perf_counter() - begun:.2f} s",
            flush=True,
        )
    kinds = {
        "synchronous": saves(training, save_async=False),
        "asynchronous": saves(training, save_async=True),
        "dcp.async_save": dcp_async(training, folder),
        "save_state": save_state(training, folder),
    }
    kinds["synchronous"]()
    as_many = folder_bytes(folder)
    kinds = {"dd": lambda: (dd(folder, as_many),) * 2, **kinds}
    records = []
    with tqdm(total=repetitions * len(kinds), unit="save", leave=False, disable=not is_main()) as progress:
        for repetition in range(-1, repetitions):  # the first turn warms up
            for kind, save in kinds.items():
                training.settle()
                seconds, stall = save()
                size = folder_bytes(folder)
                barrier()
                if is_main():
                    for made in [folder / "other", folder / "run" / "checkpoints"]:
                        shutil.rmtree(made, ignore_errors=True)
                    os.sync()
                barrier()
                if repetition >= 0:
                    records.append({"kind": kind, "seconds": seconds, "stall": stall, "bytes": size})
                    progress.update()
    return records


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def dd(folder: Path, size: int) -> float:
    """Seconds of the main process to write and flush so many bytes."""
    begun = time.perf_counter()
    if is_main():
        path = folder / "other" / "dd"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}", "conv=fsync"]
        subprocess.run(command, check=True, capture_output=True)
    barrier()
    return time.perf_counter() - begun


def saves(training: Training, save_async: bool) -> Callable[[], tuple[float, float]]:
    """Our saves; a training step is under way while the asynchronous one is written."""
    training.recipe.save_async = save_async
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)

    def save() -> tuple[float, float]:
        begun = time.time()
        folder = checkpoints.save({"step": 1, "optimizer_steps": 1})
        if save_async:
            training.step()
        checkpoints.wait()
        if checkpoints.failed:
            raise RuntimeError(checkpoints.failed)
        written = (folder.parent / "latest").stat().st_mtime  # the step may take longer than the write
        return written - begun, checkpoints.take_stall()

    return save


def dcp_async(training: Training, folder: Path) -> Callable[[], tuple[float, float]]:
    """torch's own asynchronous save of the same tensors: no hashes, no rename, nothing beside them."""
    group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def save() -> tuple[float, float]:
        begun = time.perf_counter()
        future = dcp.async_save(training.tensors(), checkpoint_id=folder / "other" / "dcp", process_group=group)
        stall = time.perf_counter() - begun
        ended: list[float] = []
        future.add_done_callback(lambda _: ended.append(time.perf_counter()))
        training.step()
        future.result()
        return ended[0] - begun, stall

    return save


def save_state(training: Training, folder: Path) -> Callable[[], tuple[float, float]]:
    """Accelerate's save: synchronous, flushed by nobody."""

    def save() -> tuple[float, float]:
        begun = time.perf_counter()
        training.accelerator.save_state(str(folder / "other" / "state"))
        training.settle()
        seconds = time.perf_counter() - begun
        return seconds, seconds

    return save


def table(records: list[dict]) -> str:
    """Medians, and their ratios to dd's."""
    kinds = list(dict.fromkeys(record["kind"] for record in records))

    def median(kind: str, figure: str) -> float:
        return statistics.median(record[figure] for record in records if record["kind"] == kind)

    written = median("dd", "seconds")
    lines = [f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; medians of seconds", ""]
    lines.append("| save | MB | total s | of dd | stall s | of dd |")
    lines.append("|---|---|---|---|---|---|")
    for kind in kinds:
        total, stall = median(kind, "seconds"), median(kind, "stall")
        lines.append(
            f"| {kind} | {median(kind, 'bytes') / 1e6:,.0f} | {total:.2f} | {total / written:.2f} | {stall:.3f} | "
            f"{stall / written:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
