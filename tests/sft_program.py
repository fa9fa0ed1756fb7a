"""What test_sft_processes.py launches: sft_program.py PRETRAINED BASE FOLDER.

SFT of a pretraining run under FSDP2, FSDP1 and DDP in turn, into FOLDER/fsdp2, fsdp1 and ddp; the last two are left in
their second epoch because one of the two processes was asked to, and gone on with. FOLDER/dropout and dropout-parts are
one run under FSDP2, in one piece and in two.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_sft import run

from genesis_hf.errors import UserError
from genesis_hf.post_training.run import RunCallback
from genesis_hf.processes import rank

TOPOLOGIES = {
    "fsdp1": {
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_SYNC_MODULE_STATES": "false",
    },
    "ddp": {"ACCELERATE_USE_FSDP": "false"},
}
"""What `accelerate launch` would set differently from fsdp2_2gpu.yaml."""

SETTINGS = {
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 8,
    "per_device_eval_batch_size": 3,
    "sample_steps": 11,
    "sample_num_examples": 3,
    "sample_max_new_tokens": 9,
}

on_step_end = RunCallback.on_step_end


def ask_one_process(self: RunCallback, args: Any, state: Any, control: Any, **keywords: Any) -> Any:
    """SIGTERM reaches one process only, in the middle of the second epoch."""
    if rank() == 1 and state.global_step == 16:
        os.kill(os.getpid(), signal.SIGTERM)
    return on_step_end(self, args, state, control, **keywords)


def main() -> None:
    pretrained, base, folder = map(Path, sys.argv[1:])
    settings = {**SETTINGS, "per_device_train_batch_size": 2, "sample_prompts": f"{base}/heldout.jsonl"}
    with pytest.raises(UserError, match="use_peft: adapters are small; launch with"):
        run(base, folder / "adapter", use_peft="true")
    run(base, folder / "fsdp2", model=pretrained, **settings)
    # Dropout draws from generators that a resume has to set where they stood, on each process its own.
    run(base, folder / "dropout", model=base / "dropout", **settings)
    leave_and_go_on(base, folder / "dropout-parts", model=base / "dropout", **settings)
    for name, environment in TOPOLOGIES.items():
        os.environ.update(environment)
        leave_and_go_on(base, folder / name, model=pretrained / "exports/step_000000002-float32", **settings)


def leave_and_go_on(base: Path, output_dir: Path, **settings: Any) -> None:
    """A run left because one of its processes was asked to, and the same command again."""
    RunCallback.on_step_end = ask_one_process
    assert run(base, output_dir, **settings) is None
    RunCallback.on_step_end = on_step_end
    run(base, output_dir, **settings)


if __name__ == "__main__":
    main()
