"""Run directories for the dashboard's tests, and a server of theirs."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genesis_hf.config import write_text
from genesis_hf.dashboard.board import Board
from genesis_hf.dashboard.server import DashboardServer


def record(step: int, **changes: object) -> dict:
    """A line of a pretraining's metrics.jsonl: 1,000 tokens a step at 500 tokens/s, two seconds a step."""
    values = {
        "step": step,
        "loss": 2 + 8 / math.sqrt(step),
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens_seen": step * 1000,
        "tokens_per_second": 500.0,
        "mfu": None,
        "memory_gib": 1.5,
        "data_wait_share": 0.01,
        "skipped_steps": 0,
        "mixture": {"code": 0.75, "prose": 0.25},
        "repeated_since": {},
        "records": {"code": {"documents": step, "bad": 0}},
    }
    return {**values, **changes}


def held_out(bits: float) -> dict:
    return {name: {"loss": 2 * bits, "bits_per_byte": bits} for name in ("code", "prose")}


def append(path: Path, *records: dict) -> None:
    """Lines at the end of a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(values) + "\n" for values in records)


def write_run(folder: Path, steps: int = 50, max_steps: int = 100) -> Path:
    """A pretraining that is under way: metrics, held-out loss every 10 steps, an event, samples, a checkpoint."""
    write_text(folder / "recipe.yaml", f"max_steps: {max_steps}\nsources: [{{name: code}}, {{name: prose}}]\n")
    lines = [record(s, **({"held_out": held_out(3 - s / 100)} if s % 10 == 0 else {})) for s in range(1, steps + 1)]
    append(folder / "metrics.jsonl", *lines)
    append(folder / "events.jsonl", {"step": 20, "event": "resumed", "text": "resumed from step 20", "time": 1.7e9})
    for step in (10, 20):
        text = f"the model at step {step}"
        append(
            folder / "samples.jsonl", {"step": step, "samples": [{"prompt": "Once upon a time", "continuation": text}]}
        )
    write_text(folder / "checkpoints/step_000000040/manifest.json", "{}")
    (folder / "checkpoints/step_000000050").mkdir()  # one being written
    return folder


@contextmanager
def served(*folders: Path, watch: bool = False) -> Iterator[DashboardServer]:
    """A server of the runs; unless it watches, files are read when the test says `server.board.read_all()`."""
    board = Board(folders)
    board.read_all()
    server = DashboardServer(board, port=0)
    if watch:
        board.start()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        board.close()
        server.shutdown()
        thread.join()
        server.server_close()
