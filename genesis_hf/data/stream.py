"""The packed-token stream: `batch, state = next(stream)`, one optimizer step at a time.

The sequence of rows depends on the recipe, the seed and the data alone. Every process walks the whole sequence and
keeps its own rows, so the number of processes changes who trains on a row, never which row comes next.
"""

import hashlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source
from genesis_hf.data.mixture import Mixture, TokenSource
from genesis_hf.data.packing import Packer, Row, RowShuffle
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX

StreamState = dict[str, Any]


@dataclass
class StepBatch:
    """One process's rows of one optimizer step.

    Attributes:
        input_ids, labels: (rows, sequence_length) int64; labels are not shifted.
        position_ids: the same shape, restarting at each document; None when rows are one context.
        num_items: trained tokens in the step over all processes: what the sum of losses is divided by.
        tokens_by_source: tokens in the step over all processes.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    num_items: int
    tokens_by_source: dict[str, int]

    def micro_batches(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """The model's arguments for each run of `size` rows."""
        for start in range(0, len(self.input_ids), size):
            part = slice(start, start + size)
            batch = {"input_ids": self.input_ids[part], "labels": self.labels[part]}
            if self.position_ids is not None:
                batch["position_ids"] = self.position_ids[part]
            yield batch


class PackedStream:
    """Iterates over `(batch, state)`; `state` is what a new stream needs to go on after that batch."""

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        rows_per_step: int,
        *,
        seed: int = 42,
        shuffle_block: int = 1024,
        shuffle_rows: int = 1024,
        reset_positions: bool = True,
        rank: int = 0,
        world_size: int = 1,
        state: StreamState | None = None,
    ) -> None:
        """
        Args:
            rows_per_step: rows of an optimizer step over all processes; `world_size` divides it.
            state: of an earlier stream over the same data.

        Raises:
            UserError: unreadable sources, or a state of other data.
        """
        if rows_per_step % world_size:
            raise UserError(f"{rows_per_step} rows a step can't be shared by {world_size} processes evenly")
        self.rows_per_step = rows_per_step
        self.reset_positions = reset_positions
        self.rank, self.world_size = rank, world_size
        begin = state["begin"] if state else None
        if state:
            refuse_unknown_sources(state, sources)
        states = begin["sources"] if begin else {}
        token_sources = [TokenSource(s, tokenizer, seed, shuffle_block, states.get(s.name)) for s in sources]
        self.fingerprint = {
            "sources": {s.source.name: [s.source.weight, s.reader.fingerprint()] for s in token_sources},
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "sequence_length": sequence_length,
            "seed": seed,
            "shuffle_block": shuffle_block,
            "shuffle_rows": shuffle_rows,
        }
        if state:
            refuse_other_data(state["fingerprint"], self.fingerprint)
        self.rows_taken = state["rows"] if state else 0
        self.tokens = dict(state["tokens"]) if state else {s.name: 0 for s in sources}
        packer = Packer(Mixture(token_sources), sequence_length, begin)
        self.rows = RowShuffle(packer, shuffle_rows, seed, state)

    def __iter__(self) -> Iterator[tuple[StepBatch, StreamState]]:
        return self

    def __next__(self) -> tuple[StepBatch, StreamState]:
        rows = [next(self.rows) for _ in range(self.rows_per_step)]
        self.rows_taken += len(rows)
        batch = self._batch(rows)
        for name, tokens in batch.tokens_by_source.items():
            self.tokens[name] += tokens
        return batch, self.state()

    def state(self) -> StreamState:
        """Where the stream is: JSON values, small, independent of the number of processes."""
        return {
            "rows": self.rows_taken,
            "tokens": dict(self.tokens),
            **self.rows.state(),
            "fingerprint": self.fingerprint,
        }

    def _batch(self, rows: list[Row]) -> StepBatch:
        share = len(rows) // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        by_source: dict[str, int] = {}
        for row in rows:
            for name, tokens in row.tokens_by_source.items():
                by_source[name] = by_source.get(name, 0) + tokens
        return rows_to_batch(rows[mine], self.reset_positions, trained_tokens(rows, self.reset_positions), by_source)


def rows_to_batch(
    rows: list[Row], reset_positions: bool, num_items: int, tokens_by_source: dict[str, int]
) -> StepBatch:
    """Rows as tensors; without `reset_positions` each row is one context and every token a label."""
    input_ids = torch.from_numpy(np.stack([row.input_ids for row in rows]).astype(np.int64))
    if not reset_positions:
        return StepBatch(input_ids, input_ids.clone(), None, num_items, tokens_by_source)
    labels = torch.from_numpy(np.stack([row.labels() for row in rows]))
    position_ids = torch.from_numpy(np.stack([row.position_ids() for row in rows]))
    return StepBatch(input_ids, labels, position_ids, num_items, tokens_by_source)


def trained_tokens(rows: list[Row], reset_positions: bool) -> int:
    """Labels that count after the shift: all but the first of each document, or of each row."""
    if not reset_positions:
        return sum(len(row.input_ids) - 1 for row in rows)
    return sum(int((row.labels()[1:] != IGNORE_INDEX).sum()) for row in rows)


def refuse_unknown_sources(state: StreamState, sources: list[Source]) -> None:
    """Raise `UserError` unless the state is of sources of these names."""
    then, now = set(state["tokens"]), {source.name for source in sources}
    if then != now:
        raise UserError(
            f"the checkpoint was trained on other data: sources {', '.join(sorted(then ^ now))} differ; restore them "
            "or start in a new output_dir"
        )


def refuse_other_data(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `UserError` naming the first difference between two fingerprints."""
    for key, value in recorded.items():
        if now.get(key) == value:
            continue
        if key == "sources":
            changed = sorted(name for name in value if value[name] != now[key].get(name))
            raise UserError(
                f"the checkpoint was trained on other data: sources {', '.join(changed)} differ (weight, file names, "
                "sizes or content); restore them or start in a new output_dir"
            )
        raise UserError(
            f"the checkpoint's data stream had another {key} ({value} then, {now.get(key)} now); restore it or start "
            "in a new output_dir"
        )


class Prefetcher:
    """Runs an iterator in a thread, a few items ahead; what it raises is raised where the item is taken."""

    def __init__(self, items: Iterator[Any], depth: int = 2) -> None:
        self._items = items
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._queue.get()
        if error is not None:
            self._closed.set()
            raise error
        return item

    def close(self) -> None:
        """Stop the thread; further items are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            for item in self._items:
                self._queue.put((item, None))
                if self._closed.is_set():
                    return
            self._queue.put((None, StopIteration()))
        except BaseException as error:
            self._queue.put((None, error))
