"""The packed-token stream: `batch, state = next(stream)`, one optimizer step at a time.

The sequence of rows depends on the recipe, the seed and the data alone. Every process walks the whole sequence and
keeps each `world_size`-th row, so the number of processes changes who trains on a row, never which row comes next.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.data.fingerprint import refuse_other_data, same_documents, without_open_block
from genesis_hf.data.mixture import Mixture, Settings, ShuffledRows
from genesis_hf.data.packing import PreparedRows, Row, TextRows
from genesis_hf.data.prepared import tokenizer_sha256
from genesis_hf.data.records import BadRecord
from genesis_hf.data.selection import Selection, recipe_selection
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX

StreamState = dict[str, Any]


@dataclass
class StepBatch:
    """One process's rows of one optimizer step, kept small; the model's arguments are made a micro-batch at a time.

    Attributes:
        input_ids: (rows, sequence_length) int32; padding is EOS.
        starts: the same shape, bool: where a document begins. Each position of padding is a document of its own, so
            nothing attends to it.
        lengths: (rows,) int64: tokens of each row that are no padding.
        reset_positions: positions restart at each document; otherwise a row is one context.
        mask_boundaries: the first token of a document is no label.
        num_items: trained tokens in the step over all processes: what the sum of losses is divided by.
        tokens_by_source: tokens in the step over all processes.
    """

    input_ids: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    reset_positions: bool = True
    mask_boundaries: bool = True
    num_items: int = 0
    tokens_by_source: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> torch.Tensor:
        """(rows, sequence_length) int64, not shifted."""
        return self.inputs()["labels"]

    @property
    def position_ids(self) -> torch.Tensor | None:
        """(rows, sequence_length) int64; None when rows are one context."""
        return self.inputs().get("position_ids")

    def micro_batches(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """The model's arguments for each run of `size` rows."""
        for start in range(0, len(self.input_ids), size):
            yield self.inputs(slice(start, start + size))

    def inputs(self, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
        """input_ids, labels and, with `reset_positions`, position_ids of some rows, int64.

        `cu_seq_lens` (documents + 1,) int32 says where documents begin among the rows' tokens, which the attention
        would otherwise have to read off the position_ids, waiting for the device.
        """
        ids, starts = self.input_ids[rows].long(), self.starts[rows]
        unlabelled = starts
        if not self.mask_boundaries:
            unlabelled = torch.arange(ids.shape[1]) >= self.lengths[rows, None]
        inputs = {"input_ids": ids, "labels": ids.masked_fill(unlabelled, IGNORE_INDEX)}
        if self.reset_positions:
            begins = np.flatnonzero(starts.numpy())
            inputs["position_ids"] = torch.from_numpy(counted_from(begins, ids.numel())).view(ids.shape)
            inputs["cu_seq_lens"] = torch.from_numpy(np.append(begins, ids.numel()).astype(np.int32))
        return inputs


class PackedStream:
    """Iterates over `(batch, state)`; `state` is what a new stream needs to go on after that batch.

    Ends when the data does: a last step that isn't full is filled with padding.

    Attributes:
        accepted: differences from the state's data that `accept_data_change` let pass.
        bad_records: (source, record) of what could not be read, since somebody last emptied it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        rows_per_step: int,
        *,
        seed: int = 42,
        shuffle_block: int = 1024,
        shuffle_rows: int = 1024,
        packing: str = "concatenate",
        reset_positions: bool = True,
        mask_boundaries: bool = True,
        when_dry: str = "repeat",
        max_epochs: int | None = None,
        max_bad_records: int = 0,
        selection: Selection | None = None,
        changes: Sequence[tuple[int, dict[str, float] | None, int | None]] = (),
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        state: StreamState | None = None,
        accept_data_change: bool = False,
    ) -> None:
        """
        Args:
            rows_per_step: rows of an optimizer step over all processes; `world_size` divides it.
            when_dry, max_epochs, packing, …: as in `PretrainRecipe`.
            selection: which documents may be trained on.
            changes: (row, weights, seed) from which on other weights or another seed hold.
            num_workers: threads that read and tokenise ahead.
            state: of an earlier stream over the same data.

        Raises:
            UserError: unreadable sources, or a state of other data.
        """
        if rows_per_step % world_size:
            raise UserError(f"{rows_per_step} rows a step can't be shared by {world_size} processes evenly")
        self.sequence_length = sequence_length
        self.rows_per_step = rows_per_step
        self.padding_id = tokenizer.eos_token_id
        self.reset_positions, self.mask_boundaries = reset_positions, mask_boundaries
        self.rank, self.world_size = rank, world_size
        self.max_bad_records = max_bad_records
        self.bad_records: deque[tuple[str, BadRecord]] = deque()
        self._weights = {source.name: source.weight for source in sources}
        self._seed = seed
        self._changes = sorted(changes, key=lambda change: change[0])
        slots = threading.Semaphore(num_workers) if num_workers else None
        selection = selection or Selection()

        states = state["begin"]["sources"] if state else {}
        self._sources: dict[str, TextRows | PreparedRows] = {}
        for source in sources:
            limit = source.max_epochs or max_epochs or (None if when_dry == "repeat" else 1)
            common = {
                "packing": packing,
                "shuffle_block": shuffle_block,
                "max_epochs": limit,
                "seed": seed,
                "state": states.get(source.name),
            }
            if source.prepared is not None:
                self._sources[source.name] = PreparedRows(
                    source, tokenizer, sequence_length, selection=selection, **common
                )
            else:
                self._sources[source.name] = TextRows(
                    source,
                    tokenizer,
                    sequence_length,
                    selection=selection,
                    slots=slots,
                    on_bad=self._note_bad,
                    **common,
                )
        self.fingerprint = {
            "sources": {
                name: {
                    "weight": rows.source.weight,
                    "prepared": rows.source.prepared is not None,
                    "data": rows.fingerprint(),
                    "caps": [rows.source.max_documents, rows.source.max_tokens, rows.max_epochs],
                }
                for name, rows in self._sources.items()
            },
            "seed": seed,
            "changes": [list(change) for change in self._changes],
            "when_dry": when_dry,
            "selection": selection.fingerprint(),
            "tokenizer": tokenizer_sha256(tokenizer),
            "sequence_length": sequence_length,
            "packing": packing,
            "shuffle_block": shuffle_block,
            "shuffle_rows": shuffle_rows,
        }
        self.accepted = refuse_other_data(state, self.fingerprint, accept_data_change) if state else []
        if self.accepted and not same_documents(state["fingerprint"], self.fingerprint):
            state = without_open_block(state)
        self.rows_taken = state["rows"] if state else 0
        none = dict.fromkeys(self._sources, 0)
        self.tokens: dict[str, int] = {**none, **(state["tokens"] if state else {})}
        self.epochs: dict[str, int] = {**none, **(state["epochs"] if state else {})}
        mixture = Mixture(
            self._sources,
            self._settings_at(0),
            reweight=when_dry == "reweight",
            state=state["begin"]["mixture"] if state else None,
        )
        self._rows = ShuffledRows(mixture, shuffle_rows, self._settings_at, state)

    @classmethod
    def from_recipe(
        cls,
        recipe: PretrainRecipe,
        tokenizer: PreTrainedTokenizerFast,
        rows_per_step: int,
        *,
        step_rows: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        state: StreamState | None = None,
    ) -> "PackedStream":
        """The stream that a recipe trains on.

        Args:
            rows_per_step: rows handed out at once.
            step_rows: rows of an optimizer step, in which `data_changes` count; default `rows_per_step`.
        """
        step_rows = step_rows or rows_per_step
        return cls(
            recipe.sources,
            tokenizer,
            recipe.sequence_length,
            rows_per_step,
            seed=recipe.seed,
            shuffle_block=recipe.shuffle_block,
            shuffle_rows=recipe.shuffle_rows,
            packing=recipe.packing,
            reset_positions=recipe.reset_positions,
            mask_boundaries=recipe.mask_boundaries,
            when_dry=recipe.when_dry,
            max_epochs=recipe.max_epochs,
            max_bad_records=recipe.max_bad_records,
            selection=recipe_selection(recipe),
            changes=[(change.step * step_rows, change.weights, change.seed) for change in recipe.data_changes],
            num_workers=recipe.dataloader_num_workers,
            rank=rank,
            world_size=world_size,
            state=state,
            accept_data_change=recipe.accept_data_change,
        )

    def __iter__(self) -> Iterator[tuple[StepBatch, StreamState]]:
        return self

    def __next__(self) -> tuple[StepBatch, StreamState]:
        rows = self.take(self.rows_per_step)
        if not rows:
            raise StopIteration
        tokens: dict[str, int] = {}
        for row in rows:
            tokens[row.source] = tokens.get(row.source, 0) + row.length
        batch = rows_to_batch(
            rows[self.rank :: self.world_size],
            self.sequence_length,
            self.padding_id,
            self.rows_per_step // self.world_size,
            reset_positions=self.reset_positions,
            mask_boundaries=self.mask_boundaries,
            num_items=sum(trained_tokens(row, self.mask_boundaries) for row in rows),
            tokens_by_source=tokens,
        )
        return batch, self.state()

    def take(self, count: int) -> list[Row]:
        """The next rows of all processes, as they are planned; fewer at the data's end. Token shards are not read."""
        rows: list[Row] = []
        while len(rows) < count and (row := self._rows.take()) is not None:
            rows.append(row)
            self.tokens[row.source] += row.length
            if row.last_epoch > self.epochs[row.source]:
                self.epochs[row.source] = row.last_epoch
        self.rows_taken += len(rows)
        return rows

    def state(self) -> StreamState:
        """Where the stream is: JSON values, small, independent of the number of processes.

        `rows`, `tokens` by source and `epochs` (passes that ended, by source) are what was handed out so far.
        """
        return {
            "rows": self.rows_taken,
            "tokens": dict(self.tokens),
            "epochs": dict(self.epochs),
            **self._rows.state(),
            "fingerprint": self.fingerprint,
        }

    def _settings_at(self, row: int) -> Settings:
        weights, seed = self._weights, self._seed
        for start, new_weights, new_seed in self._changes:
            if start <= row:
                weights = weights if new_weights is None else new_weights
                seed = seed if new_seed is None else new_seed
        return Settings(weights, seed)

    def _note_bad(self, source: str, records: list[BadRecord]) -> None:
        self.bad_records.extend((source, record) for record in records)
        total = sum(rows.state["counts"].get("bad", 0) for rows in self._sources.values())
        if total > self.max_bad_records:
            last = records[-1]
            raise UserError(
                f"source {source!r}: {last.where}: {last.reason}; unreadable records: {total}, max_bad_records: "
                f"{self.max_bad_records}; mend the file, or raise max_bad_records to leave such records out"
            )


def rows_to_batch(
    rows: Sequence[Row], sequence_length: int, padding_id: int, num_rows: int | None = None, **settings: Any
) -> StepBatch:
    """Rows as tensors, filled up with padding to `num_rows`; `settings` are the batch's other attributes."""
    count = max(len(rows), num_rows or 0)
    ids = np.empty((count, sequence_length), dtype=np.int32)
    starts = np.zeros((count, sequence_length), dtype=bool)
    lengths = np.zeros(count, dtype=np.int64)
    lengths[: len(rows)] = [row.length for row in rows]
    for number, row in enumerate(rows):
        row.read(ids[number, : row.length])
    if rows:
        firsts = np.repeat(np.arange(len(rows)) * sequence_length, [len(row.starts) for row in rows])
        starts.reshape(-1)[firsts + np.concatenate([row.starts for row in rows])] = True
    for number in np.flatnonzero(lengths < sequence_length):
        ids[number, lengths[number] :] = padding_id
        starts[number, lengths[number] :] = True
    return StepBatch(torch.from_numpy(ids), torch.from_numpy(starts), torch.from_numpy(lengths), **settings)


def counted_from(starts: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64 that is 0 at each of the sorted starts, the first of which is 0, and goes up by one otherwise.

    One running sum: several times the speed of subtracting repeated starts, which takes two arrays of this size more.
    """
    positions = np.ones(size, dtype=np.int64)
    positions[0] = 0
    positions[starts[1:]] = 1 - np.diff(starts)
    return np.cumsum(positions, out=positions)


def trained_tokens(row: Row, mask_boundaries: bool) -> int:
    """Labels of a row that count after the shift: all but the first of each document, or of the row."""
    return row.length - len(row.starts) if mask_boundaries else row.length - 1
