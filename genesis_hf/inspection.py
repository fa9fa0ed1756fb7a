"""The rows that a recipe trains on, one by one, for a person or a program to look at."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.folders import complete_checkpoints, read_trainer_state
from genesis_hf.config import InspectDataRecipe, PretrainRecipe
from genesis_hf.data.stream import PackedStream, StreamState, rows_to_batch
from genesis_hf.errors import UserError


@dataclass
class InspectedRow:
    """A training row.

    Attributes:
        index: its number over the whole run and all processes.
        input_ids: (sequence_length,) int32, as the model gets them.
        starts: where documents (or the rest of one) begin.
        length: tokens; the rest is padding.
        tokens_by_source: tokens by source.
    """

    index: int
    input_ids: np.ndarray
    starts: list[int]
    length: int
    tokens_by_source: dict[str, int]

    def summary(self) -> dict[str, object]:
        """What `--format jsonl` prints: index, sha256 of the int32 little-endian ids, documents, tokens_by_source."""
        return {
            "index": self.index,
            "sha256": hashlib.sha256(self.input_ids.astype("<i4").tobytes()).hexdigest(),
            "documents": len(self.starts),
            "tokens_by_source": self.tokens_by_source,
        }

    def text(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """The row with a ruled line above each document."""
        sources = ", ".join(f"{name} {tokens:,} tokens" for name, tokens in self.tokens_by_source.items())
        plural = "s" if len(self.starts) > 1 else ""
        lines = [f"━━━ row {self.index:,}: {sources}, {len(self.starts)} document{plural}"]
        for number, (start, stop) in enumerate(zip(self.starts, [*self.starts[1:], self.length], strict=True), 1):
            ids = self.input_ids[start:stop].tolist()
            whole = "" if ids[-1] == tokenizer.eos_token_id else ", goes on in another row"
            lines += [f"─── document {number}, positions {start:,} to {stop - 1:,}{whole}", tokenizer.decode(ids)]
        if self.length < len(self.input_ids):
            lines.append(f"─── padding, positions {self.length:,} to {len(self.input_ids) - 1:,}")
        return "\n".join(lines)


def inspect_rows(
    recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, wanted: InspectDataRecipe
) -> Iterator[InspectedRow]:
    """The rows asked for, from the stream that training uses; fewer where the data ends.

    A checkpoint of the recipe's run before the first of them saves the way from the beginning.
    """
    step_rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * (recipe.num_processes or 1)
    stream = stream_near(recipe, tokenizer, wanted.world_size, step_rows, wanted.start)
    # Whole rounds of the processes: row i belongs to process i modulo their number.
    skip = wanted.start - wanted.start % wanted.world_size - stream.rows_taken
    with tqdm(total=skip, desc="rows before", unit="row", disable=skip < 1000, leave=False) as progress:
        while skip > 0 and (passed := len(stream.take(min(skip, 1024)))):
            skip -= passed
            progress.update(passed)
    shown = 0
    while shown < wanted.num_rows and (rows := stream.take(wanted.world_size)):
        while stream.bad_records:
            source, record = stream.bad_records.popleft()
            print(f"source {source}: left out {record.where}: {record.reason}", file=sys.stderr)
        index = stream.rows_taken - len(rows) + wanted.rank
        if index < wanted.start or wanted.rank >= len(rows):
            continue
        row = rows[wanted.rank]
        batch = rows_to_batch([row], recipe.sequence_length, tokenizer.eos_token_id)
        ids = batch.input_ids[0].numpy().astype(np.int32)
        yield InspectedRow(index, ids, row.starts.tolist(), row.length, {row.source: row.length})
        shown += 1


def stream_near(
    recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, world_size: int, step_rows: int, start: int
) -> PackedStream:
    """The recipe's stream, from its run's last checkpoint before a row where there is one of the same data."""
    states: list[StreamState] = []
    for folder in complete_checkpoints(recipe.output_dir):
        state = read_trainer_state(folder)["stream"]
        if state["rows"] <= start and state["rows"] % world_size == 0:
            states.append(state)
    for state in sorted(states, key=lambda state: -state["rows"]):
        try:
            return PackedStream.from_recipe(recipe, tokenizer, world_size, step_rows=step_rows, state=state)
        except UserError as error:
            print(f"not from the checkpoint at row {state['rows']:,}: {error}", file=sys.stderr)
    return PackedStream.from_recipe(recipe, tokenizer, world_size, step_rows=step_rows)
