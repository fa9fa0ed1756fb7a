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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

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
        reads: files and folders of data, or globs of them, that go into the result besides.
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
    slurm: dict[str, str | None] = field(default_factory=dict)

    def is_there(self) -> bool:
        return all(os.path.exists(path) for path in self.produces)


class Stages:
    """A pipeline and its records, a file a finished stage: the command, hashes of all that went in and of what came
    out, seconds, peak memory.
    """

    def __init__(self, stages: list[Stage], folder: str | Path) -> None:
        """stages: each after those that it depends on.

        Raises:
            UserError: two of them have one name, or make the same thing.
        """
        twice = repeated(stage.name for stage in stages)
        if twice:
            raise UserError(f"two stages are called {twice}; give a branch or a phase of them another name")
        twice = repeated(path for stage in stages for path in stage.produces)
        if twice:
            raise UserError(f"two stages make {twice}; leave one of them out, or share it as one of each_milestone")
        self.folder = Path(folder)
        self.all = {stage.name: stage for stage in stages}

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """What is known of a finished stage; None of one that isn't, or some of whose product is gone.

        Raises:
            UserError: it was finished with other inputs, or without what it now comes after, or its product is another
                by now.
        """
        path = self.folder / f"{stage.name}.json"
        recorded = read_json(path)
        if stage.lasting and stage.is_there():
            return {"command": stage.command, "inputs": {}, **recorded, "outputs": outputs(stage)}
        if stage.lasting and recorded:  # what came of it stands without it
            return recorded
        if not recorded or missing(stage, recorded):
            return None
        inputs = self.inputs(stage)
        if inputs is None:
            return None
        before = recorded.get("inputs")
        before = before if isinstance(before, dict) else {}
        changed = [name for name in sorted({*inputs, *before}) if inputs.get(name) != before.get(name)]
        if changed:
            raise UserError(
                f"{path}: it was finished with other inputs (what changed: {', '.join(changed)}); restore them, "
                f"or remove that file and {', '.join(stage.produces) or 'what it made'} to run it again"
            )
        if "outputs" in recorded and recorded["outputs"] != outputs(stage):
            raise UserError(
                f"{path}: what it made changed since it was made; restore it, or remove that file and "
                f"{', '.join(stage.produces)} to make it again"
            )
        return recorded

    def inputs(self, stage: Stage) -> dict[str, str] | None:
        """Hashes of what goes into a stage, by their names; None while a stage before it isn't finished."""
        hashes = {"command": hash_items([portable(stage.command)])}
        for name in stage.after:
            before = self.record(self.all[name])
            if before is None:
                return None
            hashes[f"stage {name}"] = str(before.get("outputs"))
        if stage.recipe:
            hashes[stage.recipe] = recipe_sha256(stage.recipe)
        for path in stage.reads:
            hashes[path] = data_sha256(path)
        return hashes

    def run(self, stage: Stage) -> None:
        """Run one stage, whose predecessors are finished, and record it; wait where it is running already.

        Raises:
            UserError: it failed, or stopped early.
            KeyboardInterrupt: after the command has ended; what it has finished all the same is recorded.
        """
        with only_one(self.folder, f".{stage.name}.lock"):
            if self.record(stage) is not None:
                return
            inputs = self.inputs(stage)
            if inputs is None:
                raise UserError(f"{stage.title}: what it comes after is not finished ({', '.join(stage.after)})")
            path = self.folder / f"{stage.name}.json"
            before = read_json(path)
            measured, interrupted = run_command(stage, before if before.get("inputs") == inputs else {})
            files = [file for product in stage.produces for file in product_files(product)]
            made = {"outputs": outputs(stage), "files": files, **measured}
            write_text(path, json.dumps({"command": stage.command, "inputs": inputs, **made}, indent=1) + "\n")
        if interrupted:
            raise KeyboardInterrupt

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
        if key not in written or written[key] != value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            line += [f"--{key}={text}"] if text.startswith("--") else [f"--{key}", text]
    return line


