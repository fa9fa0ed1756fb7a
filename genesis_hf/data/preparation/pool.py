"""Parts tokenised in worker processes, with a progress bar; whatever ends the run ends the workers."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.data.preparation.pieces import (
    Counts,
    Part,
    Rules,
    add_counts,
    finished_pieces,
    is_finished,
    prepare_part,
    too_many_bad,
)
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import load_tokenizer


def run_parts(parts: list[Part], rules: Rules, tokenizer: str, num_proc: int) -> None:
    """Do parts in worker processes.

    Raises:
        UserError: what a worker raises, too many bad records in all, a worker that was killed, a full disk.
        KeyboardInterrupt: after the workers have been stopped.
    """
    if not parts:
        return
    progress = Progress(parts)
    workers = min(num_proc, len(parts))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    done = context.Array("q", 2)  # bytes of text, tokens
    pool = ProcessPoolExecutor(workers, context, start_worker, (rules, tokenizer, num_proc // workers, done))
    try:
        with interrupts_held():
            pending = {pool.submit(run_part, part): part for part in parts}
        follow(pending, progress, done, rules)
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()
        goes_on = "the same command goes on from the last finished piece"
        if isinstance(error, BrokenProcessPool):
            raise UserError(f"a worker was killed (out of memory?); with a smaller --num_proc {goes_on}") from None
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or parts[0].folder}: {error.strerror}; {goes_on}") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def follow(pending: dict[Future[Counts], Part], progress: "Progress", done: Any, rules: Rules) -> None:
    """Show how far the parts are until all are finished."""
    bad = 0
    with progress.bar:
        while pending:
            finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            progress.show(*done.get_obj())  # without the lock, which a killed worker may hold
            for future in finished:
                part, counts = pending.pop(future), future.result()
                progress.finish(part, counts)
                bad += counts["bad"]
                if bad > rules.max_bad_records:
                    raise too_many_bad(part.label(), bad, rules.max_bad_records)


class Progress:
    """A bar over bytes of text. How many there are is guessed from the files' sizes, better with each finished part."""

    def __init__(self, parts: list[Part]) -> None:
        self.guessed_left = dict.fromkeys((part.folder for part in parts), 0)
        self.guessed_finished = dict(self.guessed_left)
        self.found = dict(self.guessed_left)
        self.unfinished: set[tuple[Path, int]] = set()
        self.before = 0
        for part in parts:
            self.guessed_left[part.folder] += part.text_bytes
            self.unfinished.add((part.folder, part.number))
            pieces = finished_pieces(part)
            counts = add_counts(piece["counts"] for piece in pieces)
            self.before += counts["text_bytes"]
            if is_finished(pieces):
                self.finish(part, counts)
        self.parts = len(parts)
        print(f"{len(self.unfinished):,} of {self.parts:,} parts to do", flush=True)
        self.begun = time.monotonic()
        self.bar = tqdm(
            desc="tokenising",
            initial=self.before,
            total=self.total(),
            unit="B",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def show(self, text_bytes: int, tokens: int) -> None:
        """Bytes of text and tokens done in this call."""
        rate = tokens / (time.monotonic() - self.begun)
        self.bar.total = max(self.total(), self.before + text_bytes)
        done = self.parts - len(self.unfinished)
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {done}/{self.parts} parts", refresh=False)
        self.bar.update(self.before + text_bytes - self.bar.n)

    def finish(self, part: Part, counts: Counts) -> None:
        """Correct the guess; a part that an earlier call finished may be named again."""
        if (part.folder, part.number) in self.unfinished:
            self.unfinished.remove((part.folder, part.number))
            self.guessed_left[part.folder] -= part.text_bytes
            self.guessed_finished[part.folder] += part.text_bytes
            self.found[part.folder] += counts["text_bytes"]

    def total(self) -> int:
        total = 0.0
        for folder, left in self.guessed_left.items():
            guessed, found = self.guessed_finished[folder], self.found[folder]
            total += found + left * (found / guessed if guessed else 1)
        return int(total)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits. Processes started meanwhile never get it: the one that starts them stops them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_work: tuple[Rules, PreTrainedTokenizerFast, Any]
"""A worker's own, set as it starts."""


def start_worker(rules: Rules, tokenizer: str, threads: int, done: Any) -> None:
    global _work
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read at the tokenizer's first use
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _work = (rules, load_tokenizer(tokenizer), done)


def exit_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_part(part: Part) -> Counts:
    rules, tokenizer, done = _work

    def report(counts: Counts) -> None:
        with done.get_lock():
            done[0] += counts["text_bytes"]
            done[1] += counts["tokens"]

    return prepare_part(part, rules, tokenizer, report)
