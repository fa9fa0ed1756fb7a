"""Training killed with SIGKILL again and again, held against the same training left alone.

    python benchmarks/chaos.py [--kills 50] [--changes 2] [--seed 0] [--output_file figures.json]

A reference run of a tiny model is trained from start to end. Then the same recipe is trained and killed, at random
moments and at chosen points inside a save, and started again, until it ends; then once more in another folder, until
all kills are spent. After each kill: every complete checkpoint verifies, and the next start goes on from the newest
one. At the end of each run: every step trained on the rows that the reference trained it on, none lost and none twice
in the history that counts; losses, gradient norms and weights identical to the last bit. Then one run on 1, 2 and 1
processes by turns: the same rows, losses within 1e-5. Exit code 1 where anything of this fails.

One process imports everything and forks a child an attempt, so that a start costs no imports.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads don't outlive a fork

import torch

from genesis_hf.checkpoint.folders import STEP_FOLDER, complete_checkpoints
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.checkpoint.restore import load_model
from genesis_hf.config import PretrainRecipe, Source, TokenizerRecipe, parse_recipe, setting, write_text
from genesis_hf.data.stream import PackedStream, StepBatch
from genesis_hf.errors import report_user_errors
from genesis_hf.tokenizer_training import build_tokenizer
from genesis_hf.training.metrics import read_metrics
from genesis_hf.training.pretrain import pretrain

BEFORE_RENAME = {
    "while shards are written": ("open", 0, r"\.distcp$"),
    "between shards and manifest": ("open", 0, r"manifest\.json"),
    "before the rename": ("os.rename", 1, r"^step_\d{9}$"),
}
PLACES = {
    **BEFORE_RENAME,
    "after the rename, before latest": ("open", 0, r"latest"),
    "before latest moves": ("os.rename", 1, r"^latest$"),
    "before an old one is deleted": ("os.rename", 0, r"^step_\d{9}$"),
}
"""Points inside a save: the audit event before which the process is killed, which of its arguments is the path, and
what that path's last part looks like. No function of this package is named, for how a save is written may change."""

MOST_MISSES = 5
"""Times that the end of a run may come before a kill's moment."""


@dataclass
class ChaosRecipe:
    """`benchmarks/chaos.py`"""

    kills: int = setting(50, "times that training on one process is killed")
    changes: int = setting(2, "kills of one more run, each followed by another number of processes: 1, 2, 1 …")
    steps: int = setting(120, "optimizer steps of a run")
    save_steps: int = setting(3, "steps between checkpoints")
    seed: int = setting(0, "of the moments and places")
    output_file: str | None = setting(None, "also write the figures there, as JSON")


@dataclass
class Kill:
    """When to kill: so many seconds after the start, or at a place of the `number`th save."""

    kind: str
    seconds: float = 0.0
    number: int = 1
    misses: int = 0


@dataclass
class Attempt:
    """What one start of training did.

    Attributes:
        rows: by step, a hash of each row in the order of the whole run, as the model was given them.
    """

    kind: str
    killed: bool
    processes: int
    rows: dict[int, list[str]] = field(default_factory=dict)


class Violation(Exception):
    """What a month of training would have lost."""


# ---------------------------------------------------------------------------------------------------------
# The child
# ---------------------------------------------------------------------------------------------------------


def child(recipe: PretrainRecipe, rank: int, world: int, port: int, rows: Path, log: Path, kill: Kill | None) -> None:
    """Train in a fresh process; never returns."""
    code = 1
    try:
        os.setsid()
        with open(log, "ab", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        if world > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
            )
        record_rows(rows)
        if kill is not None and kill.kind in PLACES:
            kill_at(kill)
        pretrain(recipe)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def record_rows(path: Path) -> None:
    """Append a line a step to `path`: the step's last row, counted over the run, and a hash of each row trained on."""
    following, micro_batches = PackedStream.__next__, StepBatch.micro_batches

    def numbered(stream: PackedStream) -> tuple[StepBatch, dict[str, Any]]:
        batch, state = following(stream)
        batch.last_row = state["rows"]
        return batch, state

    def recorded(batch: StepBatch, size: int) -> Any:
        hashes = [
            hashlib.sha256(ids.numpy().tobytes() + starts.numpy().tobytes()).hexdigest()[:16]
            for ids, starts in zip(batch.input_ids, batch.starts, strict=True)
        ]
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([batch.last_row, hashes]) + "\n")
        return micro_batches(batch, size)

    PackedStream.__next__, StepBatch.micro_batches = numbered, recorded


