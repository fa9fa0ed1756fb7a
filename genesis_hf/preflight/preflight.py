"""The checks of a recipe on its machine, one after the other."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genesis_hf.config import PretrainRecipe, check_positive, read_yaml, recipe_yaml, setting, write_text
from genesis_hf.errors import UserError
from genesis_hf.modeling import parameter_count
from genesis_hf.preflight import disk, judgements, machine
from genesis_hf.preflight.commands import run_command
from genesis_hf.preflight.trial import Trial
from genesis_hf.preflight.verdicts import Verdict, exit_code, size
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.setup import accumulation_steps, fitted_config

MARK = ".preflight"
"""A file in the folder of a preflight, locked while it runs: only what bears it is ever removed."""


@dataclass
class PreflightRecipe:
    """`scripts/preflight.py`, beside the pretraining recipe that it tries."""

    preflight_steps: int = setting(100, "optimizer steps to train")
    accelerate_config: str | None = setting(None, "the YAML that the run will be launched with; null: one process")
    scratch_dir: str | None = setting(
        None, "where NAME.preflight is made, with two checkpoints and an export; null: beside output_dir"
    )
    silent_minutes: float = setting(15.0, "minutes without a sign of life until a command counts as hung")
    output_file: str | None = setting(None, "also write the verdicts there, as JSON")

    def __post_init__(self) -> None:
        check_positive(self, "silent_minutes")
        if self.preflight_steps < 2:
            raise UserError(f"preflight_steps must be at least 2, not {self.preflight_steps}")


def preflight(wanted: PreflightRecipe, recipe: PretrainRecipe, scripts: Path) -> list[Verdict]:
    """Try a recipe as its run will be launched; its `output_dir` is not touched.

    Args:
        scripts: the folder of pretrain.py and export.py.

    Returns:
        a verdict for each check. Where one is wrong, or a check did not run, the trial's folder stays.

    Raises:
        UserError: the recipe's tokenizer and model don't fit, the launch is none for this, or the folder is in use.
    """
    launcher = launch_command(wanted)
    parameters = parameter_count(fitted_config(recipe, load_tokenizer(recipe.tokenizer)))
    with scratch_folder(wanted, recipe) as scratch:
        trial = Trial(recipe, wanted.preflight_steps, scratch, scripts, launcher, wanted.silent_minutes)
        verdicts = check(recipe, trial, parameters)
        if exit_code(verdicts) == 0:
            shutil.rmtree(scratch)
        else:
            print(f"preflight: what was tried stays in {scratch}", flush=True)
    if wanted.output_file:
        result = {"ready": exit_code(verdicts) == 0, "verdicts": [asdict(verdict) for verdict in verdicts]}
        write_text(wanted.output_file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return verdicts


def check(recipe: PretrainRecipe, trial: Trial, parameters: int) -> list[Verdict]:
    """The checks in their order; what needs a check that went wrong is not run."""
    verdicts = disk.room(recipe, parameters)
    if (short := scratch_room(trial, parameters)) is not None:
        return [*verdicts, short, *not_run("launch", "training", "save", "resume", "second save", "export")]

    # --------------------------------------------------------------------------------------- the machine
    found, wrong = probed(trial, parameters)
    if found is None:
        verdicts.insert(0, wrong)
        return [*verdicts, *not_run("training", "save", "resume", "second save", "export")]
    verdicts.insert(0, machine.judge_launch(recipe, found))
    print("preflight: disk speed …", flush=True)
    speeds = disk.write_speed(recipe, parameters)

    # -------------------------------------------------------------------------------------- the first steps
    ended = trial.train()
    records = trial.records()
    per_step = judgements.tokens_per_step(
        recipe, accumulation_steps(recipe, found["num_processes"]), found["num_processes"]
    )
    training = judgements.judge_training(trial, ended, records)
    seconds = judgements.step_seconds(records, per_step)
    verdicts.insert(1, machine.judge_all_reduce(found, parameters, seconds))
    verdicts += disk.judge_write_speed(recipe, parameters, speeds, seconds)
    verdicts.append(training)
    if training.verdict == "wrong" or seconds is None:
        return [*verdicts, *not_run("save", "resume", "second save", "export")]
    verdicts += [
        judgements.judge_memory(trial, records, found),
        judgements.judge_speed(trial, records, seconds, per_step),
        judgements.judge_data(records),
        judgements.judge_stall(recipe, records, seconds),
        judgements.judge_saves("save", trial, [trial.last, trial.saved]),
    ]
    if verdicts[-1].verdict == "wrong":
        return [*verdicts, *not_run("resume", "second save", "export")]

    # --------------------------------------------------------------------------- a new process, and an export
    ended = trial.resume()
    on_card = found["processes"][0]["device"] != "cpu"
    verdicts.append(judgements.judge_resume(trial, ended, records, trial.records(), on_card))
    if ended.wrong:
        return [*verdicts, *not_run("second save", "export")]
    verdicts.append(judgements.judge_saves("second save", trial, [trial.last]))
    verdicts.append(judgements.judge_export(trial, trial.export()))
    return verdicts


def probed(trial: Trial, parameters: int) -> tuple[dict[str, Any] | None, Verdict | None]:
    """What the launch finds on this machine, or what is wrong with it."""
    answer, recipe_file = trial.scratch / "probe.json", trial.scratch / "probe.yaml"
    write_text(recipe_file, recipe_yaml(trial.recipe))
    # Enough for a steady speed.
    count = max(2**20, min(4 * parameters, 2**28))
    launcher = [*trial.launcher, "-m", "genesis_hf.preflight.probe"]
    ended = run_command(
        "launch", [*launcher, str(recipe_file), str(answer), str(count)], trial.scratch / "launch.log", trial.silent
    )
    if ended.wrong:
        mend = f"as it says; all of its output: {trial.scratch / 'launch.log'}. A launch of several cards that hangs: "
        return None, Verdict("launch", "wrong", ended.wrong, mend + 'env: {NCCL_P2P_DISABLE: "1"}')
    return json.loads(answer.read_text(encoding="utf-8")), None


def scratch_room(trial: Trial, parameters: int) -> Verdict | None:
    """What is wrong where the trial's own three checkpoints and two copies of an export have no room."""
    needed = 3 * disk.checkpoint_bytes(parameters) + 2 * 4 * parameters
    free = shutil.disk_usage(trial.scratch).free
    if free >= needed:
        return None
    figure = f"the trial needs {size(needed)} in {trial.scratch.parent}, {size(free)} are free"
    return Verdict("room (scratch_dir)", "wrong", figure, "--scratch_dir on another disk, or room on this one")


