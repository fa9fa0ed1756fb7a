"""The reference: where the policy starts. Its log-probabilities, computed once and kept, and the proof of it.

    CACHE/reference/KEY.npz    (examples, columns) float32 log-probabilities in nats, in the order of the data;
                               nan where they are still to be computed

KEY covers the model's files, the encoded examples with their order, the precision and how the model is split. TRL's
own cache knows the weights but neither configuration nor precision, lies in a folder of the process for data like
ours, begins again after an interruption, and believes any file of the right name.
"""

import hashlib
import json
import math
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genesis_hf.config import write_text
from genesis_hf.conversations.prepared import cache_folder
from genesis_hf.errors import UserError
from genesis_hf.files import folder_sha256, hash_items, read_json
from genesis_hf.processes import is_main

FORMAT = 1
"""Of the cache's files and of what their key covers."""

SAVE_SECONDS = 30.0
"""What an interruption loses at most."""

WEIGHT_FILES = ("config.json", "*.safetensors", "*.bin", "*.index.json")

START_TOLERANCE = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.5}
"""Nats by which the mean log-probability of the first step's answers may differ from the reference's, by precision.

The same answer comes in another batch, padded to another length, and sums over it round differently.
"""


class ReferencedExamples(torch.utils.data.Dataset):
    """Encoded examples, each with the reference's log-probabilities under TRL's names."""

    def __init__(self, examples: Dataset, names: tuple[str, ...], values: np.ndarray) -> None:
        self.examples, self.names, self.values = examples, names, values

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.examples[number], **dict(zip(self.names, self.values[number].tolist(), strict=True))}


