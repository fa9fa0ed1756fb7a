"""Stages as jobs of Slurm that wait for each other."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.stages import Stage, Stages

DEFAULTS = {"nodes": "1", "ntasks": "1", "signal": "B:TERM@300", "requeue": "", "open-mode": "append"}
"""sbatch: five minutes before the time limit the job is told to save and leave, and queues itself again."""

SCRIPT = """#!/bin/bash
# The shell hands TERM on to the stage, which saves and leaves; the job then queues itself again and goes on.
cd {folder} || exit 1
stopped=''
trap 'stopped=1; kill -TERM "$stage"' TERM
{command} &
stage=$! code=0
wait "$stage" || code=$?
if [ -n "$stopped" ]; then
    wait "$stage" || true   # the first wait ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
"""


def submit(stages: Stages, arguments: list[str]) -> list[str]:
    """Submit what isn't finished and isn't waiting or running already.

    A job runs one stage (`cycle.py --config … --stage NAME`), recorded as it is here. It waits until all jobs it comes
    after have ended well; where one failed, Slurm takes what comes after it out of the queue, nothing else.

    Args:
        arguments: of `cycle.py`, for each job to be given.

    Returns:
        a line a stage.

    Raises:
        UserError: no Slurm on this machine, or a job that sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("scheduler: slurm needs sbatch, which is not on this machine; run it where jobs are submitted")
    lines, jobs = [], {}
    for name, stage in stages.all.items():
        if stages.record(stage) is not None:
            lines.append(f"{name}: finished")
            continue
        known = job_file(stages, stage)
        job = known.read_text(encoding="utf-8").strip() if known.exists() else ""
        if job and waits_or_runs(job):
            lines.append(f"{name}: is job {job} already")
        else:
            job = sbatch(stage, stages.folder, arguments, [jobs[before] for before in stage.after if before in jobs])
            write_text(known, f"{job}\n")
            lines.append(f"{name}: job {job}")
        jobs[name] = job
    return lines


def job_file(stages: Stages, stage: Stage) -> Path:
    return stages.folder / "jobs" / f"{stage.name}.job"


def waits_or_runs(job: str) -> bool:
    """Whether Slurm still has a job to run or is running it."""
    answer = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
    return any(line.strip() not in ("", "COMPLETED", "FAILED", "CANCELLED") for line in answer.stdout.splitlines())


def sbatch(stage: Stage, folder: Path, arguments: list[str], after: list[str]) -> str:
    """Submit one stage; its job's number."""
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    answer = subprocess.run(
        sbatch_line(stage, folder, after), input=job_script(stage, arguments), capture_output=True, text=True
    )
    if answer.returncode:
        raise UserError(f"{stage.name}: sbatch refused the job: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().partition(";")[0]


def sbatch_line(stage: Stage, folder: Path, after: list[str]) -> list[str]:
    """The command that submits a stage's script."""
    options: Mapping[str, str] = {
        "job-name": stage.name,
        "output": f"{folder}/jobs/{stage.name}-%j.log",
        **DEFAULTS,
        **stage.slurm,
    }
    line = ["sbatch", "--parsable", *(f"--{key}={value}" if value else f"--{key}" for key, value in options.items())]
    return [*line, f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else line


def job_script(stage: Stage, arguments: list[str]) -> str:
    """What the job does: one stage, in the folder that the jobs are submitted from."""
    command = [sys.executable, "scripts/cycle.py", *arguments, "--stage", stage.name]
    return SCRIPT.format(folder=shlex.quote(str(Path.cwd())), command=shlex.join(command))
