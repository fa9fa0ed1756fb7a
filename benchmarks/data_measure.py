"""One measurement of data_speed.py: a task in a new process, pinned to its cores, its memory watched."""

import contextlib
import hashlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import psutil
import torch
from data_loaders import LOADERS, Batch, Job, Loader

READ_TOKENS = 100_000_000
"""Prepared data is read epoch after epoch for at least so many tokens."""
SAMPLED_SECONDS = 0.25
"""Between two looks at a process's memory."""
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}
"""For the measured processes."""


def in_new_process(task: Callable[..., dict[str, Any]], loader: Loader, job: Job, *arguments: Any) -> dict[str, Any]:
    """`task(loader, job, …)` on as many cores as the job has threads.

    Returns:
        what the task returns; `memory`, the most bytes that its processes held together (proportional set size: a page
        shared by several counts once, pages of mapped files count); `process_seconds`, starting Python and importing
        included. After a failure `error` alone.
    """
    os.environ.update(QUIET, RAYON_NUM_THREADS=str(job.threads), OMP_NUM_THREADS=str(job.threads))
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=begin, initargs=(job.threads, sys.path)) as pool:
        try:
            pid = pool.submit(os.getpid).result()
            pool.submit(load, loader.name, job).result()
            with MemoryWatch(pid) as memory:
                result = pool.submit(run, task, loader.name, job, *arguments).result()
        except ModuleNotFoundError as error:
            return {"error": f"not installed ({error.name})"}
        except Exception as error:  # of whatever kind, it is a loader's result like another
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return {**result, "memory": memory.most, "process_seconds": time.perf_counter() - start}


def begin(threads: int, path: list[str]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    sys.path[:] = path


def load(name: str, job: Job) -> None:
    loader_named(name).load(job)


def run(task: Callable[..., dict[str, Any]], name: str, job: Job, *arguments: Any) -> dict[str, Any]:
    return task(loader_named(name), job, *arguments)


def loader_named(name: str) -> Loader:
    return next(loader for loader in LOADERS if loader.name == name)


class MemoryWatch(threading.Thread):
    """Looks at the memory of a process and all under it until its `with` block ends; `most` is in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.most = 0
        self.over = threading.Event()

    def __enter__(self) -> "MemoryWatch":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(SAMPLED_SECONDS):
            held = 0
            with contextlib.suppress(psutil.Error):
                for process in (self.process, *self.process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):  # one that has just ended
                        held += process.memory_full_info().pss
            self.most = max(self.most, held)


def prepare(loader: Loader, job: Job) -> dict[str, Any]:
    start = time.perf_counter()
    loader.prepare(job)
    return {"seconds": time.perf_counter() - start}


def read(loader: Loader, job: Job) -> dict[str, Any]:
    """A pass over the data; where that is short, because the data were prepared, many more.

    Returns:
        `first_batch`: seconds from opening to the first batch; `tokens` of a pass; `tokens_per_second`: of the whole
        pass, opening included, since what is tokenised before the first batch belongs to later ones; of prepared data
        from the first batch of at least `READ_TOKENS` on; `tokens_per_cpu_second`: likewise, by the time that the
        process's threads were computing.
    """
    first, whole = timed_pass(loader, job, 1)
    figures = {"first_batch": first.seconds, "tokens": whole.tokens}
    if loader.prepares:
        first, whole = timed_pass(loader, job, -(-READ_TOKENS // whole.tokens))
        whole = Spent(*(to_end - to_first for to_end, to_first in zip(whole, first, strict=True)))
    speeds = {
        "tokens_per_second": whole.tokens / whole.seconds,
        "tokens_per_cpu_second": whole.tokens / whole.computing,
    }
    return {**figures, **speeds}


class Spent(NamedTuple):
    """Tokens handed out, and seconds passed and computed (in all threads), since a loader was opened."""

    tokens: int
    seconds: float
    computing: float


def timed_pass(loader: Loader, job: Job, epochs: int) -> tuple[Spent, Spent]:
    """What was spent up to the first batch, and up to the last."""
    tokens, start, computing = 0, time.perf_counter(), time.process_time()

    def spent() -> Spent:
        return Spent(tokens, time.perf_counter() - start, time.process_time() - computing)

    batches = loader.batches(job, epochs=epochs)
    tokens = next(batches).tokens
    first = spent()
    for batch in batches:
        tokens += batch.tokens
    return first, spent()


def leave(loader: Loader, job: Job, rows: int) -> dict[str, Any]:
    """Read at least so many rows. Returns the `state` after them, and `next`: sha256 of the batch that follows."""
    batches = loader.batches(job)
    *_, last = islice(batches, -(-rows // job.rows))
    return {"state": last.state(), "next": fingerprint(next(batches))}


def resume(loader: Loader, job: Job, state: Any) -> dict[str, Any]:
    start = time.perf_counter()
    batch = next(loader.batches(job, state))
    return {"seconds": time.perf_counter() - start, "next": fingerprint(batch)}


def fingerprint(batch: Batch) -> str:
    return hashlib.sha256(batch.input_ids.numpy().tobytes()).hexdigest()


def resume_after(loader: Loader, job: Job, rows: int) -> dict[str, Any]:
    """Leave after so many rows and go on in a new process.

    Returns:
        `rows`; `resume`: seconds from opening to the next batch; `same`: whether it is the batch that would have come;
        `process_seconds` of the new process.
    """
    left = in_new_process(leave, loader, job, rows)
    if "error" in left:
        return left
    resumed = in_new_process(resume, loader, job, left["state"])
    if "error" in resumed:
        return resumed
    same = resumed["next"] == left["next"]
    return {"rows": rows, "resume": resumed["seconds"], "same": same, "process_seconds": resumed["process_seconds"]}
