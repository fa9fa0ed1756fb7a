"""Proof that a resume is one: the loss on the next rows, before it was saved and after it was read."""

import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from genesis_hf.data.stream import StepBatch
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.training.step import evaluating

TOLERANCE = {"no": 1e-4, "bf16": 5e-3}
"""Relative difference of the loss that another number of processes, or another card, may make; by mixed precision."""


def probe(
    model: nn.Module, coming: StepBatch | None, trained: StepBatch, micro_batch_size: int, accelerator: Accelerator
) -> dict[str, Any]:
    """What is recorded with a checkpoint: the loss on a micro-batch a process of the rows to come.

    At the end of the data, where none come, those just trained on tell at least whether the model is sound.
    """
    rows = min(micro_batch_size, len(trained.input_ids)) * accelerator.num_processes
    measured = measure(model, coming or trained, rows, micro_batch_size, accelerator)
    return {**measured, "rows": rows, "coming": coming is not None}


def prove_resume(
    folder: Path,
    state: dict[str, Any],
    model: nn.Module,
    coming: StepBatch | None,
    micro_batch_size: int,
    accelerator: Accelerator,
) -> str:
    """Measure the recorded rows' loss again, on any number of processes; a line about the result.

    Raises:
        UserError: it is another loss.
    """
    recorded = state["probe"]
    if not recorded["coming"] or coming is None:
        return "no rows were left to compare the loss on"
    found = measure(model, coming, recorded["rows"], micro_batch_size, accelerator)
    if found["rows_hash"] != recorded["rows_hash"]:
        return "other rows follow than when it was saved, so their loss was not compared"
    difference = abs(found["loss"] - recorded["loss"]) / recorded["loss"]
    if not difference <= TOLERANCE[accelerator.mixed_precision]:
        raise UserError(
            f"{folder}: the loss on the next rows is {found['loss']:.6f} and was {recorded['loss']:.6f} when they were "
            "measured at the save; something that the checkpoint doesn't hold has changed (library versions, "
            "attn_implementation, bf16)"
        )
    return f"loss {found['loss']:.6f} on the next rows, {recorded['loss']:.6f} when it was saved"


def measure(
    model: nn.Module, batch: StepBatch, rows: int, micro_batch_size: int, accelerator: Accelerator
) -> dict[str, Any]:
    """`loss`, in nats per token, of a step's first rows, and `rows_hash`; waits for the device.

    Row i of a step lies on process i % processes. Every process runs the same number of forward passes; rows beyond
    its share carry no labels.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = len(range(rank, rows, world))
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for start in range(0, -(-rows // world), micro_batch_size):
        inputs = batch.inputs(slice(start, start + micro_batch_size))
        inputs["labels"][max(0, mine - start) :] = IGNORE_INDEX
        inputs = {name: tensor.to(accelerator.device) for name, tensor in inputs.items()}
        with evaluating(model):
            totals[0] += model(**inputs, num_items_in_batch=1, logits_to_keep=1).loss.double()
        totals[1] += (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
    loss, tokens = accelerator.reduce(totals, "sum").tolist()
    # A sum, so that the order in which processes hold the rows doesn't matter.
    hashes = sum(zlib.crc32(row.numpy().tobytes()) for row in batch.input_ids[:mine])
    rows_hash = accelerator.reduce(torch.tensor(hashes, dtype=torch.int64, device=accelerator.device), "sum")
    return {"loss": loss / max(1, tokens), "rows_hash": rows_hash.item()}