def not_run(*checks: str) -> list[Verdict]:
    return [Verdict(check, "not run", "after what went wrong above") for check in checks]


def launch_command(wanted: PreflightRecipe) -> list[str]:
    """The command before a script's name.

    Raises:
        UserError: preflight itself was launched by Accelerate; no such YAML, or one of several machines.
    """
    if "RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "preflight launches the processes itself: python scripts/preflight.py --config … "
            "--accelerate_config accelerate_configs/….yaml"
        )
    if wanted.accelerate_config is None:
        return [sys.executable]
    machines = read_yaml(wanted.accelerate_config).get("num_machines", 1)
    if machines != 1:
        raise UserError(
            f"{wanted.accelerate_config} is a launch of {machines} machines; preflight tries one: name a YAML of one"
        )
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    return [*accelerate, "--config_file", wanted.accelerate_config]


@contextlib.contextmanager
def scratch_folder(wanted: PreflightRecipe, recipe: PretrainRecipe) -> Iterator[Path]:
    """NAME.preflight, empty and ours alone; removed after Ctrl-C, SIGTERM or a mistake of the user's.

    Raises:
        UserError: something else stands there, or another preflight runs there.
    """
    output = Path(recipe.output_dir).absolute()
    folder = (Path(wanted.scratch_dir).absolute() if wanted.scratch_dir else output.parent) / f"{output.name}.preflight"
    if folder.exists() and not (folder / MARK).is_file():
        raise UserError(f"{folder} is not a preflight's; name another --scratch_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / MARK, "a") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another preflight runs in {folder}") from None
        for entry in folder.iterdir():
            if entry.name != MARK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        previous = signal.signal(signal.SIGTERM, interrupt)
        try:
            yield folder
        except (KeyboardInterrupt, UserError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)


def interrupt(*signal_and_frame: object) -> None:
    raise KeyboardInterrupt