class Reference:
    """The log-probabilities of one model, kept in a folder.

    Args:
        model: the folder the policy is loaded from.
        cache_dir: the recipe's; see `conversations.prepared.cache_folder`.
    """

    def __init__(self, model: Path, cache_dir: str | None) -> None:
        self.model, self.folder = model, cache_folder(cache_dir) / "reference"
        self.inputs: dict[str, str] = {}
        """sha256 of the model and, by name, of each set of examples that was scored; main process only."""

    def key(self, name: str, examples: Dataset, settings: list[Any]) -> str:
        """What decides the log-probabilities of these examples; `settings`: how the trainer computes them."""
        if "model" not in self.inputs:
            self.inputs["model"] = folder_sha256(self.model, WEIGHT_FILES)
        self.inputs[name] = examples_sha256(examples)
        return hash_items([FORMAT, self.inputs["model"], self.inputs[name], settings])

    def read(self, path: Path, shape: tuple[int, int]) -> np.ndarray:
        """What the cache holds, nan elsewhere; a file that is damaged (its CRC) or of another shape holds nothing."""
        try:
            with np.load(path) as file:
                values = file["values"]
                if values.shape == shape and values.dtype == np.float32:
                    return values
        except FileNotFoundError:
            return np.full(shape, np.nan, dtype=np.float32)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        print(f"{path} is damaged: the reference's log-probabilities are computed again")
        return np.full(shape, np.nan, dtype=np.float32)

    def write(self, path: Path, values: np.ndarray) -> None:
        """Put the values in place, complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, values=values)
        os.replace(temporary, path)


def examples_sha256(examples: Dataset) -> str:
    """sha256 of all columns but those that say where an example came from, in their order."""
    names = sorted(set(examples.column_names) - {"length", "row"})
    digest = hashlib.sha256(repr(names).encode())
    for table in examples.with_format("arrow").iter(1000):
        for column in (table.column(name).combine_chunks() for name in names):
            if pa.types.is_nested(column.type):
                digest.update(pc.list_value_length(column).to_numpy().astype(np.int64).tobytes())
                column = pc.list_flatten(column)
            digest.update(column.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------
# In a trainer
# ---------------------------------------------------------------------------------------------------------


class ReferenceMixin:
    """A TRL preference trainer over encoded examples that takes the reference's log-probabilities from `Reference`.

    Its `train_dataset` and `eval_dataset` are `ReferencedExamples`.
    """

    reference_columns: tuple[str, ...]
    """TRL's names for what its `compute_ref_log_probs` returns."""

    def __init__(self, *args: Any, reference: Reference, **kwargs: Any) -> None:
        self.reference = reference  # TRL asks for the log-probabilities while it is being constructed
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL's own would tokenise again, parse special tokens out of typed text, and train the line break after
        # the stop token.
        return dataset

    def progress(self) -> dict[str, Any]:
        """See `LaunchedTrainer`; what TRL has counted since the last logged step."""
        return {
            **super().progress(),
            "metrics": {mode: dict(metrics) for mode, metrics in self._metrics.items()},
            "train_tokens": self._total_train_tokens,
        }

    def set_progress(self, progress: dict[str, Any]) -> None:
        """What `progress` gave."""
        super().set_progress(progress)
        for mode, metrics in progress["metrics"].items():
            self._metrics[mode].update(metrics)
        self._total_train_tokens = progress["train_tokens"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL for the lines of training and evaluation; any other line takes nothing away from the next of them."""
        if any(name in ("loss", "train_loss") or name.startswith("eval_") for name in logs):
            super().log(logs, start_time)
            return
        due = self.control.should_log
        Trainer.log(self, logs, start_time)
        self.control.should_log = due

    def _get_eval_sampler(self, eval_dataset: ReferencedExamples) -> Any:
        # In order of length there is little padding; Trainer's own way looks for `input_ids`.
        return np.argsort(np.asarray(eval_dataset.examples["length"][:]), kind="stable").tolist()

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> ReferencedExamples:
        settings = [precision(self.args), self.is_fsdp_enabled, getattr(self, "ld_alpha", None)]
        shape = (len(dataset), len(self.reference_columns))
        path, values = None, None
        if self.is_world_process_zero():
            path = self.reference.folder / f"{self.reference.key(name, dataset, settings)}.npz"
            values = self.reference.read(path, shape)
        # From one process to all: their clocks and disks may differ.
        (values,) = broadcast_object_list([values], from_process=0)
        missing = np.flatnonzero(np.isnan(values).any(axis=1))
        if len(missing):
            missing = missing[np.argsort(np.asarray(dataset["length"][:])[missing], kind="stable")]
            self._compute_reference(dataset, name, batch_size, missing, values, path)
        return ReferencedExamples(dataset, self.reference_columns, values)

    def _compute_reference(
        self,
        dataset: Dataset,
        name: str,
        batch_size: int,
        missing: np.ndarray,
        values: np.ndarray,
        path: Path | None,
    ) -> None:
        """Fill in the missing rows, written down by the main process from time to time."""
        saved = time.perf_counter()
        # Under FSDP an adapter's base model is its own reference, whole and not yet on its device.
        home = self.model.device
        model = self.ref_model or self.model.to(self.accelerator.device)
        try:
            for rows, found in self.score(model, dataset, missing, batch_size, f"reference, {name}"):
                if not np.isfinite(found).all():
                    raise UserError(
                        f"model {self.reference.model}: its log-probability of an answer in the {name} data is "
                        f"{found[~np.isfinite(found)][0]}, which nothing can be compared with"
                    )
                values[rows] = found
                if path and time.perf_counter() - saved > SAVE_SECONDS:
                    self.reference.write(path, values)
                    saved = time.perf_counter()
        finally:
            self.model.to(home)
            if path:
                self.reference.write(path, values)

    def score(
        self, model: torch.nn.Module, examples: Any, rows: np.ndarray, batch_size: int, words: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Log-probabilities in nats of these rows' answers, a batch of all processes at a time, on each process.

        Yields:
            the rows of a batch and their log-probabilities, (rows, columns) float32.
        """
        part = examples.select(rows)
        loader = self.accelerator.prepare(DataLoader(part, batch_size, collate_fn=self.data_collator))
        model.eval()
        done = 0
        for batch in tqdm(loader, desc=words, unit="batch", disable=None if self.is_world_process_zero() else True):
            found = [column for column in self.compute_ref_log_probs(model, batch) if column is not None]
            found = self.accelerator.gather_for_metrics(torch.stack(found, dim=1).float()).cpu().numpy()
            yield rows[done : done + len(found)], found
            done += len(found)

    def policy_log_probabilities(self, examples: ReferencedExamples) -> np.ndarray:
        """(examples, columns) log-probabilities in nats under the policy as it is now."""
        order = np.argsort(np.asarray(examples.examples["length"][:]), kind="stable")
        values = np.empty_like(examples.values)
        # With a reference of its own at hand TRL leaves the policy's adapter switched on.
        before, self.ref_model = self.ref_model, self.model_wrapped
        try:
            batch_size = self.args.per_device_eval_batch_size
            for rows, found in self.score(self.model_wrapped, examples.examples, order, batch_size, "held-out answers"):
                values[rows] = found
        finally:
            self.ref_model = before
        return values


def precision(args: TrainingArguments) -> str:
    """What the model computes in."""
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


# ---------------------------------------------------------------------------------------------------------
# Proof
# ---------------------------------------------------------------------------------------------------------


class StartsAtReference(TrainerCallback):
    """Refuses a run whose first step is not at the reference: every reward 0, and the loss what that makes it.

    Args:
        loss: of a policy that is the reference; None where that depends on the batch.
    """

    def __init__(self, loss: float | None) -> None:
        self.loss = loss

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Looks at the first step's line, which is computed before any weight has moved."""
        if state.global_step != 1 or not logs or "loss" not in logs:
            return
        tolerance = START_TOLERANCE[precision(args)]
        names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "kl"]
        # A reward is β times nats; the divergence, KTO's, is in nats.
        off = [name for name in names if not abs(logs.get(name, 0.0)) <= tolerance * (args.beta if "/" in name else 1)]
        if self.loss is not None and not abs(logs["loss"] - self.loss) <= tolerance * args.beta:
            off.append("loss")
        if off:
            found = ", ".join(f"{name} {logs[name]:.4f}" for name in ("loss", *names) if name in logs)
            expected = "" if self.loss is None else f"loss {self.loss:.4f} and "
            raise UserError(
                f"the reference is not the starting policy: the first step has {found}, where {expected}0 belong"
            )


