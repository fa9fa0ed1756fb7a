"""How many rows go through the model at once: the recipe's number, or less where memory has run out."""

import json
from pathlib import Path

import torch

from genesis_hf.config import PretrainRecipe, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import read_json


class MicroBatch:
    """`size` rows, halved when memory runs out; tokens per step stay, in more micro-batches.

    The smaller number is kept in the run directory's micro_batch.json, so that a resumed run sums in the same order.

    Attributes:
        size: rows in a micro-batch of this process.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        self._recipe = recipe
        self._path = Path(recipe.output_dir) / "micro_batch.json"
        self.size = recipe.per_device_train_batch_size
        recorded = read_json(self._path) if recipe.auto_find_batch_size else {}
        if recorded.get("instead_of") == self.size:
            self.size = recorded["per_device_train_batch_size"]

    def halve(self, rows: int, num_processes: int) -> str:
        """Take at most half as many rows, in numbers that divide the step's `rows`; returns a line about it.

        One process goes on by itself. Of several, only the one that ran out of memory comes here while the others wait
        for it in a collective: the number is recorded, and the run has to start again.

        Raises:
            UserError: several processes; nothing left to halve; `auto_find_batch_size` is off.
        """
        before = self.size
        mend = (
            "gradient_checkpointing: full, a shorter sequence_length, a sharded launch or cpu_offload would take less"
        )
        if not self._recipe.auto_find_batch_size or before == 1:
            raise UserError(f"out of memory with per_device_train_batch_size {before}; {mend}")
        self.size = next(size for size in range(before // 2, 0, -1) if rows % size == 0)
        record = {
            "per_device_train_batch_size": self.size,
            "instead_of": self._recipe.per_device_train_batch_size,
        }
        write_text(self._path, json.dumps(record) + "\n")
        line = (
            f"out of memory with {before} rows in a micro-batch: {self.size} x {rows // self.size} micro-batches from "
            f"here on, as many tokens a step as before"
        )
        if num_processes > 1:
            raise UserError(
                f"{line}. Start again ({self._path} holds the number); a launch with --max_restarts 3 does so itself"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return line
