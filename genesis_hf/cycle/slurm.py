"""Stages as jobs of Slurm that wait for each other."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.stages import Stage, Stages, only_one

DEFAULTS = {"nodes": "1", "ntasks": "1", "signal": "B:USR1@300", "requeue": "", "open-mode": "append"}
"""sbatch: five minutes before the time limit the job is told to save and leave, and queues itself again."""

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
"""States of jobs that Slurm won't run any more."""

SCRIPT = """#!/bin/bash
# Near the time limit (USR1) the stage saves and leaves, and the job queues itself again; cancelled (TERM), it doesn't.
cd {folder} || exit 1
again='' cancelled=''
trap 'again=1; kill -TERM "$stage"' USR1
trap 'cancelled=1; kill -TERM "$stage"' TERM
{command} &
stage=$! code=0
wait "$stage" || code=$?
while kill -0 "$stage" 2>/dev/null; do   # a wait ends with the signal, the stage when it has saved
    code=0
    wait "$stage" || code=$?
done
[ -z "$cancelled" ] || exit 143
if [ -n "$again" ] && [ "$code" -gt 128 ]; then
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    exit 0
fi
exit "$code"
"""


def submit(stages: Stages, arguments: list[str]) -> None:
    """Submit what isn't finished and isn't waiting or running already; print a line a stage.

    A job runs one stage (`cycle.py --config … --stage NAME`), recorded as it is here. It waits until all jobs it comes
    after have ended well; where one failed, Slurm takes what comes after it out of the queue, nothing else.

    Args:
        arguments: of `cycle.py`, for each job to be given.

    Raises:
        UserError: no Slurm on this machine; or stages that are stale, or jobs that sbatch refuses, after all others
            were submitted.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UserError(f"scheduler: slurm needs {program}, which is not here; run it where jobs are submitted")
    jobs: dict[str, str] = {}
    failed: list[str] = []
    left_out: list[str] = []
    with only_one(stages.folder, ".submit.lock"):
        for name, stage in stages.all.items():
            if {*failed, *left_out} & {*stage.after}:
                left_out.append(name)
                continue
            try:
                words = submit_stage(stages, stage, arguments, jobs)
            except UserError as error:
                failed.append(name)
                words = str(error)
            print(f"{name}: {words}", file=sys.stderr if name in failed else sys.stdout, flush=True)
    if failed:
        raise UserError(
            f"{', '.join(failed)} could not be submitted, for the reasons above"
            + (f"; left out, for they come after: {', '.join(left_out)}" if left_out else "")
        )


def submit_stage(stages: Stages, stage: Stage, arguments: list[str], jobs: dict[str, str]) -> str:
    """Submit one stage where that is due, add its job's number to `jobs`, and say what was done."""
    if stages.record(stage) is not None:
        return "finished"
    known = job_file(stages, stage)
    job = known.read_text(encoding="utf-8").strip() if known.exists() else ""
    if job and waits_or_runs(job):
        jobs[stage.name] = job
        return f"is job {job} already"
    job = sbatch(stage, stages.folder, arguments, [jobs[before] for before in stage.after if before in jobs])
    write_text(known, f"{job}\n")
    jobs[stage.name] = job
    return f"job {job}"


def job_file(stages: Stages, stage: Stage) -> Path:
    return stages.folder / "jobs" / f"{stage.name}.job"


def waits_or_runs(job: str) -> bool:
    """Whether Slurm still has a job to run or is running it.

    Raises:
        UserError: squeue fails, for another reason than that it has forgotten the job.
    """
    answer = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise UserError(f"squeue can't say whether job {job} still runs: {' '.join(answer.stderr.split())}")
    return bool({*answer.stdout.split()} - ENDED)


def sbatch(stage: Stage, folder: Path, arguments: list[str], after: list[str]) -> str:
    """Submit one stage; its job's number."""
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    answer = subprocess.run(
        sbatch_line(stage, folder, after), input=job_script(stage, arguments), capture_output=True, text=True
    )
    if answer.returncode:
        raise UserError(f"sbatch refused the job: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().partition(";")[0]


def sbatch_line(stage: Stage, folder: Path, after: list[str]) -> list[str]:
    """The command that submits a stage's script."""
    options: Mapping[str, str | None] = {
        "job-name": stage.name,
        "output": f"{folder}/jobs/{stage.name}-%j.log",
        **DEFAULTS,
        **stage.slurm,
    }
    words = [f"--{key}={value}" if value else f"--{key}" for key, value in options.items() if value is not None]
    line = ["sbatch", "--parsable", *words]
    return [*line, f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else line


def job_script(stage: Stage, arguments: list[str]) -> str:
    """What the job does: one stage, in the folder that the jobs are submitted from."""
    command = [sys.executable, "scripts/cycle.py", *arguments, "--stage", stage.name]
    return SCRIPT.format(folder=shlex.quote(str(Path.cwd())), command=shlex.join(command))


# ---------------------------------------------------------------------------------------------------------
# Options of sbatch
# ---------------------------------------------------------------------------------------------------------


def sbatch_options(written: Mapping[str, Any]) -> dict[str, str | None]:
    """A recipe's `slurm:` as options: true is a bare flag, false and null are left out.

    Raises:
        UserError: a time limit that YAML has read as a number, or that leaves no time to work in.
    """
    options = {key.replace("_", "-"): value for key, value in written.items()}
    words = {k: None if v is None or v is False else "" if v is True else str(v) for k, v in options.items()}
    notice = re.fullmatch(r"B:USR1@(\d+)", words.get("signal") or DEFAULTS["signal"])
    if not notice:
        raise UserError(f"slurm: signal must be B:USR1@SECONDS, which the job waits for, not {words['signal']}")
    least = 2 * int(notice[1])
    time = options.get("time")
    if isinstance(time, int) and time >= least:
        raise UserError(f"slurm: time is read as {time} minutes (YAML reads 12:00:00 as 43200); put it in quotes")
    seconds = limit_seconds(str(time))
    if seconds is not None and 0 < seconds < least:
        raise UserError(f"slurm: time {time} is too short: {notice[1]} s before its end a job saves; give {least} s")
    return words


def limit_seconds(time: str) -> int | None:
    """The seconds of sbatch's MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM and D-HH:MM:SS; None of other words."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        return None
    first, second, third = (int(part or 0) for part in match.groups()[1:])
    if match[1] is not None:
        return int(match[1]) * 86400 + first * 3600 + second * 60 + third
    if match[4] is not None:
        return first * 3600 + second * 60 + third
    return first * 60 + second
