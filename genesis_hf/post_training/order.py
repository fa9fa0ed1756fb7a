"""The order of the rows: steps of like lengths, the same on any number of processes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

MEGABATCH = 50
"""Steps' worth of rows that are sorted by length together: little padding, and still a new order every epoch."""


class LengthGroupedOrder(Sampler[int]):
    """Rows of like length for each optimizer step, steps in shuffled order; a pure function of seed and epoch.

    Only the rows of a whole step count, so that one process with accumulation and many without it see the same steps.
    transformers' own `LengthGroupedSampler` draws from the global generator, so that a resumed epoch has another
    order, and goes from long to short inside each megabatch.

    Args:
        lengths: tokens of each row.
        step_rows: rows of an optimizer step, those of all processes and micro-batches.
        multiple: the last, short step is filled up to a multiple of this with `len(lengths)`, a row that isn't there.
        grouped: false: rows in random order whatever their lengths.
    """

    def __init__(
        self, lengths: Sequence[int], step_rows: int, seed: int, multiple: int = 1, grouped: bool = True
    ) -> None:
        self.lengths, self.step_rows, self.seed, self.epoch = lengths, step_rows, seed, 0
        self.fill, self.grouped = -len(lengths) % multiple, grouped

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.step_rows * MEGABATCH
        for start in range(0, len(order) if self.grouped else 0, size):
            order[start : start + size] = sorted(order[start : start + size], key=self.lengths.__getitem__)
        steps = [order[i : i + self.step_rows] for i in range(0, len(order), self.step_rows)]
        short = [steps.pop()] if steps and len(steps[-1]) < self.step_rows else []
        shuffled = torch.randperm(len(steps), generator=generator).tolist()
        yield from (row for step in [*(steps[i] for i in shuffled), *short] for row in step)
        yield from [len(self.lengths)] * self.fill


class LengthGroupedMixin:
    """A Trainer whose `train_sampling_strategy` (`group_by_length`, else `random`) is a `LengthGroupedOrder`.

    Attributes:
        lengths: tokens of each training row; None leaves the order to the Trainer.
        has_empty_row: whether the dataset has, at the index behind its last row, one on which nothing is trained. The
            last step of an epoch is filled with it; else Accelerate fills it with rows of the first.
    """

    lengths: Sequence[int] | None = None
    has_empty_row = False
    order: LengthGroupedOrder | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        args = self.args
        if self.lengths is None or args.train_sampling_strategy not in ("group_by_length", "random"):
            return super()._get_train_sampler(train_dataset)
        rows = args.train_batch_size * args.world_size
        self.order = LengthGroupedOrder(
            self.lengths,
            rows * args.gradient_accumulation_steps,
            args.seed if args.data_seed is None else args.data_seed,
            multiple=rows if self.has_empty_row else 1,
            grouped=args.train_sampling_strategy == "group_by_length",
        )
        return self.order
