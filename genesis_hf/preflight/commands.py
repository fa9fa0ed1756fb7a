"""A command run to its end, or ended: with its log, its progress and everything it started."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRESS_SECONDS = 20.0
"""Between two lines about a command that is under way."""


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        wrong: one line why it counts as failed; empty where it exited with 0.
        seconds: wall time.
        output: standard output and error.
    """

    wrong: str
    seconds: float
    output: str


def run_command(
    name: str,
    command: Sequence[str],
    log: Path,
    silent_minutes: float,
    sign_of_life: Callable[[], str] = lambda: "",
) -> Ended:
    """Run a command with its output in `log`; its processes are gone when this returns or raises.

    Args:
        name: what the lines about its progress call it.
        silent_minutes: without new output or another sign of life for so long, it counts as hung and is killed.
        sign_of_life: a word on how far it is.
    """
    print(f"preflight: {name} …", flush=True)
    start = alive = told = time.monotonic()
    seen = said = ""
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while True:
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                pass
            now, word = time.monotonic(), sign_of_life()
            sign = f"{log.stat().st_size} {word}"
            if sign != seen:
                seen, alive = sign, now
            elif now - alive > 60 * silent_minutes:
                break
            if word != said and now - told > PROGRESS_SECONDS:
                said, told = word, now
                print(f"preflight: {name}: {word}", flush=True)
    finally:
        hung = process.poll() is None
        end_with_children(process)
    output = log.read_text(encoding="utf-8", errors="replace")
    wrong = ""
    if hung:
        wrong = f"no sign of life for {silent_minutes:g} minutes; it was ended{last_words(output)}"
    elif process.returncode < 0:
        wrong = f"ended by {signal.Signals(-process.returncode).name}{last_words(output)}"
    elif process.returncode:
        wrong = reason(output) or f"exit code {process.returncode}{last_words(output)}"
    return Ended(wrong, time.monotonic() - start, output)


def end_with_children(process: subprocess.Popen) -> None:
    """Kill a process and all that it started, whatever their sessions: a launcher's workers have their own."""
    family: list[psutil.Process] = []
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)


def reason(output: str) -> str:
    """The line with which one of our scripts, or an exception that nobody caught, names what is wrong; "" if none."""
    errors = re.findall(r"^(?:\[rank\d+\]:? *)?(?:error: (.+)|(\w+(?:\.\w+)*(?:Error|Exception): .+))$", output, re.M)
    return (errors[0][0] or errors[0][1]).strip() if errors else ""


def last_words(output: str) -> str:
    """`; its last line: …`"""
    lines = [line.strip() for line in re.split(r"[\r\n]", output) if line.strip()]
    return f"; its last line: {lines[-1][:300]}" if lines else ""
