"""Held-out loss and bits per byte inside the training loop."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.data.packing import Row
from genesis_hf.data.readers import read_documents
from genesis_hf.data.stream import rows_to_batch
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import encode_documents


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
        self.token_bytes = torch.from_numpy(token_byte_lengths(tokenizer)).to(accelerator.device)
        self.rows = {
            source.name: list(itertools.islice(document_rows(source, tokenizer, sequence_length), rows))
            for source in sources
        }
        for name, found in self.rows.items():
            if not found:
                raise UserError(f"eval_sources: {name!r} holds less than one row of {sequence_length} tokens")

    def due(self, step: int, recipe: PretrainRecipe) -> bool:
        """Whether to evaluate after this step: every `eval_steps`, and at the end."""
        ends = step == recipe.max_steps
        return bool(self.rows) and (ends or (recipe.eval_steps is not None and step % recipe.eval_steps == 0))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """`{source: {"loss": nats per token, "bits_per_byte": …}}`; the model is in training mode again afterwards."""
        model.eval()
        results = {name: self._evaluate_rows(model, rows) for name, rows in self.rows.items()}
        model.train()
        return results

    def _evaluate_rows(self, model: nn.Module, rows: list[Row]) -> dict[str, float]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = math.ceil(len(rows) / (world * self.batch_size))
        mine = rows[rank::world]
        filler = Row(np.zeros_like(rows[0].input_ids), [0], {})
        # loss in nats, predicted tokens, their bytes
        totals = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        for index in range(batches):
            part = mine[index * self.batch_size : (index + 1) * self.batch_size]
            real = len(part)
            batch = rows_to_batch(part + [filler] * (self.batch_size - real), True, 0, {})
            batch.labels[real:] = IGNORE_INDEX
            inputs = next(batch.micro_batches(self.batch_size))
            inputs = {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}
            targets = inputs["labels"][:, 1:]
            kept = targets != IGNORE_INDEX
            totals[0] += model(**inputs, num_items_in_batch=1, logits_to_keep=1).loss.double()
            totals[1] += kept.sum()
            totals[2] += (self.token_bytes[targets.clamp(min=0)] * kept).sum()
        loss, tokens, size = self.accelerator.reduce(totals, "sum").tolist()
        return {"loss": loss / max(1, tokens), "bits_per_byte": loss / math.log(2) / max(1, size)}


def document_rows(source: Source, tokenizer: PreTrainedTokenizerFast, sequence_length: int) -> Iterator[Row]:
    """Rows of a source's documents joined with EOS, in the files' order, without shuffling or repeating."""
    ids: list[int] = []
    starts: list[int] = [0]
    for document in read_documents(source):
        ids += [*encode_documents(tokenizer, [document])[0], tokenizer.eos_token_id]
        starts.append(len(ids))
        while len(ids) >= sequence_length:
            inside = [s for s in starts if s < sequence_length]
            yield Row(np.array(ids[:sequence_length], dtype=np.int32), inside, {})
            ids = ids[sequence_length:]
            starts = sorted({0, *(s - sequence_length for s in starts if s >= sequence_length)})


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