def kill_at(kill: Kill) -> None:
    """SIGKILL this process at a place of its `number`th save, in whatever thread that save is written."""
    event, position, name = PLACES[kill.kind]
    seen: set[str] = set()

    def audit(happening: str, arguments: tuple[Any, ...]) -> None:
        if happening != event or not isinstance(arguments[position], (str, os.PathLike)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = str(arguments[position])
        if "/checkpoints/" not in path or not re.search(name, os.path.basename(path)):
            return
        step = STEP_FOLDER.search(path)  # a save opens several files of a kind, all in one checkpoint's folder
        seen.add(step[0] if step else str(len(seen)))
        if len(seen) >= kill.number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


# ---------------------------------------------------------------------------------------------------------
# The parent
# ---------------------------------------------------------------------------------------------------------


def attempt(recipe: PretrainRecipe, kill: Kill | None, processes: int = 1) -> Attempt:
    """Start training, kill it as said, and see what it did.

    Raises:
        Violation: it ended by itself with an error.
    """
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    log = output.with_name(f"{output.name}.log")
    row_files = [output.with_name(f"{output.name}.rows_{rank}") for rank in range(processes)]
    for path in row_files:
        path.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            child(recipe, rank, processes, port, row_files[rank], log, kill if rank == 0 else None)
        pids.append(pid)
    if kill is not None and kill.seconds:
        time.sleep(kill.seconds)
        os.kill(pids[0], signal.SIGKILL)  # not yet waited for, so it is still this process
    _, status = os.waitpid(pids[0], 0)
    killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    for pid in pids[1:]:  # as a launcher ends the others
        if killed:
            os.kill(pid, signal.SIGKILL)
        _, other = os.waitpid(pid, 0)
        status = status or other
    if not killed and status:
        raise Violation(f"{output.name}: training ended with an error:\n{log.read_text()[-3000:]}")
    kind = kill.kind if kill else "to the end"
    return Attempt(kind, killed, processes, read_rows(row_files, recipe))


def read_rows(files: Sequence[Path], recipe: PretrainRecipe) -> dict[int, list[str]]:
    """By step, the hashes of its rows; a step counts once every process has begun it."""
    rows_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.num_processes
    by_rank: list[dict[int, list[str]]] = []
    for path in files:
        steps: dict[int, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # the kill cut it
                last_row, hashes = json.loads(line)
                step = last_row // rows_per_step
                if step in steps or (steps and step != max(steps) + 1):
                    raise Violation(f"{path.name}: step {step} after step {max(steps)} in one process")
                steps[step] = hashes
        by_rank.append(steps)
    together = set.intersection(*(set(steps) for steps in by_rank))
    return {
        step: [row for rows in zip(*(steps[step] for steps in by_rank), strict=True) for row in rows]
        for step in sorted(together)
    }


def check_checkpoints(recipe: PretrainRecipe, named: Attempt) -> int:
    """The step from which the run would go on; 0 from the start.

    Raises:
        Violation: a folder that looks complete and isn't.
    """
    complete = complete_checkpoints(recipe.output_dir)
    for folder in complete:
        if problems := verify_checkpoint(folder):
            raise Violation(f"killed {named.kind}: {problems[0]}")
    standing = {path.name for path in Path(recipe.output_dir, "checkpoints").glob("step_*")}
    if half := standing - {folder.name for folder in complete}:
        raise Violation(f"killed {named.kind}: {', '.join(sorted(half))} without a manifest")
    return int(STEP_FOLDER.fullmatch(complete[0].name)[1]) if complete else 0


def check_history(recipe: PretrainRecipe, attempts: list[tuple[int, Attempt]], reference: dict[int, list[str]]) -> None:
    """Each start went on where the newest checkpoint stood, and each step had the reference's rows.

    Args:
        attempts: the step that a start had to go on from, and the start.
    """
    history: list[int] = []
    for begin, started in attempts:
        if started.rows and min(started.rows) != begin + 1:
            raise Violation(f"a start went on with step {min(started.rows)} over a checkpoint of step {begin}")
        for step, rows in started.rows.items():
            if rows != reference.get(step):
                raise Violation(f"step {step} had other rows than in the run left alone")
        history = [step for step in history if step <= begin] + list(started.rows)
    if history != list(range(1, recipe.max_steps + 1)):
        raise Violation(f"the steps that count are {history}")


def check_numbers(recipe: PretrainRecipe, reference: PretrainRecipe, tolerance: float = 0.0) -> float:
    """Losses of every step, and with tolerance 0 gradient norms and final weights; the largest relative difference."""
    mine, theirs = losses(recipe), losses(reference)
    if list(mine) != list(range(1, recipe.max_steps + 1)):
        raise Violation(f"metrics.jsonl has steps {list(mine)}")
    worst = max(abs(mine[step][0] - theirs[step][0]) / abs(theirs[step][0]) for step in theirs)
    if worst > tolerance or (tolerance == 0 and mine != theirs):
        raise Violation(f"losses differ from those of the run left alone, by up to {worst:.2g} of their size")
    if tolerance == 0:
        one, other = (load_model(complete_checkpoints(r.output_dir)[0]).state_dict() for r in (recipe, reference))
        for name, weight in one.items():
            if not torch.equal(weight, other[name]):
                raise Violation(f"final weights differ: {name}")
    return worst


def losses(recipe: PretrainRecipe) -> dict[int, tuple[float, float]]:
    records = [r for r in read_metrics(Path(recipe.output_dir, "metrics.jsonl")) if "loss" in r]
    if len({record["step"] for record in records}) != len(records):
        raise Violation("metrics.jsonl has a step twice")
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in records}


def run_to_the_end(
    recipe: PretrainRecipe, waiting: collections.deque[Kill], processes: Sequence[int] = (1,)
) -> list[tuple[int, Attempt]]:
    """Start again after each kill until training ends; the starts, and the step each had to go on from.

    A kill whose moment did not come before the end goes back to the queue, for an earlier one.

    Args:
        processes: of each start; the last number for all that follow.
    """
    attempts: list[tuple[int, Attempt]] = []
    begin = 0
    while True:
        kill = waiting.popleft() if waiting else None
        started = attempt(recipe, kill, processes[min(len(attempts), len(processes) - 1)])
        attempts.append((begin, started))
        begin = check_checkpoints(recipe, started)
        if not started.killed:
            if kill is not None:
                if kill.misses == MOST_MISSES:
                    raise Violation(f"training is over before it can be killed: {kill.kind}")
                waiting.append(Kill(kill.kind, kill.seconds / 2, misses=kill.misses + 1))
            return attempts


def kills(count: int, seconds: float, rng: random.Random) -> list[Kill]:
    """Every second one at a random moment, the others at the places in turn.

    Every other round of the places, those before the rename come twice: again in the next start, in the same save.

    Args:
        seconds: after a start, within which the random moments lie.
    """
    chosen: list[Kill] = []
    for number in itertools.count():
        place = list(PLACES)[number % len(PLACES)]
        twice = place in BEFORE_RENAME and number // len(PLACES) % 2 == 0
        chosen.append(Kill("at a random moment", seconds=rng.uniform(0.05, seconds)))
        chosen += [Kill(place)] * 2 if twice else [Kill(place, number=rng.randint(1, 3))]
        if len(chosen) >= count:
            return chosen[:count]


# ---------------------------------------------------------------------------------------------------------
# Data and the whole
# ---------------------------------------------------------------------------------------------------------


def make_data(folder: Path, seed: int) -> None:
    """text.jsonl of random words and a tokenizer of 384 pieces."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(200)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=rng.randint(5, 60)))}) for _ in range(600)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    source = Source(name="text", paths=[str(folder / "text.jsonl")])
    build_tokenizer(
        TokenizerRecipe(output_dir=str(folder / "tokenizer"), sources=[source], vocab_size=384, model_max_length=64)
    )


def tiny_recipe(folder: Path, wanted: ChaosRecipe) -> PretrainRecipe:
    return PretrainRecipe(
        output_dir=str(folder / "reference"),
        model={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        tokenizer=str(folder / "tokenizer"),
        sequence_length=64,
        sources=[Source(name="text", paths=[str(folder / "text.jsonl")])],
        max_steps=wanted.steps,
        warmup_steps=3,
        learning_rate=3e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_processes=2,
        shuffle_block=64,
        shuffle_rows=32,
        logging_steps=1,
        save_steps=wanted.save_steps,
        save_total_limit=2,
        bf16=False,
        seed=wanted.seed,
    )


def in_child(work: Callable[[], None], log: Path) -> None:
    """Do something in a fork, so that this process starts no thread, which a later fork would lose."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(log, "wb", buffering=0) as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise Violation(log.read_text()[-3000:])


def chaos(wanted: ChaosRecipe, folder: Path) -> dict[str, Any]:
    """All of it; the figures.

    Raises:
        Violation: what the killed runs lost.
    """
    in_child(lambda: make_data(folder, wanted.seed), folder / "data.log")
    reference = tiny_recipe(folder, wanted)
    begun = time.perf_counter()
    alone = attempt(reference, None)
    seconds = time.perf_counter() - begun
    print(f"left alone: {wanted.steps} steps in {seconds:.1f} s", flush=True)
    figures: dict[str, Any] = {"seconds_alone": seconds}

    rng = random.Random(wanted.seed)
    waiting = collections.deque(kills(wanted.kills, 0.2 * seconds, rng))
    counts: collections.Counter[str] = collections.Counter()
    ended = 0
    while waiting:
        recipe = dataclasses.replace(reference, output_dir=str(folder / f"killed_{ended}"))
        attempts = run_to_the_end(recipe, waiting)
        check_history(recipe, attempts, alone.rows)
        check_numbers(recipe, reference)
        counts.update(started.kind for _, started in attempts if started.killed)
        ended += 1
        done = sum(counts.values())
        print(f"run {ended}: {len(attempts)} starts, {done} kills in all; as if left alone", flush=True)
    figures |= {"runs": ended, "kills": dict(counts)}

    if wanted.changes:
        figures |= elastic(reference, wanted.changes)
    return figures


def elastic(recipe: PretrainRecipe, changes: int) -> dict[str, Any]:
    """A run killed in the second save after each start, which goes on with another number of processes: 1, 2, 1 …

    Other numbers of processes add gradients in another order, and what that changes grows with the steps after it: so
    the run is a short one, beside one of its own that is left alone.
    """
    folder = Path(recipe.output_dir).parent
    alone = dataclasses.replace(
        recipe, output_dir=str(folder / "one_process"), max_steps=2 * (changes + 2) * recipe.save_steps
    )
    reference = attempt(alone, None)
    kills = collections.deque([Kill("after the rename, before latest", number=2)] * changes)
    changing = dataclasses.replace(alone, output_dir=str(folder / "elastic"))
    attempts = run_to_the_end(changing, kills, [1 + turn % 2 for turn in range(changes + 1)])
    check_history(changing, attempts, reference.rows)
    difference = check_numbers(changing, alone, tolerance=1e-5)
    processes = [started.processes for _, started in attempts]
    words = " → ".join(map(str, processes))
    print(f"{words} processes: the same rows, losses within {difference:.1g} of their size")
    return {"processes": processes, "largest_loss_difference": difference}


def main() -> int:
    (wanted,) = parse_recipe(ChaosRecipe)
    with tempfile.TemporaryDirectory(prefix="chaos.") as folder:
        begun = time.perf_counter()
        try:
            figures = chaos(wanted, Path(folder))
        except Violation as violation:
            print(f"VIOLATION: {violation}")
            return 1
    figures["seconds"] = time.perf_counter() - begun
    print(f"\n{'killed':<36} times")
    for kind in ("at a random moment", *PLACES):
        print(f"{kind:<36} {figures['kills'].get(kind, 0):>5}")
    total = sum(figures["kills"].values())
    print(
        f"\n{total} kills over {figures['runs']} runs in {figures['seconds']:.0f} s: no unusable run, no row lost or "
        "repeated, losses, gradient norms and final weights identical to the last bit"
    )
    if wanted.output_file:
        write_text(wanted.output_file, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