def sigmoid_start(args: TrainingArguments) -> float | None:
    """The loss of DPO's sigmoid losses at the reference, ln 2; None for others."""
    plain = set(args.loss_type) <= {"sigmoid", "sigmoid_norm"} and not args.use_weighting
    return math.log(2) * sum(args.loss_weights or [1.0] * len(args.loss_type)) if plain else None


def refuse_another_start(output_dir: str | Path, inputs: dict[str, str], resuming: bool) -> None:
    """Note what a run begins with in reference.json; when it goes on, model and training data have to be those.

    Called on every process; `inputs` are `Reference.inputs`.

    Raises:
        UserError: they are not.
    """
    changed: list[str] = []
    if is_main():
        path = Path(output_dir) / "reference.json"
        now = {name: inputs[name] for name in ("model", "train")}
        before = read_json(path)
        changed = [name for name in now if resuming and before.get(name, now[name]) != now[name]]
        if not changed and now != before:
            write_text(path, json.dumps(now, indent=2) + "\n")
    (changed,) = broadcast_object_list([changed])
    if changed:
        what = " and ".join({"model": "the model's files", "train": "the training data"}[name] for name in changed)
        raise UserError(f"output_dir {output_dir}: {what} changed since this run began; name another output_dir")


def first_step_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """Loss and margin of the first step, which prove the reference; `history`: of `TrainerState`."""
    first = next(line for line in history if line["step"] == 1 and "loss" in line)
    return {"loss": first["loss"], "margin": first.get("rewards/margins", 0.0)}
