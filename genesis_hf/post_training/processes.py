"""TRL's trainers as `accelerate launch` started them: one process, DDP, or FSDP; their checkpoints as transactions.

A checkpoint is written as `.checkpoint-N.partial` and renamed when every process has written its part, so that a
`checkpoint-N` is complete. It holds what Trainer writes, and by process `progress_rank_0.pt`, what has added up since
the last logged step. Under FSDP the shards lie in `state/`, as pretraining writes them: Trainer's own resume of FSDP1
went on to other losses.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import set_state_dict
from transformers.trainer_callback import ExportableState

from genesis_hf.checkpoint.agreement import SaveFailed, together
from genesis_hf.checkpoint.folders import delete_checkpoint
from genesis_hf.checkpoint.restore import load, refuse_incomplete_optimizer, refuse_missing_state
from genesis_hf.checkpoint.state import inner, quiet_checkpoint_warnings, training_tensors
from genesis_hf.errors import UserError
from genesis_hf.files import read_json, sync_folder
from genesis_hf.processes import barrier, is_main, rank
from genesis_hf.training.distributed import (
    checkpoint_as_dtensors,
    fsdp_plugin,
    launched_mesh,
    launched_with_fsdp,
    refuse_other_topology,
    refuse_unfit_mesh,
)

SHARDS = "state"
"""Folder of a checkpoint with the shards of model and optimizer."""


class LaunchedTrainer:
    """Mixed into a Trainer, left of it: runs what the launch asked for, and saves so that a resume is exact."""

    accelerator: Accelerator
    _shards_are_dtensors = False

    # -----------------------------------------------------------------------------------------------------
    # The launch
    # -----------------------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer, and FSDP on CPU too; raises `UserError` where what came of it is not what was launched."""
        launched, mesh = int(os.environ.get("WORLD_SIZE", "1")), launched_mesh()
        refuse_unfit_mesh(mesh, launched)
        if self.args.use_cpu and launched > 1 and launched_with_fsdp():
            # Accelerate makes FSDP of GPU-like backends only; see training.distributed.force_fsdp_on_cpu.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            PartialState().device = torch.device("cpu")
        super().create_accelerator_and_postprocess()
        refuse_other_topology(self.accelerator, launched, mesh)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        if launched_with_fsdp():
            arguments["fsdp_plugin"] = fsdp_plugin(self.args.mixed_precision, self.args.use_cpu)
        return arguments

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: the finished model is published by `phase.finish`, and a run doesn't need the network before."""

    def refuse_other_precision(self) -> None:
        """Raise unless the weights that are trained are fp32, whatever is computed in."""
        wrong = {str(p.dtype) for p in self.model.parameters() if p.requires_grad} - {"torch.float32"}
        if wrong:
            raise RuntimeError(f"master weights must be float32, found {', '.join(sorted(wrong))}")

    # -----------------------------------------------------------------------------------------------------
    # Checkpoints
    # -----------------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What this process has added up and Trainer's checkpoints leave out; subclasses add their own."""
        return {
            "loss": self._tr_loss.detach().cpu(),
            "logged_step": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar,
        }

    def set_progress(self, progress: dict[str, Any]) -> None:
        """What `progress` gave when the checkpoint was written."""
        self._tr_loss = progress["loss"].to(self.args.device)
        self._globalstep_last_logged = progress["logged_step"]
        self._total_loss_scalar = progress["total_loss"]

    def restore_progress(self, checkpoint: str | Path) -> None:
        """Called when training begins, after Trainer has set these to zero."""
        self.set_progress(torch.load(Path(checkpoint) / f"progress_rank_{rank()}.pt", weights_only=True))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
        wrong = sorted({*load_result.missing_keys, *load_result.unexpected_keys} - tied)
        if wrong:
            raise UserError(f"the checkpoint is of another model: {', '.join(wrong[:3])} is missing or too much")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Every process calls it at the same step; raises `UserError` on all of them if one can't write."""
        self.store_flos()
        run, step = Path(self.args.output_dir), self.state.global_step
        folder = run / f"checkpoint-{step}"
        partial = run / f".{folder.name}.partial"
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(folder)
        try:
            together(lambda: make_empty(partial) if is_main() else None, None)
            together(lambda: self._write_parts(partial), None)
            together(lambda: self._finish_checkpoint(partial, folder) if is_main() else None, None)
        except SaveFailed as error:
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
            barrier()
            raise UserError(f"{folder} could not be written: {error}") from None

    def _write_parts(self, partial: Path) -> None:
        self.save_model(str(partial), _internal_call=True)
        if self.args.save_only_model:
            return
        if self.is_fsdp_enabled:
            dcp.save(self._sharded_tensors(), checkpoint_id=partial / SHARDS)
            if is_main():
                torch.save(self.lr_scheduler.state_dict(), partial / "scheduler.pt")
        else:
            self._save_optimizer_and_scheduler(str(partial))
        self._save_scaler(str(partial))
        self._save_rng_state(str(partial))
        torch.save(self.progress(), partial / f"progress_rank_{rank()}.pt")

    def _sharded_tensors(self) -> dict[str, Any]:
        """This process's shards of model and optimizer, by names that don't depend on the wrapper."""
        quiet_checkpoint_warnings()
        if not self._shards_are_dtensors:
            checkpoint_as_dtensors(self.model, self.accelerator)
            self._shards_are_dtensors = True
        return training_tensors(self.model, [self.optimizer])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:  # else it comes with the optimizer
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder, state = Path(checkpoint), self._sharded_tensors()
        refuse_missing_state(folder, state)
        load(state, folder)
        set_state_dict(
            self.model,
            [inner(self.optimizer)],
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        refuse_incomplete_optimizer(folder, inner(self.optimizer), self.state.global_step)
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _finish_checkpoint(self, partial: Path, folder: Path) -> None:
        for part in [c for c in (*self.callback_handler.callbacks, self.control) if isinstance(c, ExportableState)]:
            self.state.stateful_callbacks[type(part).__name__] = part.state()
        self.state.save_to_json(str(partial / "trainer_state.json"))
        put_in_place(partial, folder)
        keep = self.args.save_total_limit
        for old in complete_checkpoints(folder.parent)[keep:] if keep else []:
            if str(old) != self.state.best_model_checkpoint:
                delete_checkpoint(old)


def make_empty(folder: Path) -> None:
    """A folder with nothing in it, whatever an interrupted save has left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def put_in_place(partial: Path, folder: Path) -> None:
    """Give a complete folder its name, in place of another one; on the disk when this returns."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether everything that a resume needs is there."""
    state = f"{SHARDS}/.metadata" if (checkpoint / SHARDS).exists() else "optimizer*"
    parts = (state, "scheduler.pt", "rng_state*", "progress_rank_*")
    return "global_step" in read_json(checkpoint / "trainer_state.json") and all(
        any(checkpoint.glob(part)) for part in parts
    )


def complete_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    found = [path for path in run.glob("checkpoint-*") if is_complete(path)]
    return sorted(found, key=lambda path: read_json(path / "trainer_state.json")["global_step"], reverse=True)


def clear_leftovers(run: Path) -> None:
    """Delete what interrupted saves and deletions left; take back a folder that was about to be replaced."""
    for replaced in run.glob(".*.replaced"):
        folder = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
        if not folder.exists():
            os.replace(replaced, folder)
    for pattern in (".*.partial", ".*.deleted", ".*.replaced"):
        for leftover in run.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_other_launch(checkpoint: Path) -> None:
    """Raise `UserError` unless as many processes, sharded or not, wrote the checkpoint as now go on from it."""
    wrote, now = len(list(checkpoint.glob("progress_rank_*.pt"))), dist.get_world_size() if dist.is_initialized() else 1
    sharded, shards = (checkpoint / SHARDS).exists(), launched_with_fsdp() and now > 1
    if wrote != now or sharded != shards:
        before, after = (f"{n} processes{' under FSDP' * s}" for n, s in ((wrote, sharded), (now, shards)))
        raise UserError(
            f"{checkpoint} was written by {before} and this launch has {after}: launch as before, or name "
            "another output_dir"
        )
