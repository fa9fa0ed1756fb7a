"""Several conversations in a row, none of which sees another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from genesis_hf.data.packing import best_fit
from genesis_hf.modeling import IGNORE_INDEX


class PackedConversations(torch.utils.data.Dataset):
    """Rows of whole conversations, best-fit decreasing: the longest first, each into the fullest row that holds it.

    Args:
        dataset: `input_ids`, `labels` and `length`, none longer than `max_length`.
        max_length: tokens in a row at most.
    """

    column_names = ("input_ids", "labels", "lengths")

    def __init__(self, dataset: Dataset, max_length: int) -> None:
        self.conversations = dataset.with_format("numpy")
        self.lengths = self.conversations["length"][:]
        self.rows = [[piece[0] for piece in row] for row in best_fit(self.lengths.tolist(), max_length)]
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """`input_ids` and `labels` of a row, (tokens,), and the `lengths` of its conversations."""
        members = self.conversations[self.rows[number]]
        return {
            "input_ids": np.concatenate(members["input_ids"]),
            "labels": np.concatenate(members["labels"]),
            "lengths": np.array([len(ids) for ids in members["input_ids"]]),
        }

    @property
    def padding(self) -> float:
        """Share of the rows that would be padding if all were `max_length` long."""
        return 1 - float(self.lengths.sum()) / (len(self.rows) * self.max_length)


def collate_packed(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """A batch of packed rows as the model takes it: `input_ids`, `labels`, `position_ids`, each (rows, longest), int64.

    Positions restart at 0 in each conversation, by which attention is kept inside it; there is no attention mask, as
    transformers asks for that. A conversation's first token is no label: nothing before it is its own. Padding at the
    end is a conversation of its own.
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for length in [*row["lengths"].tolist(), width - len(row["input_ids"])]:
            position_ids[number, start : start + length] = torch.arange(length)
            start += length
        used = len(row["input_ids"])
        input_ids[number, :used] = torch.from_numpy(row["input_ids"])
        labels[number, :used] = torch.from_numpy(row["labels"])
    labels[position_ids == 0] = IGNORE_INDEX
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
