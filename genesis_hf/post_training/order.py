"""The order of the rows: batches of like lengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

MEGABATCH = 50
"""Batches' worth of rows that are sorted by length together: little padding, and still a new order every epoch."""


class LengthGroupedOrder(Sampler[int]):
    """Batches of rows of like length in shuffled order, a pure function of seed and epoch.

    transformers' own `LengthGroupedSampler` draws from the global generator, so that a resumed epoch has another
    order, and goes from long to short inside each megabatch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * MEGABATCH
        for start in range(0, len(order), size):
            order[start : start + size] = sorted(order[start : start + size], key=self.lengths.__getitem__)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return (row for batch in [*(batches[i] for i in shuffled), *short] for row in batch)


class LengthGroupedMixin:
    """A Trainer whose `train_sampling_strategy: group_by_length` is `LengthGroupedOrder`, by a `length` column."""

    lengths: Sequence[int] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length" or self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.world_size
        return LengthGroupedOrder(self.lengths, batch_size, self.args.data_seed or self.args.seed)
