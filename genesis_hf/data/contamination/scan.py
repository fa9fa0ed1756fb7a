"""Training documents compared with an index of n-grams: file by file, in several processes, each result kept."""

import json
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from genesis_hf.config import Source, write_text
from genesis_hf.data.contamination.ngrams import NgramIndex, Words, batches, split_words
from genesis_hf.data.preparation.pool import exit_with_parent, interrupts_held
from genesis_hf.data.readers import open_source
from genesis_hf.data.selection import Selection, document_hash
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items, read_json

SCAN_FORMAT = 1
"""Part of what a kept result is known by; raise it when the same text would give another result."""
BLOCK_DOCUMENTS = 512
BATCH_CHARACTERS = 2**18
"""Text compared at a time."""
SAVE_BYTES = 2**28
"""Text scanned between two savings of an unfinished file."""
MAX_EXCERPT = 300
"""Characters kept of an overlapping text."""
MAX_BAD_LISTED = 10

Report = Callable[[int, int], None]
"""Is told bytes of text read just now, and bytes known from an earlier call."""


@dataclass
class Targets:
    """What is looked for, as every process needs it.

    Attributes:
        folder: of the saved index.
        set_starts: number of each set's first item.
        needed: by item, its n-grams in one document that make a finding.
        identical: item by `document_hash` of the documents of `eval_sources`.
        digest: changes with the items and the settings.
    """

    folder: Path
    set_starts: np.ndarray
    needed: np.ndarray
    identical: dict[int, int]
    digest: str

    def set_of(self, items: Any) -> Any:
        """Number of the set that an item, or each of an array, belongs to."""
        return np.searchsorted(self.set_starts, items, side="right") - 1

    @cached_property
    def index(self) -> NgramIndex:
        return NgramIndex.load(self.folder)


@dataclass(frozen=True)
class Unit:
    """What one process reads at a time: a file, or a Hub dataset.

    Attributes:
        place: its name in the report.
        kept: file of its results.
        expected: guessed bytes of text.
    """

    source: Source
    place: str
    kept: Path
    expected: int


@dataclass(frozen=True)
class Job:
    """Which documents of a unit are looked at: with `targets` those to train on, to find items in them; without, those
    that the recipe's `held_out_share` holds out, to keep their texts."""

    selection: Selection
    targets: Targets | None

    def key(self, source: Source, fingerprint: str) -> str:
        """What a kept result is known by."""
        digest = self.targets.digest if self.targets else "held out"
        return hash_items([SCAN_FORMAT, digest, self.selection.fingerprint(), fingerprint, source.max_documents])


# ---------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------


def process_unit(unit: Unit, job: Job, report: Report, stopped: Callable[[], bool]) -> int:
    """Read a unit from where its kept result ends, to its end or until `stopped()`.

    Args:
        stopped: asked before each block.

    Returns:
        bytes of text read of it, in all calls.
    """
    reader = open_source(unit.source)
    key = job.key(unit.source, reader.fingerprint())
    state = read_json(unit.kept)
    if state.get("key") != key:
        counts = dict.fromkeys(("read", "bytes", "train", "held_out", "excluded", "empty", "filtered", "bad"), 0)
        state = {"key": key, "position": reader.start, **counts, "bad_records": [], "found": []}
    report(0, state["bytes"])
    changed, unsaved = not unit.kept.exists(), 0
    while state["position"] is not None and not stopped():
        block = reader.read_block(state["position"], BLOCK_DOCUMENTS)
        size = sum(len(text) if text.isascii() else len(text.encode()) for text in block.texts)
        state["found"] += look_at(block.texts, state, job)
        state["position"] = block.position
        if unit.source.max_documents and state["train"] >= unit.source.max_documents:
            state["position"] = None
        state["bytes"] += size
        state["empty"] += block.empty
        state["filtered"] += block.filtered
        state["bad"] += sum(bad.count for bad in block.bad)
        state["bad_records"] += [f"{bad.where}: {bad.reason}" for bad in block.bad]
        del state["bad_records"][MAX_BAD_LISTED:]
        report(size, 0)
        changed, unsaved = True, unsaved + size
        if unsaved >= SAVE_BYTES:
            write_text(unit.kept, json.dumps(state))
            changed, unsaved = False, 0
    if changed:
        write_text(unit.kept, json.dumps(state))
    return state["bytes"]


def look_at(texts: list[str], state: dict[str, Any], job: Job) -> list[Any]:
    """What is found in the next documents of a unit; counts them in `state`."""
    documents = []
    wanted = "train" if job.targets else "held_out"
    for text in texts:
        value = document_hash(text)
        use = job.selection.use_of_hash(value)
        state["read"] += 1
        state[use] += 1
        if use == wanted:
            documents.append((state["read"], value, text))
    if job.targets is None:
        return [[number, text] for number, _, text in documents]
    found = []
    for group in batches(documents, BATCH_CHARACTERS, size=lambda document: len(document[2])):
        found += find_items(group, job.targets)
    return found


