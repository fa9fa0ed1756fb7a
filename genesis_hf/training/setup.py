"""What stands before the first step: the model, its optimizers, and the checkpoint to go on from."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from genesis_hf.attention import DOCUMENTS
from genesis_hf.checkpoint.folders import checkpoint_step, complete_checkpoints, find_checkpoint, read_trainer_state
from genesis_hf.checkpoint.manifest import newest_good_checkpoint, verify_checkpoint
from genesis_hf.config import PretrainRecipe, nearest
from genesis_hf.errors import UserError
from genesis_hf.losses import liger_cross_entropy, require_liger
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM, model_config
from genesis_hf.processes import is_main
from genesis_hf.recompute import set_recompute
from genesis_hf.training.distributed import checkpoint_as_dtensors
from genesis_hf.training.optim import make_optimizers
from genesis_hf.training.precision import convert_to_fp8, require_fp8


def make_model(
    config: GenesisConfig, recipe: PretrainRecipe, accelerator: Accelerator
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """The model with fp32 weights, and its optimizers, placed and sharded as the launch says.

    Raises:
        UserError: a setting of memory or speed that this machine can't follow.
    """
    model = set_up_blocks(config, recipe, accelerator.device)
    if recipe.fp8 and not recipe.torch_compile:
        accelerator.print("fp8 without torch_compile is slower than bf16: casting and scaling are kernels of their own")
    optimizers = make_optimizers(model, recipe)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    checkpoint_as_dtensors(model, accelerator)
    wrong = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if wrong:
        raise RuntimeError(f"master weights must be float32, found {', '.join(sorted(wrong))}")
    return model, list(optimizers)


def set_up_blocks(config: GenesisConfig, recipe: PretrainRecipe, device: torch.device) -> GenesisForCausalLM:
    """The model on the CPU, its blocks as the recipe's settings of memory and speed say, for `device`.

    Raises:
        UserError: one of them that can't be had there.
    """
    if recipe.loss_implementation == "liger":
        require_liger(device)
    if recipe.fp8:
        require_fp8(device)
    if recipe.torch_compile:
        require_compiler(device)
    model = with_attention(config, recipe.attn_implementation, device)
    if recipe.loss_implementation == "liger":
        model.lm_head.summed_loss = liger_cross_entropy
    if recipe.fp8:
        convert_to_fp8(model)
    set_recompute(model, recipe.recompute)
    if recipe.torch_compile:
        for layer in model.model.layers:
            layer.compile(dynamic=False)  # batches come in few shapes; kernels for any shape would be slower
    return model


def with_attention(config: GenesisConfig, name: str | None, device: torch.device) -> GenesisForCausalLM:
    """A model that computes attention by this implementation; None: `documents` on a CPU, else transformers' choice."""
    if name == "flex_attention" and device.type == "cpu":
        raise UserError("attn_implementation: flex_attention has no backward pass on a CPU; leave the key out")
    config._attn_implementation = name or (DOCUMENTS if device.type == "cpu" else None)
    if name is None:
        return GenesisForCausalLM(config)
    try:
        return GenesisForCausalLM(config)
    except (ImportError, ValueError) as error:  # the one for a missing package, the other for a name nobody knows
        known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        reason = "" if isinstance(error, ValueError) else f" can't be used ({' '.join(str(error).split())})"
        hint = nearest(name, known) if not reason else ""
        raise UserError(
            f"attn_implementation: {name}{reason or ' is not known'}{hint}; known are {', '.join(sorted(known))}"
        ) from None


def require_compiler(device: torch.device) -> None:
    """Compile something small; raise `UserError` where that fails, for want of a C++ compiler mostly."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # inductor, Triton and the compiler each raise their own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"torch_compile doesn't work on this machine: {reason}; install a C++ compiler and Python's headers "
            "(Debian: apt install g++ python3-dev), or set torch_compile: false"
        ) from None


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
        folder = newest_good_checkpoint(recipe.output_dir, recipe.save_copy_dir)
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
    newest = next(iter(complete_checkpoints(recipe.output_dir)), None)
    if newest is not None and checkpoint_step(newest) > read_trainer_state(folder)["step"] and is_main():
        print(f"WARNING: {newest} is newer than {folder}; until it is saved over, `auto` would take it")
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
