"""A tree of trunk and branches, interrupted at random, must end with the models of one that never was.

    python benchmarks/cycle_chaos.py [--config recipes/demo/cycle.yaml] [--interruptions 5] [--output_dir FOLDER]

Runs the tree twice, into OUTPUT/reference and OUTPUT/interrupted; the second is sent SIGINT, SIGTERM or SIGKILL (to all
its processes) after random times. Then both are compared: every weight file of every model, and every score. A third
run over the finished tree must find nothing to do. What is there already of the reference is not run again.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from genesis_hf.files import file_sha256, read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/demo/cycle.yaml")
    parser.add_argument("--output_dir", default="runs/cycle-chaos")
    parser.add_argument("--interruptions", type=int, default=5)
    parser.add_argument("--longest_wait", type=float, help="seconds between interruptions at most; default: evenly")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and all it starts, ignores it

    reference, interrupted = (f"{options.output_dir}/{name}" for name in ("reference", "interrupted"))
    assert run(options.config, reference) == 0, "the reference did not finish"
    length = sum(read_json(path)["seconds"] for path in Path(reference, "stages").glob("*.json"))
    longest = options.longest_wait or length / (options.interruptions + 1)
    rng = random.Random(options.seed)
    for number in range(options.interruptions):
        wait = rng.uniform(5, longest)
        kind = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        code = run(options.config, interrupted, wait, kind)
        finished = len(list(Path(interrupted, "stages").glob("*.json")))
        print(f"{number + 1}: {kind.name} after {wait:.0f} s, exit code {code}, {finished} stages finished", flush=True)
    assert run(options.config, interrupted) == 0, "the interrupted tree did not finish"

    before = stamps(interrupted)
    assert run(options.config, interrupted) == 0
    print("a rerun changed", "nothing" if stamps(interrupted) == before else "FILES")
    compare(Path(reference), Path(interrupted))


def run(config: str, folder: str, wait: float | None = None, kind: signal.Signals | None = None) -> int:
    """Run the tree in a folder, to its end or to a signal; the exit code."""
    command = [sys.executable, "scripts/cycle.py", "--config", config, "--output_dir", folder]
    command += ["--trunk.set.output_dir", f"{folder}/trunk"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(f"{folder}/log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            # Ctrl-C and a power cut reach every process, SIGTERM the one it is sent to
            (os.kill if kind == signal.SIGTERM else os.killpg)(process.pid, kind)
        return process.wait()


def stamps(folder: str) -> dict[str, int]:
    """When each file of the tree was written, but for logs and locks."""
    files = [
        path for path in Path(folder).rglob("*") if path.is_file() and not path.name.endswith((".lock", "log.txt"))
    ]
    return {str(path): path.stat().st_mtime_ns for path in files}


def compare(reference: Path, interrupted: Path) -> None:
    """Print how many weight files and scores are the same; exit code 1 where one is not."""
    weights = sorted(p.relative_to(reference) for p in reference.rglob("*.safetensors") if "checkpoint-" not in str(p))
    same = [path for path in weights if file_sha256(reference / path) == file_sha256(interrupted / path)]
    evaluations = sorted(path.relative_to(reference) for path in reference.rglob("evaluation.json"))
    equal = [p for p in evaluations if read_json(reference / p)["tasks"] == read_json(interrupted / p)["tasks"]]
    print(f"weights: {len(same)} of {len(weights)} models the same to the last bit")
    print(f"scores: {len(equal)} of {len(evaluations)} evaluations the same")
    sys.exit(0 if len(same) == len(weights) > 0 and len(equal) == len(evaluations) > 0 else 1)


if __name__ == "__main__":
    began = time.time()
    try:
        main()
    finally:
        print(f"{(time.time() - began) / 60:.1f} minutes")
