"""Time and peak memory of exporting the 1B configuration, with random weights, as bfloat16.

    python benchmarks/export_speed.py [--checkpoint RUN] [--work_dir runs/export_speed]

Without `--checkpoint` one is made first (12 GB of disk for a model of 1,000,441,344 parameters and its optimizer's
state). Memory is the proportional set size of the export and every process that it starts, sampled ten times a second:
pages of files that the system may drop are counted while they are mapped.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from data_text import make_text, make_tokenizer

from genesis_hf import GenesisConfig, GenesisForCausalLM
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.config import parse_recipe, setting
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.tokenizer import load_tokenizer

VOCABULARY = 49152


@dataclass
class ExportSpeedSettings:
    """`benchmarks/export_speed.py`"""

    checkpoint: str | None = setting(None, "a run directory or checkpoint; null: one is made")
    work_dir: str = setting("runs/export_speed", "folder for the checkpoint and the export")
    dtype: str = "bfloat16"


def main() -> None:
    (settings,) = parse_recipe(ExportSpeedSettings)
    work = Path(settings.work_dir)
    checkpoint = settings.checkpoint or str(make_checkpoint(work))
    shutil.rmtree(work / "export", ignore_errors=True)
    command = [sys.executable, "scripts/export.py", "--checkpoint", checkpoint, "--output_dir", str(work / "export")]
    files = make_text(None, 20, 0, str(work))["files"][:2]  # for as many questions as an export may ask
    sources = [{"name": Path(file).name, "paths": [file]} for file in files]
    command += ["--held_out_sources", json.dumps(sources)]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--dtype", settings.dtype], stdout=subprocess.PIPE, text=True)
    peaks = Peaks(process.pid)
    peaks.start()
    printed, _ = process.communicate()
    seconds = time.monotonic() - started
    peaks.join()
    if process.returncode:
        raise UserError(f"scripts/export.py ended with exit code {process.returncode}")
    print(printed, end="")
    size = sum(path.stat().st_size for path in (work / "export").glob("*.safetensors"))
    figures = {
        "seconds": round(seconds, 1),
        "model_bytes": size,
        "peak_bytes": peaks.together,
        "peak_by_model": round(peaks.together / size, 3),
        "peak_of_the_largest_process": peaks.largest,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures, indent=2))


def make_checkpoint(work: Path) -> Path:
    """A run with the checkpoint of a random model, unless an earlier call made it."""
    folder = checkpoint_folder(work / "run", 1)
    if not folder.exists():
        tokenizer = load_tokenizer(make_tokenizer(make_text(None, 20, 0, str(work))["files"], VOCABULARY))
        model = GenesisForCausalLM(GenesisConfig(vocab_size=VOCABULARY))
        save_checkpoint(folder, model, [torch.optim.AdamW(model.parameters())], {"step": 1}, "", tokenizer)
    return folder


class Peaks(threading.Thread):
    """The most memory that a process and those below it hold, together and one alone, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.together, self.largest = psutil.Process(pid), 0, 0

    def run(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            sizes = [0]
            try:
                for one in [self.process, *self.process.children(recursive=True)]:
                    sizes.append(one.memory_full_info().pss)
            except psutil.Error:  # one has just ended
                continue
            self.together, self.largest = max(self.together, sum(sizes)), max(self.largest, *sizes)
            time.sleep(0.1)


if __name__ == "__main__":
    with report_user_errors():
        main()
