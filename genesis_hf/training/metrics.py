"""metrics.jsonl and latest.json, and the throughput numbers in them."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from genesis_hf.config import write_text
from genesis_hf.modeling import GenesisConfig

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "RTX PRO 6000": 503.8e12,
    "L40S": 362e12,
}
"""Dense bf16 FLOP/s with fp32 accumulation, by a part of torch.cuda.get_device_name(); from the makers' datasheets."""


class MetricsWriter:
    """Appends to metrics.jsonl and replaces latest.json; only the main process writes."""

    def __init__(self, output_dir: str | Path, is_main: bool, resumed_step: int = 0) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.is_main = is_main
        if is_main and self.path.exists():
            self._forget_after(resumed_step)

    def write(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, on disk when this returns to the operating system's cache."""
        if not self.is_main:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        write_text(self.path.with_name("latest.json"), json.dumps(record, indent=1) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drop what a run wrote after the checkpoint it now goes on from, and a last line cut by a crash."""
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


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


def flops_per_token(config: GenesisConfig, sequence_length: int, parameters: int) -> float:
    """Forward and backward FLOPs of one token, recomputation not counted.

    6 for each weight in a matrix product (the output projection included, the input embedding not), plus
    12 × layers × hidden × length for attention scores and values (Chowdhery et al. 2022, PaLM, appendix B).
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 6.0 * (parameters - embedding) + attention


def peak_flops() -> float | None:
    """This card's bf16 peak, None where unknown (any CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


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
