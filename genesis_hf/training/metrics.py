"""metrics.jsonl and latest.json, and the throughput numbers in them."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from genesis_hf.cards import find_card
from genesis_hf.config import write_text
from genesis_hf.modeling import GenesisConfig


class MetricsWriter:
    """Appends to metrics.jsonl and events.jsonl, and replaces latest.json; only the main process writes."""

    def __init__(self, output_dir: str | Path, is_main: bool, resumed_step: int = 0) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.is_main = is_main
        self.forget_after(resumed_step)

    def write(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, in the operating system's cache when this returns; null for what is not finite.

        `time`, seconds since 1970, is added to what the record says.
        """
        if not self.is_main:
            return
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        record["time"] = round(time.time(), 1)
        append_json(self.path, record)
        write_text(self.path.with_name("latest.json"), json.dumps(record, indent=1) + "\n")

    def event(self, step: int, kind: str, text: str) -> None:
        """One line of events.jsonl: what happened once, and when. Nothing in it is ever taken back."""
        if self.is_main:
            append_json(
                self.path.with_name("events.jsonl"), {"step": step, "event": kind, "text": text, "time": time.time()}
            )

    def forget_after(self, step: int) -> None:
        """Drop what the run wrote after the step at which it now goes on, and a last line cut by a crash."""
        for path in (self.path, self.path.with_name("samples.jsonl")):
            if self.is_main and path.exists():
                kept = [record for record in read_metrics(path) if record["step"] <= step]
                write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def append_json(path: Path, record: dict[str, Any]) -> None:
    """One line at the end of a .jsonl file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a crash cut short is left out."""
    records = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class Throughput:
    """Speed, waiting and memory since the last reading."""

    def __init__(
        self, config: GenesisConfig, sequence_length: int, rows_per_step: int, parameters: int, num_processes: int
    ) -> None:
        self._tokens = rows_per_step * sequence_length
        self._flops = flops_per_token(config, sequence_length, parameters)
        peak = peak_flops()
        self._peak = peak and peak * num_processes
        self.start(0)

    def start(self, step: int) -> None:
        """A window begins after this step."""
        self._since, self._step, self._waited = time.perf_counter(), step, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside counts as waiting for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def read(self, step: int) -> dict[str, float | None]:
        """Numbers of the window that ends with this step; the next one begins."""
        elapsed = time.perf_counter() - self._since
        speed = (step - self._step) * self._tokens / elapsed
        numbers = {
            "tokens_per_second": round(speed, 1),
            "mfu": speed * self._flops / self._peak if self._peak else None,
            "memory_gib": round(memory_gib(), 3),
            "data_wait_share": round(self._waited / elapsed, 4),
        }
        self.start(step)
        return numbers


def flops_per_token(config: GenesisConfig, sequence_length: int, parameters: int) -> float:
    """Forward and backward FLOPs of one token, recomputation not counted.

    6 for each weight in a matrix product (the output projection included, the input embedding not), plus
    12 × layers × hidden × length for attention scores and values (Chowdhery et al. 2022, PaLM, appendix B).
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 6.0 * (parameters - embedding) + attention


def peak_flops() -> float | None:
    """This card's bf16 peak by its maker's datasheet, None where unknown (any CPU)."""
    card = find_card(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return 1e12 * card.bf16_tflops if card and card.bf16_tflops else None


def memory_gib() -> float:
    """Peak memory of this process so far in GiB: the card's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if os.name == "posix":
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return float("nan")