def find_items(documents: list[tuple[int, int, str]], targets: Targets) -> list[dict[str, Any]]:
    """A finding for each document (number, hash, text) that holds enough of an item.

    A finding names the items with the n-grams found of each, and shows for each set the longest overlap with the item
    of which most was found.
    """
    words = split_words([text for _, _, text in documents])
    starts, stops, ngrams = targets.index.find(words)
    borders = np.searchsorted(starts, words.bounds)
    findings = []
    for i, (number, value, _) in enumerate(documents):
        identical = targets.identical.get(value)
        hits = slice(borders[i], borders[i + 1])
        if borders[i] == borders[i + 1] and identical is None:
            continue
        items, excerpts = match(words, starts[hits], stops[hits], ngrams[hits], targets)
        if items or identical is not None:
            finding = {"document": number, "hash": f"{value:016x}", "identical": identical}
            findings.append({**finding, "items": items, "excerpts": excerpts})
    return findings


def match(
    words: Words, starts: np.ndarray, stops: np.ndarray, ngrams: np.ndarray, targets: Targets
) -> tuple[list[tuple[int, list[int]]], dict[str, str]]:
    """(items with their n-grams, excerpt by set) of a document's hits."""
    found, owners = targets.index.items_of(np.unique(ngrams))
    items, counts = np.unique(owners, return_counts=True)
    enough = counts >= targets.needed[items]
    items, counts = items[enough], counts[enough]
    matched = [(int(item), found[owners == item].tolist()) for item in items]
    excerpts = {}
    sets = targets.set_of(items)
    for number in np.unique(sets):
        best = max((m for m, s in zip(matched, sets, strict=True) if s == number), key=lambda m: len(m[1]))
        hits = np.isin(ngrams, best[1])
        excerpts[str(number)] = words.text(*longest_run(starts[hits], stops[hits]))[:MAX_EXCERPT]
    return matched, excerpts


def longest_run(starts: np.ndarray, stops: np.ndarray) -> tuple[int, int]:
    """The longest stretch that overlapping spans cover; `starts` ascend."""
    reach = np.maximum.accumulate(stops)
    first = np.flatnonzero(np.concatenate(([True], starts[1:] > reach[:-1])))
    last = np.concatenate((first[1:], [len(starts)])) - 1
    longest = np.argmax(reach[last] - starts[first])
    return int(starts[first[longest]]), int(reach[last[longest]])


# ---------------------------------------------------------------------------------------------------------
# Many files
# ---------------------------------------------------------------------------------------------------------


def run_units(units: list[Unit], job: Job, num_proc: int, title: str) -> None:
    """`process_unit` for all, in processes of their own where more than one is asked for.

    Raises:
        UserError: a process was killed, a full disk, a file that has gone.
        KeyboardInterrupt: after each process has kept what it had.
    """
    every = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=sum(u.expected for u in units), desc=title, unit="B", unit_scale=True, mininterval=every) as bar:

        def report(new: int, known: int) -> None:
            bar.total = max(bar.total - known, bar.n + new)
            bar.update(new)

        try:
            if num_proc == 1 or len(units) == 1:
                for unit in units:
                    actual = process_unit(unit, job, report, lambda: False)
                    bar.total += actual - unit.expected
            else:
                run_in_processes(units, job, min(num_proc, len(units)), report, bar)
        except BrokenProcessPool:
            raise UserError("a scanning process was killed (out of memory?); the same command goes on") from None
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; the same command goes on") from None


def run_in_processes(units: list[Unit], job: Job, num_proc: int, report: Report, bar: tqdm) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    progress, stop = context.Array("q", 2), context.Event()  # bytes read, bytes known before
    pool = ProcessPoolExecutor(num_proc, context, start_worker, (job, progress, stop))
    try:
        with interrupts_held():
            waiting = {pool.submit(process_in_worker, unit): unit for unit in units}
        while waiting:
            done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            with progress.get_lock():
                new, known = progress[:]
                progress[:] = [0, 0]
            report(new, known)
            for future in done:
                bar.total += future.result() - waiting.pop(future).expected
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}
"""What `start_worker` gives a process for all its units."""


def start_worker(job: Job, progress: Any, stop: Any) -> None:
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _worker.update(job=job, progress=progress, stop=stop)


def process_in_worker(unit: Unit) -> int:
    def report(new: int, known: int) -> None:
        with _worker["progress"].get_lock():
            _worker["progress"][0] += new
            _worker["progress"][1] += known

    return process_unit(unit, _worker["job"], report, _worker["stop"].is_set)
