"""What stands before the first step: the model, its optimizers, and the checkpoint to go on from."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint.folders import find_checkpoint, read_trainer_state
from genesis_hf.checkpoint.manifest import newest_good_checkpoint, verify_checkpoint
from genesis_hf.config import PretrainRecipe
from genesis_hf.errors import UserError
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM, model_config
from genesis_hf.training.optim import make_optimizers


def make_model(
    config: GenesisConfig, recipe: PretrainRecipe, accelerator: Accelerator
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """The model with fp32 weights, and its optimizers, placed and sharded as the launch says."""
    if recipe.attn_implementation:
        config._attn_implementation = recipe.attn_implementation
    model = GenesisForCausalLM(config)
    if recipe.gradient_checkpointing and accelerator.distributed_type != DistributedType.FSDP:  # FSDP does its own
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.torch_compile:
        for layer in model.model.layers:
            layer.compile()
    optimizers = make_optimizers(model, recipe)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    wrong = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if wrong:
        raise RuntimeError(f"master weights must be float32, found {', '.join(sorted(wrong))}")
    return model, list(optimizers)


def fitted_config(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast) -> GenesisConfig:
    """The model's configuration, with special tokens taken from the tokenizer.

    Raises:
        UserError: tokenizer or sequence length don't fit the model.
    """
    config = model_config(recipe.model, vocab_size=len(tokenizer))
    if not len(tokenizer) <= config.vocab_size < len(tokenizer) + 1024:
        raise UserError(
            f"tokenizer {recipe.tokenizer} has {len(tokenizer)} entries but model.vocab_size is {config.vocab_size}; "
            f"set model.vocab_size to {len(tokenizer)} (or a little above, as padding)"
        )
    if recipe.sequence_length > config.max_position_embeddings:
        raise UserError(
            f"sequence_length {recipe.sequence_length} exceeds model.max_position_embeddings "
            f"{config.max_position_embeddings}; raise the one or lower the other"
        )
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return config


def accumulation_steps(recipe: PretrainRecipe, num_processes: int) -> int:
    """Micro-batches a step on each process: the recipe's, scaled from the number of processes it is written for.

    Raises:
        UserError: tokens per step can't be kept on this number of processes.
    """
    written_for = recipe.num_processes or num_processes
    micro_batches = recipe.gradient_accumulation_steps * written_for
    if micro_batches % num_processes:
        raise UserError(
            f"{micro_batches} micro-batches a step can't be shared by {num_processes} processes evenly; change "
            "gradient_accumulation_steps or num_processes"
        )
    return micro_batches // num_processes


def checkpoint_to_resume(recipe: PretrainRecipe) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, verified; None to start.

    Raises:
        UserError: "none" over an existing run; a named checkpoint that is missing or damaged.
    """
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    if recipe.resume_from_checkpoint == "auto":
        folder = newest_good_checkpoint(recipe.output_dir)
        if folder is None and any(checkpoints.glob("step_*")):
            raise UserError(f"{checkpoints}: no checkpoint is undamaged; move the folder away to start afresh")
        return folder
    if recipe.resume_from_checkpoint == "none":
        if (
            any(Path(recipe.output_dir).glob("checkpoints/step_*"))
            or (Path(recipe.output_dir) / "metrics.jsonl").exists()
        ):
            raise UserError(
                f"{recipe.output_dir} holds a run already; choose another output_dir, or resume_from_checkpoint: auto"
            )
        return None
    folder = find_checkpoint(recipe.resume_from_checkpoint)
    problems = verify_checkpoint(folder)
    if problems:
        raise UserError(f"{folder} is damaged: {problems[0]}")
    return folder


def finished(folder: Path, recipe: PretrainRecipe) -> bool:
    return read_trainer_state(folder)["step"] >= min(recipe.last_step, recipe.stop_at_step or recipe.last_step)


def refuse_other_batch(state: dict[str, Any], rows_per_step: int) -> None:
    """Raise `UserError` when tokens per step changed: the schedule counts steps, so it would no longer hold."""
    if state["rows_per_step"] != rows_per_step:
        raise UserError(
            f"the checkpoint was trained with {state['rows_per_step']} rows a step and this launch has "
            f"{rows_per_step}; set num_processes to the number the run began with, or mend gradient_accumulation_steps"
        )