def portable(command: list[str]) -> list[str]:
    """A command without what changes no result: the place of Python, and on how many devices it is launched."""
    launched = command[1:3] == ["-m", "accelerate.commands.launch"]
    words = [command[0], *command[5:]] if launched else command
    return ["python" if word == sys.executable else word for word in words]


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def missing(stage: Stage, recorded: Mapping[str, Any]) -> list[str]:
    """What of a stage's products isn't there, or not as complete as it was recorded."""
    files = recorded.get("files")
    parts = [file for file in files if isinstance(file, str)] if isinstance(files, list) else []
    return [path for path in [*stage.produces, *parts] if not os.path.exists(path)]


def outputs(stage: Stage) -> str:
    """One hash over all that a stage produced."""
    return hash_items([content_sha256(path) for path in stage.produces])


def content_sha256(path: str) -> str:
    """A hash of a product, a file or a folder; `absent` of nothing.

    Of a checkpoint it is that of its manifest, which holds the hashes of all its files; of a model's folder that of
    what a model is read from, so that results put beside it change nothing.
    """
    place = Path(path)
    if os.path.isfile(place / "manifest.json"):
        return remembered_sha256(place / "manifest.json")
    if os.path.isfile(place / "config.json"):
        return folder_sha256(place, MODEL_FILES, remembered_sha256)
    return data_sha256(path)


def product_files(path: str) -> list[str]:
    """The files that a product is known by."""
    place = Path(path)
    if os.path.isfile(place / "manifest.json"):
        return [str(place / "manifest.json")]
    if os.path.isfile(place / "config.json"):
        return sorted({str(file) for pattern in MODEL_FILES for file in place.glob(pattern)})
    return data_files(path)


def data_sha256(path: str) -> str:
    """A hash of a file, of all files of a folder, or of all that a glob matches; `absent` of nothing."""
    if os.path.isfile(path):
        return remembered_sha256(Path(path))
    files = data_files(path)
    return hash_items([[name, remembered_sha256(Path(name))] for name in files]) if files else "absent"


def data_files(path: str) -> list[str]:
    """A file, the files below a folder, or those that a glob matches; what Python compiles there is no data."""
    if os.path.isdir(path):
        names = glob.glob(f"{glob.escape(path)}/**", recursive=True)
    else:
        names = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    return sorted(name for name in names if os.path.isfile(name) and "__pycache__" not in name)


def recipe_sha256(path: str) -> str:
    """A hash of what a recipe says; comments and the order of its keys change nothing."""
    return hash_items([yaml.safe_dump(read_yaml(path))])


# ---------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------


def run_command(stage: Stage, before: Mapping[str, Any]) -> tuple[dict[str, float], bool]:
    """Run a stage's command to its end.

    Args:
        before: the record of a product, parts of which are gone and have to be there again.

    Returns:
        its seconds and its peak memory in GiB (its largest process), and whether it was to stop but had all done.

    Raises:
        UserError: it failed, or left without its products.
        KeyboardInterrupt: it was to stop, and has ended.
    """
    began = time.time()
    # Open files pass to the command, `only_one`'s locks among them: should this process be killed, the command still
    # holds the locks while it runs.
    process = subprocess.Popen(stage.command, close_fds=False)
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # A terminal's Ctrl-C has reached the command as well. Always as TERM: a training's save survives any number of
        # them, but not a second INT.
        if number == signal.SIGTERM or not in_foreground():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in heard}
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    gone = missing(stage, before)
    interrupted = bool(asked) or code in (130, -signal.SIGINT)
    if interrupted and (code or gone or not stage.produces):
        raise KeyboardInterrupt
    if code:
        raise UserError(f"{stage.title} ended with exit code {code}; its own words stand above")
    if gone:
        raise UserError(
            f"{stage.title} stopped before {gone[0]} was there; if it says that it had finished before, remove its "
            "folder to have it made again"
        )
    measured = {"seconds": round(time.time() - began, 1), "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2)}
    return measured, interrupted


def in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to this process and those that it started."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # no terminal
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


@contextmanager
def only_one(folder: str | Path, name: str = ".lock") -> Iterator[None]:
    """Hold a folder's lock, which running commands hold as well, so that two runs never write side by side.

    Raises:
        UserError: the folder can't be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).touch()
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror}); name another folder") from None
    with open(Path(folder) / name, "w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run in {folder} to end …", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
