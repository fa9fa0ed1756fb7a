"""Commands that depend on each other, each run once: what is finished is recognised by what went into it."""

import fcntl
import glob
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genesis_hf.config import read_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import MODEL_FILES, folder_sha256, hash_items, read_json, remembered_sha256


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
        after: names of the stages whose products it uses.
        reads: files and folders, or globs of them, that go into the result besides.
        lasting: a product, once it is there, stands, whatever the recipe says by now: a trunk's checkpoint is not
            trained anew when the trunk is made longer.
        slurm: options of sbatch, for `genesis_hf.cycle.slurm`.
    """

    name: str
    title: str
    command: list[str]
    recipe: str | None = None
    produces: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    lasting: bool = False
    slurm: dict[str, str] = field(default_factory=dict)

    def is_there(self) -> bool:
        return all(Path(path).exists() for path in self.produces)


class Stages:
    """A pipeline and its records, a file a finished stage: the command, hashes of all that went in and of what came
    out, seconds, peak memory.
    """

    def __init__(self, stages: list[Stage], folder: str | Path) -> None:
        """stages: each after those that it depends on."""
        self.folder = Path(folder)
        self.all = {stage.name: stage for stage in stages}

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """What is known of a finished stage; None of one that isn't, or whose product is gone.

        Raises:
            UserError: it was finished with other inputs, or without what it now comes after.
        """
        path = self.folder / f"{stage.name}.json"
        recorded = read_json(path)
        if stage.lasting and stage.is_there():
            return {"command": stage.command, "inputs": {}, **recorded, "outputs": outputs(stage)}
        if stage.lasting and recorded:  # what came of it stands without it
            return recorded
        if not recorded or not stage.is_there():
            return None
        inputs = self.inputs(stage)
        if inputs is None:
            return None
        before = recorded.get("inputs")
        before = before if isinstance(before, dict) else {}  # records of earlier versions hold one hash
        changed = [name for name in sorted({*inputs, *before}) if inputs.get(name) != before.get(name)]
        if changed:
            raise UserError(
                f"{path}: it was finished with other inputs (what changed: {', '.join(changed)}); restore them, "
                f"or remove that file and {', '.join(stage.produces) or 'what it made'} to run it again"
            )
        return recorded

    def inputs(self, stage: Stage) -> dict[str, str] | None:
        """Hashes of what goes into a stage, by their names; None while a stage before it isn't finished."""
        hashes = {"command": hash_items([portable(stage.command)])}
        for name in stage.after:
            before = self.record(self.all[name])
            if before is None:
                return None
            hashes[f"stage {name}"] = before["outputs"]
        for path in [*([stage.recipe] if stage.recipe else []), *stage.reads]:
            hashes[path] = content_sha256(path)
        return hashes

    def run(self, stage: Stage) -> None:
        """Run one stage, whose predecessors are finished, and record it.

        Raises:
            UserError: it failed, or stopped early.
            KeyboardInterrupt: after the command has ended.
        """
        inputs = self.inputs(stage)
        if inputs is None:
            raise UserError(f"{stage.title}: what it comes after is not finished ({', '.join(stage.after)})")
        measured = run_command(stage)
        record = {"command": stage.command, "inputs": inputs, "outputs": outputs(stage), **measured}
        write_text(self.folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")

    def run_all(self) -> bool:
        """Run what isn't finished; a stage that fails stops what comes after it, nothing else.

        Returns:
            whether anything was left to run.

        Raises:
            UserError: stages failed, after all others were run.
            KeyboardInterrupt: after the running command has ended.
        """
        ran, failed, left_out = False, [], []
        for number, stage in enumerate(self.all.values(), 1):
            if {*failed, *left_out} & {*stage.after}:
                left_out.append(stage.name)
                continue
            try:
                if self.record(stage) is None:
                    ran = True
                    print(f"\n[{number}/{len(self.all)}] {stage.title}\n$ {shlex.join(stage.command)}", flush=True)
                    self.run(stage)
            except UserError as error:
                failed.append(stage.name)
                print(f"{stage.name}: {error}", file=sys.stderr, flush=True)
        if failed:
            raise UserError(
                f"{', '.join(failed)} did not finish, for the reasons above"
                + (f"; left out, for they come after: {', '.join(left_out)}" if left_out else "")
                + ". What is finished is kept: the same command goes on from here"
            )
        return ran

    def finished(self) -> list[dict[str, Any]]:
        """The records of the stages finished so far, in order."""
        return [record for stage in self.all.values() if (record := self.record(stage)) is not None]


# ---------------------------------------------------------------------------------------------------------
# What goes in and comes out
# ---------------------------------------------------------------------------------------------------------


def script_command(
    script: str,
    config: str | None,
    settings: Mapping[str, Any],
    arguments: Sequence[str] = (),
    accelerate_config: str | None = None,
) -> list[str]:
    """`python scripts/SCRIPT.py ARGUMENTS --config … --key value …`, or the same by way of accelerate launch.

    It names the settings that differ from what the recipe says already.
    """
    launcher = ["-m", "accelerate.commands.launch", "--config_file", accelerate_config] if accelerate_config else []
    line = [sys.executable, *launcher, f"scripts/{script}.py", *arguments, *(["--config", config] if config else [])]
    written = read_yaml(config) if config else {}
    for key, value in settings.items():
        if written.get(key) != value:
            line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return line


def portable(command: list[str]) -> list[str]:
    """A command without the place of Python, which changes no result."""
    return ["python" if word == sys.executable else word for word in command]


def outputs(stage: Stage) -> str:
    """One hash over all that a stage produced."""
    return hash_items([content_sha256(path) for path in stage.produces])


def content_sha256(path: str) -> str:
    """A hash of a file, of a folder, or of all that a glob matches; `absent` of nothing.

    Of a checkpoint it is that of its manifest, which holds the hashes of all its files; of a model's folder that of
    what a model is read from, so that results put beside it change nothing.
    """
    place = Path(path)
    if place.is_file():
        return remembered_sha256(place)
    if (place / "manifest.json").is_file():
        return remembered_sha256(place / "manifest.json")
    if (place / "config.json").is_file():
        return folder_sha256(place, MODEL_FILES, remembered_sha256)
    names = glob.glob(f"{path}/**" if place.is_dir() else path, recursive=True)
    files = sorted(name for name in names if os.path.isfile(name))
    return hash_items([[name, remembered_sha256(Path(name))] for name in files]) if files else "absent"


# ---------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------


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
        raise UserError(f"{stage.title} ended with exit code {code}; its own words stand above")
    missing = [path for path in stage.produces if not Path(path).exists()]
    if missing:
        raise UserError(f"{stage.title} stopped before {missing[0]} was there")
    return {"seconds": round(time.time() - began, 1), "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2)}


@contextmanager
def only_one(folder: str | Path, name: str = ".lock") -> Iterator[None]:
    """Hold a folder's lock, which running commands hold as well, so that two runs never write side by side."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / name, "w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run in {folder} to end …", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
