"""Pretraining: one loop, read top to bottom."""

import gc
import json
import math
import time
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from tqdm.auto import tqdm

from genesis_hf.checkpoint.folders import apply_retention, checkpoint_folder, read_trainer_state
from genesis_hf.checkpoint.restore import restore_checkpoint
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.config import PretrainRecipe, recipe_dict, recipe_yaml, write_text
from genesis_hf.data.bad_records import BadRecordLog
from genesis_hf.data.prefetch import Prefetcher
from genesis_hf.data.stream import PackedStream
from genesis_hf.errors import UserError
from genesis_hf.modeling import parameter_count
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.distributed import make_accelerator
from genesis_hf.training.heldout import HeldOut, hashed_out_sources
from genesis_hf.training.metrics import MetricsWriter, flops_per_token, memory_gib, peak_flops
from genesis_hf.training.plan import describe, packing_losses, passes, shares
from genesis_hf.training.schedule import set_learning_rate
from genesis_hf.training.setup import (
    accumulation_steps,
    checkpoint_to_resume,
    finished,
    fitted_config,
    make_model,
    refuse_other_batch,
)
from genesis_hf.training.signals import StopSignal
from genesis_hf.training.step import read_numbers, train_step


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


def newly_repeated(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """Sources whose second pass began between two states of the stream."""
    earlier = before["epochs"] if before else {}
    return [name for name, epoch in now["epochs"].items() if epoch > 0 and earlier.get(name, 0) == 0]


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
