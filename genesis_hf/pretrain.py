"""Pretraining: one loop, read top to bottom."""

import gc
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.checkpoint import (
    apply_retention,
    checkpoint_folder,
    find_checkpoint,
    newest_good_checkpoint,
    read_trainer_state,
    restore_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from genesis_hf.config import PretrainRecipe, recipe_dict, recipe_yaml, write_text
from genesis_hf.data.bad_records import BadRecordLog
from genesis_hf.data.prefetch import Prefetcher
from genesis_hf.data.stream import PackedStream, StepBatch
from genesis_hf.distributed import make_accelerator, use_bf16
from genesis_hf.errors import UserError
from genesis_hf.guard import StopSignal
from genesis_hf.heldout import HeldOut, hashed_out_sources
from genesis_hf.metrics import MetricsWriter, flops_per_token, memory_gib, peak_flops
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM, model_config, parameter_count
from genesis_hf.optim import learning_rate, make_optimizers, schedule_plot, set_learning_rate
from genesis_hf.tokenizer import load_tokenizer


def pretrain(recipe: PretrainRecipe) -> Path:
    """Train from the newest good checkpoint of `output_dir`, or from the start, to the schedule's end.

    Returns:
        the folder of the last checkpoint.

    Raises:
        UserError: data, tokenizer, model or checkpoint don't fit the recipe; the loss is no longer finite.
    """
    # ------------------------------------------------------------------------------------------- set up
    accelerator = make_accelerator(recipe)
    accumulation = accumulation_steps(recipe, accelerator.num_processes)
    rows_per_step = recipe.per_device_train_batch_size * accumulation * accelerator.num_processes
    tokens_per_step = rows_per_step * recipe.sequence_length
    set_seed(recipe.seed)

    tokenizer = load_tokenizer(recipe.tokenizer)
    config = fitted_config(recipe, tokenizer)
    folder = checkpoint_to_resume(recipe)
    if folder is not None and finished(folder, recipe):
        accelerator.print(f"{folder} is at step {read_trainer_state(folder)['step']}: nothing left to do")
        return folder

    # -------------------------------------------------------------------------- model, optimizer, resume
    model, optimizers = make_model(config, recipe, accelerator)
    parameters = parameter_count(config)
    state: dict[str, Any] = {
        "step": 0,
        "tokens_seen": 0,
        "rows_per_step": rows_per_step,
        "stream": None,
        "repeated_since": {},  # by source, the step with the first document that came a second time
    }
    if folder is not None:
        state = restore_checkpoint(folder, model, optimizers)
        refuse_other_batch(state, rows_per_step)
        accelerator.print(f"resumed from {folder} (step {state['step']:,}, {state['tokens_seen']:,} tokens)")

    # ---------------------------------------------------------------------------------------------- data
    stream = PackedStream.from_recipe(
        recipe,
        tokenizer,
        rows_per_step,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        state=state["stream"],
    )
    for difference in stream.accepted:
        accelerator.print(f"accepted: {difference}")
    held_out = HeldOut(
        recipe.eval_sources + hashed_out_sources(recipe, tokenizer, accelerator),
        tokenizer,
        recipe.sequence_length,
        recipe.eval_rows,
        recipe.per_device_train_batch_size,
        accelerator,
    )

    # ------------------------------------------------------------------------------------------- records
    output = Path(recipe.output_dir)
    if accelerator.is_main_process:
        write_text(output / "recipe.yaml", recipe_yaml(recipe))
        config.save_pretrained(output)
    metrics = MetricsWriter(output, accelerator.is_main_process, state["step"])
    bad_records = BadRecordLog(output, accelerator.is_main_process)
    if recipe.report_to:
        accelerator.init_trackers("genesis_hf", config=flat(recipe_dict(recipe)))
    accelerator.print(describe(recipe, config, parameters, accelerator.num_processes))
    peak = peak_flops()
    flops = flops_per_token(config, recipe.sequence_length, parameters)

    milestones = recipe.milestones

    def save() -> None:
        nonlocal folder
        folder = checkpoint_folder(output, state["step"])
        save_checkpoint(folder, model, optimizers, state, recipe_yaml(recipe), tokenizer)
        apply_retention(output, recipe.save_total_limit, milestones)

    # -------------------------------------------------------------------------------------------- train
    last_step = min(recipe.last_step, recipe.stop_at_step or recipe.last_step)
    batches = Prefetcher(stream, recipe.dataloader_prefetch_factor if recipe.dataloader_num_workers else 0)
    progress = tqdm(
        total=recipe.last_step,
        initial=state["step"],
        desc="pretrain",
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=1.0,
        dynamic_ncols=True,
    )

    def say(line: str) -> None:
        if accelerator.is_main_process:
            progress.write(line)

    model.train()
    gc.collect()
    gc.freeze()  # what stands by now stays: no collection during the run walks it
    window_time, window_step, waited = time.perf_counter(), state["step"], 0.0
    saved_at = time.monotonic()
    item = batches.take()
    with StopSignal() as stop:
        while state["step"] < last_step and item is not None:
            batch, stream_state = item
            step = state["step"] + 1
            rate = set_learning_rate(optimizers, step, recipe)
            loss, grad_norm = train_step(model, optimizers, batch, recipe, accelerator)
            for name in newly_repeated(state["stream"], stream_state):
                state["repeated_since"][name] = step
                say(f"step {step:,}: source {name} repeats; documents of it come a second time from here on")
            state.update(step=step, tokens_seen=sum(stream_state["tokens"].values()), stream=stream_state)
            progress.update()

            asked = time.perf_counter()
            item = batches.take() if step < last_step else None
            waited += time.perf_counter() - asked
            for line in bad_records.write(stream.bad_records):
                say(line)

            overdue = recipe.save_minutes is not None and time.monotonic() - saved_at > 60 * recipe.save_minutes
            leaving, overdue = stop.agreed(item is None, overdue)
            saving = step % recipe.save_steps == 0 or step == last_step or step in milestones or leaving or overdue
            evaluating = held_out.due(step, recipe)

            # once in a while: numbers, and held-out text; before every save, for no checkpoint may hold a broken model
            if step % recipe.logging_steps == 0 or saving or evaluating:
                loss, grad_norm = read_numbers(accelerator, loss, grad_norm)
                if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                    raise UserError(
                        f"step {step}: loss {loss}, gradient norm {grad_norm}; the run stops and its checkpoints stay. "
                        "Lower learning_rate or look at the data of this step"
                    )
                state["loss"] = loss
                elapsed = time.perf_counter() - window_time
                speed = (step - window_step) * tokens_per_step / elapsed
                record = {
                    "step": step,
                    "loss": loss,
                    "grad_norm": grad_norm,
                    "learning_rate": rate,
                    "tokens_seen": state["tokens_seen"],
                    "tokens_per_second": round(speed, 1),
                    "mfu": speed * flops / (peak * accelerator.num_processes) if peak else None,
                    "memory_gib": round(memory_gib(), 3),
                    "data_wait_share": round(waited / elapsed, 4),
                    "mixture": shares(stream_state["tokens"]),
                    "repeated_since": state["repeated_since"],
                    "records": stream_state["records"],
                }
                progress.set_postfix(loss=f"{loss:.3f}", tok_s=f"{speed:,.0f}", lr=f"{rate:.1e}")
                if evaluating:
                    record["held_out"] = state["held_out"] = held_out.evaluate(model)
                    bits = ", ".join(f"{name} {r['bits_per_byte']:.3f}" for name, r in state["held_out"].items())
                    say(f"step {step:,}: held-out bits per byte {bits}")
                metrics.write(record)
                accelerator.log(flat(record), step=step)
                window_time, window_step, waited = time.perf_counter(), step, 0.0

            # once in a while: a checkpoint
            if saving:
                save()
                saved_at = time.monotonic()
            if leaving:
                break
    gc.unfreeze()
    progress.close()
    batches.close()
    if batches.error is not None:
        raise UserError(
            f"{batches.error}. The run stopped after step {state['step']:,}; {folder or 'nothing was to be saved'}"
        )
    if recipe.report_to:
        accelerator.end_training()

    # ---------------------------------------------------------------------------------------------- end
    if state["step"] >= recipe.last_step:
        accelerator.print(f"finished: {state['tokens_seen']:,} tokens; {folder}")
    elif item is None and stop.received is None and state["step"] < last_step:
        accelerator.print(
            f"the data has run dry after step {state['step']:,} of {recipe.last_step:,} (when_dry: {recipe.when_dry}); "
            f"{folder}"
        )
    else:
        accelerator.print(
            f"stopped at step {state['step']:,} of {recipe.last_step:,}; the same command goes on from {folder}"
        )
    accelerator.print(passes(state["stream"]))
    if recipe.packing == "best_fit":
        accelerator.print(packing_losses(state["stream"]["records"], recipe.sequence_length))
    return folder


def train_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: StepBatch,
    recipe: PretrainRecipe,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step over this process's micro-batches.

    Each micro-batch's loss is its sum over trained tokens divided by those of the whole step on all processes, so the
    gradient equals that of one large batch. Distributed wrappers average gradients over processes, which the factor
    `num_processes` undoes.

    Returns:
        this process's part of the step's mean loss, and the gradient norm before clipping; scalars on the device.
    """
    micro_batches = list(batch.micro_batches(recipe.per_device_train_batch_size))
    total = torch.zeros((), device=accelerator.device)
    for index, inputs in enumerate(micro_batches):
        inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in inputs.items()}
        last = index == len(micro_batches) - 1
        with torch.enable_grad() if last else accelerator.no_sync(model):
            loss = model(**inputs, num_items_in_batch=batch.num_items).loss
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    limit = recipe.max_grad_norm or float("inf")
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), limit)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def read_numbers(accelerator: Accelerator, loss: torch.Tensor, grad_norm: torch.Tensor) -> tuple[float, float]:
    """The step's loss summed over processes and its gradient norm: one reduction, one read from the device."""
    if hasattr(grad_norm, "full_tensor"):
        grad_norm = grad_norm.full_tensor()
    loss = accelerator.reduce(loss, "sum")
    loss_sum, norm = torch.stack([loss, grad_norm.to(loss)]).tolist()
    return loss_sum, norm


# ---------------------------------------------------------------------------------------------------------
# Before the first step
# ---------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------
# Words and numbers
# ---------------------------------------------------------------------------------------------------------


def describe(recipe: PretrainRecipe, config: GenesisConfig, parameters: int, num_processes: int) -> str:
    """A few lines about what the run will do."""
    accumulation = accumulation_steps(recipe, num_processes)
    batch = recipe.per_device_train_batch_size
    tokens = batch * accumulation * num_processes * recipe.sequence_length
    lines = [
        f"parameters        {parameters:,}",
        f"tokens per step   {tokens:,} ({batch} rows x {accumulation} micro-batches x {num_processes} processes x "
        f"{recipe.sequence_length} tokens)",
        f"total tokens      {tokens * recipe.last_step:,} ({recipe.last_step:,} steps, "
        f"{tokens * recipe.last_step / parameters:.1f} per parameter)",
        f"compute           {'bfloat16 over float32 weights' if use_bf16(recipe.bf16) else 'float32'}",
    ]
    return "\n".join(lines)


def plan(recipe: PretrainRecipe) -> str:
    """What `--dry_run true` prints: the plan and the learning rate at named steps; needs neither data nor a GPU."""
    config = model_config(recipe.model)
    processes = recipe.num_processes or 1
    weight = sum(source.weight for source in recipe.sources)
    sources = [f"  {source.name:40} {source.weight / weight:7.2%}" for source in recipe.sources]
    last = recipe.last_step
    named = {1, recipe.warmup_steps or 1, last // 4, last // 2, 3 * last // 4, last, *recipe.extended_at}
    named |= {end + recipe.warmup_steps for end in recipe.extended_at} | {recipe.anneal_at or last}
    rates = [f"  step {step:>9,}  {learning_rate(step, recipe):.3e}" for step in sorted(named - {0})]
    return "\n".join(
        [
            describe(recipe, config, parameter_count(config), processes),
            "sources, by their share of the tokens",
            *sources,
            f"learning rate     {recipe.lr_scheduler_type}",
            *rates,
            schedule_plot(recipe),
        ]
    )


def shares(tokens: dict[str, int]) -> dict[str, float]:
    """Realised share of each source in the tokens so far."""
    total = max(1, sum(tokens.values()))
    return {name: round(count / total, 5) for name, count in tokens.items()}


def newly_repeated(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """Sources whose second pass began between two states of the stream."""
    earlier = before["epochs"] if before else {}
    return [name for name, epoch in now["epochs"].items() if epoch > 0 and earlier.get(name, 0) == 0]


def passes(stream_state: dict[str, Any]) -> str:
    """Whether anything was trained on twice, by the stream's own account."""
    again = [f"{name} in pass {epoch + 1}" for name, epoch in stream_state["epochs"].items() if epoch]
    return f"repeated sources: {', '.join(again)}" if again else "no document of any source came twice"


def packing_losses(records: dict[str, dict[str, int]], sequence_length: int) -> str:
    """What best-fit packing cost: the share of padding in the rows, and of documents that no row holds whole."""
    total = {kind: sum(counts.get(kind, 0) for counts in records.values()) for kind in ("padding", "rows", "truncated")}
    packed = sum(counts.get("packed", 0) for counts in records.values())
    padding, truncated = total["padding"] / (total["rows"] * sequence_length), total["truncated"] / packed
    return f"best_fit: {padding:.2%} padding, {truncated:.2%} of the documents longer than a row"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under keys joined with `/`, the form that trackers take."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{key}/"))
        elif value is None or isinstance(value, (int, float, str, bool)):
            result[prefix + key] = value
        else:
            result[prefix + key] = json.dumps(value)
    return result
