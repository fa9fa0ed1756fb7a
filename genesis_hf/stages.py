"""Commands run one after the other, each once: what is finished is recognised by what went into it, and skipped."""

import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.errors import UserError


@dataclass
class Stage:
    """One command of a pipeline.

    Attributes:
        name: of the stage's record, `FOLDER/NAME.json`.
        title: what the stage does, for people.
        command: program and arguments.
        recipe: a file that goes into the result beside the command; None where there is none.
        produces: what must be there when the command has left with exit code 0. A training that was asked to stop
            leaves with 0, too, but without its last checkpoint.
    """

    name: str
    title: str
    command: list[str]
    recipe: str | None = None
    produces: list[str] = field(default_factory=list)


def run_stages(stages: list[Stage], folder: str | Path) -> bool:
    """Run what is not finished yet.

    Records go to `folder`: the command, the hash of all that went in, seconds, peak memory.

    Returns:
        whether anything was left to run.

    Raises:
        UserError: a stage failed, or was finished with other inputs.
        KeyboardInterrupt: after the running command has ended.
    """
    folder = Path(folder)
    done = finished_stages(stages, folder)
    inputs = ""
    for number, stage in enumerate(stages, 1):
        inputs = input_hash(stage, inputs)
        if number <= len(done):
            continue
        print(f"\n[{number}/{len(stages)}] {stage.title}\n$ {shlex.join(stage.command)}", flush=True)
        record = {"command": stage.command, "inputs": inputs, **run_command(stage)}
        write_text(folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")
    return len(done) < len(stages)


def finished_stages(stages: list[Stage], folder: Path) -> list[dict[str, Any]]:
    """The records of the stages finished so far, in order.

    Raises:
        UserError: one was finished with another command or recipe.
    """
    records, inputs = [], ""
    for stage in stages:
        inputs = input_hash(stage, inputs)
        path = folder / f"{stage.name}.json"
        if not path.exists():
            break
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["inputs"] != inputs:
            raise UserError(
                f"{path}: this stage was finished with another command, recipe or text; remove {folder.parent} to "
                "start afresh, or choose another --output_dir"
            )
        records.append(record)
    return records


def input_hash(stage: Stage, before: str) -> str:
    """sha256 of a stage's command, its recipe's content and all that went into the stages before it."""
    recipe = Path(stage.recipe).read_text(encoding="utf-8") if stage.recipe else ""
    return hashlib.sha256(json.dumps([before, stage.command, recipe]).encode()).hexdigest()


def run_command(stage: Stage) -> dict[str, float]:
    """Run a stage's command to its end; its seconds and its peak memory in GiB (its largest process)."""
    began = time.time()
    # Open files pass to the command, `only_one`'s lock among them: should this process be killed, the command still
    # holds the lock while it runs.
    process = subprocess.Popen(stage.command, close_fds=False)
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the command as well; it saves what it has, or has ended already.
        with suppress(ChildProcessError):
            os.wait4(process.pid, 0)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    code = os.waitstatus_to_exitcode(status)
    if asked or code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise UserError(
            f"{stage.title} ended with exit code {code}; its own words stand above. What is finished is kept: the same "
            "command goes on from here"
        )
    missing = [path for path in stage.produces if not Path(path).exists()]
    if missing:
        raise UserError(f"{stage.title} stopped before {missing[0]} was there; the same command goes on from here")
    return {"seconds": round(time.time() - began, 1), "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2)}


@contextmanager
def only_one(folder: str | Path) -> Iterator[None]:
    """Hold a folder's lock, which running commands hold as well, so that two runs never write side by side."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run in {folder} to end …", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
