"""Checkpoints of a run, written while it goes on."""

import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.agreement import together
from genesis_hf.checkpoint.copies import copy_checkpoint
from genesis_hf.checkpoint.delivery import Delivery, join
from genesis_hf.checkpoint.folders import apply_retention, checkpoint_folder, checkpoint_step
from genesis_hf.checkpoint.save import write_checkpoint
from genesis_hf.checkpoint.staging import Staging, can_stage
from genesis_hf.checkpoint.state import Snapshot, inner, take_snapshot
from genesis_hf.checkpoint.upload import upload_checkpoint
from genesis_hf.config import PretrainRecipe, recipe_yaml
from genesis_hf.errors import UserError
from genesis_hf.processes import is_main

SLOWEST_WRITE = timedelta(hours=2)
"""How long the processes wait for the slowest one's part of a checkpoint."""


class Checkpointer:
    """Saves, keeps and copies the checkpoints of a run as its recipe says. Every process makes one, at the same time.

    With `save_async` a save returns at once, but under FSDP1. A thread copies the tensors to the CPU while the next
    step computes its gradients; the optimizers wait for the copy before they change anything. Then it writes, over a
    process group of its own: on the one that trains, its collectives would meet training's.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.recipe = recipe
        self.run = Path(recipe.output_dir)
        self._model, self._optimizers, self._tokenizer = model, optimizers, tokenizer
        self._group = dist.new_group(backend="gloo", timeout=SLOWEST_WRITE) if dist.is_initialized() else None
        self._staging = Staging() if recipe.save_async else None
        self._staged = threading.Event()
        self._staged.set()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._stall = 0.0
        self._hooks = [inner(o).register_step_pre_hook(self._before_optimizer_step) for o in optimizers]
        self._deliveries = self._make_deliveries() if is_main() else []

    def save(self, trainer_state: dict[str, Any]) -> Path:
        """Write a checkpoint of this moment; called by every process at the same step.

        Waits for the write before it. Model and optimizers may be used as always afterwards; whoever changes them by
        other means than `optimizer.step()` calls `wait` first.

        Args:
            trainer_state: JSON values with "step"; what a resume needs beside tensors and generators.

        Returns:
            the folder in which it will stand; `failed` and `close` tell when it could not be written.
        """
        begun = time.perf_counter()
        self.wait()
        folder = checkpoint_folder(self.run, trainer_state["step"])
        recipe_text = recipe_yaml(self.recipe)
        snapshot = take_snapshot(self._model, self._optimizers, trainer_state, recipe_text, self._tokenizer)
        if self._staging is None or not can_stage(snapshot.tensors):
            self._write(folder, snapshot)
        else:
            snapshot.tensors = self._staging.prepare(snapshot.tensors)
            self._staged.clear()
            self._thread = threading.Thread(target=self._write, args=(folder, snapshot), name="checkpoint", daemon=True)
            self._thread.start()
        self._stall += time.perf_counter() - begun
        return folder

    @property
    def failed(self) -> str | None:
        """Why the last write failed, in one line; None while all is well or it isn't known yet."""
        return self._failure

    def take_stall(self) -> float:
        """Seconds that training stood still for saves since the last call."""
        stall, self._stall = self._stall, 0.0
        return stall

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            join(self._thread, "waiting for the checkpoint to be written", is_main())
            self._thread = None

    def close(self, hurry: bool = False) -> None:
        """Wait for all that is under way.

        Args:
            hurry: leave copies and uploads where they are; the next save makes up for them.

        Raises:
            UserError: the last write failed.
        """
        self.wait()
        for delivery in [] if hurry else self._deliveries:
            delivery.close()
        for hook in self._hooks:
            hook.remove()
        if self._staging is not None:
            self._staging.close()
        if self._failure is not None:
            raise UserError(self._failure)

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        try:
            together(self._stage, self._group)
            write_checkpoint(folder, snapshot, self._group, self.recipe.milestones)
            together(lambda: self._retain(folder), self._group)
            self._failure = None
            for delivery in self._deliveries:
                delivery.offer(folder)
        except Exception as error:
            self._failure = str(error)

    def _stage(self) -> None:
        try:
            if self._staging is not None:
                self._staging.copy()
        finally:
            self._staged.set()

    def _retain(self, folder: Path) -> None:
        in_use = set().union(*(delivery.in_use for delivery in self._deliveries))
        step = checkpoint_step(folder)
        apply_retention(self.run, self.recipe.save_total_limit, self.recipe.milestones, step, in_use)

    def _before_optimizer_step(self, *_: Any) -> None:
        if not self._staged.is_set():
            begun = time.perf_counter()
            self._staged.wait()
            self._stall += time.perf_counter() - begun

    def _make_deliveries(self) -> list[Delivery]:
        recipe, deliveries = self.recipe, []
        if recipe.save_copy_dir:
            copy = partial(
                copy_checkpoint,
                copy_dir=Path(recipe.save_copy_dir),
                keep=recipe.save_total_limit,
                milestones=recipe.milestones,
            )
            deliveries.append(Delivery("copy", copy))
        if recipe.push_to_hub:
            upload = partial(upload_checkpoint, repository=recipe.hub_model_id, private=recipe.hub_private_repo)
            deliveries.append(Delivery("upload", upload))
        return deliveries
