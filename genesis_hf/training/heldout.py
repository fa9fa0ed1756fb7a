"""Held-out loss and bits per byte inside the training loop."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe, Source, write_text
from genesis_hf.data.packing import Row, row_of_parts
from genesis_hf.data.readers import open_source, read_documents
from genesis_hf.data.selection import Selection, recipe_selection
from genesis_hf.data.stream import rows_to_batch
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import encode_documents
from genesis_hf.training.step import evaluating


def hashed_out_sources(
    recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator
) -> list[Source]:
    """The held-out documents of each training source, in files of the run directory's `held_out` folder.

    They are looked for once, until there are `eval_rows` rows of them; a source that `eval_sources` names has its own.
    Every process looks, for reading may take longer than a collective waits; the main one writes.
    """
    named = {source.name for source in recipe.eval_sources}
    sources = [source for source in recipe.sources if source.name not in named] if recipe.held_out_share else []
    wanted = recipe.eval_rows * recipe.sequence_length
    selection = recipe_selection(recipe)
    paths = {}
    for source in sources:
        if source.prepared is not None:
            paths[source.name] = Path(source.prepared) / "held_out.jsonl"
            continue
        key = hash_items([asdict(source), recipe.held_out_share, wanted])[:12]
        path = paths[source.name] = Path(recipe.output_dir) / "held_out" / f"{source.name}-{key}.jsonl"
        if not path.exists():
            texts = list(held_out_texts(source, selection, tokenizer, wanted, accelerator.is_main_process))
            if accelerator.is_main_process:
                write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    accelerator.wait_for_everyone()
    for name in [name for name, path in paths.items() if not path.stat().st_size]:
        accelerator.print(f"source {name}: none of its documents is held out by held_out_share {recipe.held_out_share}")
        del paths[name]
    return [Source(name=name, paths=[str(path)]) for name, path in paths.items()]


def held_out_texts(
    source: Source, selection: Selection, tokenizer: PreTrainedTokenizerFast, tokens: int, show: bool
) -> Iterator[str]:
    """The first documents that the selection holds out, until they have so many tokens."""
    reader = open_source(source)
    position, found = reader.start, 0
    with tqdm(total=tokens, desc=f"held-out documents of {source.name}", unit="token", disable=not show) as progress:
        while position is not None and found < tokens:
            block = reader.read_block(position, 1024)
            position = block.position
            for text in block.texts:
                if found < tokens and selection.use(text) == "held_out":
                    yield text
                    size = len(encode_documents(tokenizer, [text])[0]) + 1
                    found += size
                    progress.update(size)


class HeldOut:
    """The first rows of each held-out source, each row one document's beginning or continuation.

    Every process evaluates the same number of batches; rows that only fill up carry no labels.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        rows: int,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.padding_id = tokenizer.eos_token_id
        self.token_bytes = torch.from_numpy(token_byte_lengths(tokenizer)).to(accelerator.device)
        self.rows = {
            source.name: list(itertools.islice(document_rows(source, tokenizer, sequence_length), rows))
            for source in sources
        }
        for name, found in self.rows.items():
            if not found:
                raise UserError(f"eval_sources: {name!r} holds no text")

    def due(self, step: int, recipe: PretrainRecipe) -> bool:
        """Whether to evaluate after this step: every `eval_steps`, and at the end."""
        ends = step == recipe.last_step
        return bool(self.rows) and (ends or (recipe.eval_steps is not None and step % recipe.eval_steps == 0))

    def evaluate(self, model: nn.Module, beat: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
        """`{source: {"loss": nats per token, "bits_per_byte": …}}`; `beat` is called after each batch."""
        with evaluating(model):
            return {name: self._evaluate_rows(model, rows, beat) for name, rows in self.rows.items()}

    def _evaluate_rows(self, model: nn.Module, rows: list[Row], beat: Callable[[], None]) -> dict[str, float]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = math.ceil(len(rows) / (world * self.batch_size))
        mine = rows[rank::world]
        # loss in nats, predicted tokens, their bytes
        totals = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        for index in range(batches):
            part = mine[index * self.batch_size : (index + 1) * self.batch_size]
            batch = rows_to_batch(part, self.sequence_length, self.padding_id, self.batch_size)
            inputs = next(batch.micro_batches(self.batch_size))
            inputs = {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}
            targets = inputs["labels"][:, 1:]
            kept = targets != IGNORE_INDEX
            totals[0] += model(**inputs, num_items_in_batch=1, logits_to_keep=1).loss.double()
            totals[1] += kept.sum()
            totals[2] += (self.token_bytes[targets.clamp(min=0)] * kept).sum()
            beat()
        loss, tokens, size = self.accelerator.reduce(totals, "sum").tolist()
        return {"loss": loss / max(1, tokens), "bits_per_byte": loss / math.log(2) / max(1, size)}


def document_rows(source: Source, tokenizer: PreTrainedTokenizerFast, sequence_length: int) -> Iterator[Row]:
    """Rows of a source's documents joined with EOS, in the files' order, without shuffling or repeating."""
    parts: list[np.ndarray] = []
    room = sequence_length
    for text in read_documents(source):
        ids = np.array([*encode_documents(tokenizer, [text])[0], tokenizer.eos_token_id], dtype=np.int32)
        while len(ids):
            parts.append(ids[:room])
            ids = ids[room:]
            room -= len(parts[-1])
            if room == 0:
                yield row_of_parts(source.name, parts)
                parts, room = [], sequence_length
    if parts:
        yield row_of_parts(source.name, parts)


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """(len(tokenizer),) int64: how many bytes of text each token stands for; 0 for special tokens."""
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    special = set(tokenizer.all_special_ids)
    lengths = np.zeros(len(tokenizer), dtype=np.int64)
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if index in special:
            continue
        if byte_level:
            lengths[index] = len(piece)
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            lengths[index] = 1
        else:
            lengths[index] = len(piece.replace("▁", " ").encode())
    return lengths
