"""SFTTrainer over encoded conversations: what is fed, what is counted, and the loss of held-out answers."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from trl import SFTTrainer

from genesis_hf.conversations.packing import PackedConversations, collate_packed
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.post_training.order import LengthGroupedMixin
from genesis_hf.post_training.processes import LaunchedTrainer
from genesis_hf.post_training.scoring import before_answers, score_answers
from genesis_hf.processes import is_main, rank
from genesis_hf.training.step import evaluating

Row = dict[str, np.ndarray]


class TrainingRows(torch.utils.data.Dataset):
    """Conversations, or packed rows of them; behind the last one, a row on which nothing is trained."""

    def __init__(self, rows: Dataset | PackedConversations, pad_token_id: int) -> None:
        self.rows = rows if isinstance(rows, PackedConversations) else rows.with_format("numpy")
        self.empty = {
            "input_ids": np.array([pad_token_id]), "labels": np.array([IGNORE_INDEX]), "lengths": np.array([1])
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        """`input_ids` and `labels`, (tokens,), and of packed rows `lengths`."""
        return self.rows[number] if number < len(self.rows) else self.empty


class Collator:
    """Rows to a batch: `input_ids` and `labels`, (rows, longest), packed rows also `position_ids`; `before_answers`,
    the positions that are scored; and `num_tokens`, a scalar without padding.

    There is no attention mask: padding comes last, where causal attention leaves it out by itself.
    """

    def __init__(self, pad_token_id: int, packed: bool) -> None:
        self.pad_token_id, self.packed = pad_token_id, packed

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = collate_packed(rows, self.pad_token_id) if self.packed else pad_right(rows, self.pad_token_id)
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            **batch,
            "before_answers": before_answers(batch["labels"]),
            "num_tokens": torch.tensor(sum(length for length in lengths if length > 1)),
        }  # 1: the empty row


def pad_right(rows: Sequence[Row], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `labels`, (rows, longest) int64."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name, value in (("input_ids", pad_token_id), ("labels", IGNORE_INDEX)):
        batch[name] = torch.full((len(rows), width), value)
        for number, row in enumerate(rows):
            batch[name][number, : len(row[name])] = torch.from_numpy(row[name])
    return batch


class ConversationTrainer(LengthGroupedMixin, LaunchedTrainer, SFTTrainer):
    """SFTTrainer that scores trained positions only and reads its counters off the device when it logs.

    A step's loss is the sum over its trained tokens, those of all processes and micro-batches, divided by their number.
    """

    has_empty_row = True

    def __init__(self, model: Any, args: Any, train_dataset: Any, **kwargs: Any) -> None:
        score_answers(model)
        packed = isinstance(train_dataset, PackedConversations)
        pad_token_id = kwargs["processing_class"].pad_token_id
        self.collate_evaluation = Collator(pad_token_id, packed=False)
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        args.remove_unused_columns = False
        args.packing = False  # TRL would pack once more, into one row a batch
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset.conversations if packed else train_dataset,  # TRL takes no other kind
            data_collator=Collator(pad_token_id, packed),
            **kwargs,
        )
        self.train_dataset = TrainingRows(train_dataset, pad_token_id)
        # Packed rows are full, all but the last.
        self.lengths = [1] * len(train_dataset) if packed else train_dataset["length"][:]
        self.num_tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self.tokens_since = (time.perf_counter(), 0)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The micro-batch's part of the step's loss, times the number of processes, which DDP and FSDP divide by."""
        self.num_tokens += inputs.pop("num_tokens")
        total = model(**inputs)["loss"]
        return total / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With `num_tokens`, those read so far by all processes, and `tokens_per_second` since the last line."""
        if "loss" in logs:
            logs["num_tokens"] = int(self.accelerator.reduce(self.num_tokens.clone(), "sum"))
            now, (then, before) = time.perf_counter(), self.tokens_since
            logs["tokens_per_second"] = round((logs["num_tokens"] - before) / (now - then), 1)
            self.tokens_since = (now, logs["num_tokens"])
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        return {**super().progress(), "num_tokens": int(self.num_tokens)}

    def set_progress(self, progress: dict[str, Any]) -> None:
        super().set_progress(progress)
        self.num_tokens.fill_(progress["num_tokens"])

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, Any]:
        """`answer_loss` as `eval_loss`, `eval_stderr` and `eval_tokens`, logged. Nothing of the training changes."""
        found = answer_loss(self, self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def answer_loss(trainer: ConversationTrainer, dataset: Dataset) -> dict[str, float | None]:
    """Mean loss of the held-out answers' tokens under the live model; every process calls it.

    Returns:
        `loss` in nats a trained token; its standard error `stderr` over conversations (the ratio estimator's:
        sd(s_i - loss · n_i) / (mean(n) · sqrt(N)), Cochran, Sampling Techniques, 1977, 6.4); `tokens`.
    """
    device = trainer.args.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    moments = torch.zeros(6, dtype=kind, device=device)  # N, Σn, Σs, Σn², Σns, Σs²
    with evaluating(trainer.model_wrapped):
        for batch in evaluation_batches(trainer, dataset):
            found = trainer.model_wrapped(**batch)
            s, n = found["losses"].to(kind), found["tokens"].to(kind)
            moments += torch.stack([(n > 0).sum(), n.sum(), s.sum(), (n * n).sum(), (n * s).sum(), (s * s).sum()])
    count, tokens, total, nn, ns, ss = trainer.accelerator.reduce(moments, "sum").tolist()
    loss = total / tokens
    squares = max(0.0, ss - 2 * loss * ns + loss * loss * nn)
    stderr = math.sqrt(squares / (count - 1) * count) / tokens if count > 1 else None
    return {"loss": loss, "stderr": stderr, "tokens": int(tokens)}


def evaluation_batches(trainer: ConversationTrainer, dataset: Dataset) -> Iterator[dict[str, Tensor]]:
    """This process's share, rows of like length together; as many batches on each process.

    No DataLoader makes them, because that would draw from the generator that training draws from.
    """
    rows = TrainingRows(dataset.sort("length"), trainer.processing_class.pad_token_id)
    size, processes = trainer.args.per_device_eval_batch_size, trainer.accelerator.num_processes
    starts = range(rank() * size, len(rows) + -len(rows) % (size * processes), size * processes)
    for start in tqdm(starts, desc="held-out loss", unit="batch", disable=None if is_main() else True):
        numbers = range(start, min(start + size, len(rows))) or [len(rows)]
        batch = trainer.collate_evaluation([rows[number] for number in numbers])
        del batch["num_tokens"]
        yield {name: value.to(trainer.args.device) for name, value in batch.items()}
