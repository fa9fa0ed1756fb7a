"""Pretraining: one loop, read top to bottom."""

import gc
import math
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from genesis_hf.checkpoint.checkpointer import Checkpointer
from genesis_hf.checkpoint.folders import read_trainer_state
from genesis_hf.checkpoint.restore import restore_checkpoint
from genesis_hf.config import PretrainRecipe, recipe_yaml, write_text
from genesis_hf.data.bad_records import BadRecordLog
from genesis_hf.data.prefetch import Prefetcher
from genesis_hf.data.stream import PackedStream
from genesis_hf.errors import UserError
from genesis_hf.modeling import parameter_count
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.distributed import collective_timeout, make_accelerator, refuse_unshared_folder
from genesis_hf.training.energy import open_meter
from genesis_hf.training.guard import StepGuard
from genesis_hf.training.heldout import HeldOut, hashed_out_sources
from genesis_hf.training.metrics import MetricsWriter, Throughput
from genesis_hf.training.micro_batch import MicroBatch
from genesis_hf.training.plan import describe, packing_losses, passes, shares
from genesis_hf.training.proof import probe, prove_resume
from genesis_hf.training.rollback import Rollback
from genesis_hf.training.samples import Samples
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
from genesis_hf.training.step import backward, clear_gradients, update
from genesis_hf.training.trackers import Trackers
from genesis_hf.training.watchdog import Watchdog


def pretrain(recipe: PretrainRecipe) -> Path:
    """Train from the newest good checkpoint of `output_dir`, or from the start, to the schedule's end.

    Returns:
        the folder of the last checkpoint.

    Raises:
        UserError: data, tokenizer, model or checkpoint don't fit the recipe; losses stay not finite; no room for a
            checkpoint.
    """
    # ------------------------------------------------------------------------------------------- set up
    accelerator = make_accelerator(recipe)
    accumulation = accumulation_steps(recipe, accelerator.num_processes)
    rows_per_step = recipe.per_device_train_batch_size * accumulation * accelerator.num_processes
    set_seed(recipe.seed)

    refuse_unshared_folder(recipe.output_dir, accelerator)
    tokenizer = load_tokenizer(recipe.tokenizer)
    config = fitted_config(recipe, tokenizer)
    folder = checkpoint_to_resume(recipe)
    if folder is not None and finished(folder, recipe):
        accelerator.print(f"{folder} is at step {read_trainer_state(folder)['step']}: nothing left to do")
        return folder

    # -------------------------------------------------------------------------- model, optimizer, resume
    model, optimizers = make_model(config, recipe, accelerator)
    guard = StepGuard(recipe, accelerator.device)
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
        guard.load_state_dict(state["guard"])

    # ---------------------------------------------------------------------------------------------- data
    stream = PackedStream.from_recipe(
        recipe,
        tokenizer,
        rows_per_step,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        state=state["stream"],
    )
    held_out = HeldOut(
        recipe.eval_sources + hashed_out_sources(recipe, tokenizer, accelerator),
        tokenizer,
        recipe.sequence_length,
        recipe.eval_rows,
        recipe.per_device_train_batch_size,
        accelerator,
    )
    samples = Samples(recipe, tokenizer, accelerator.device, accelerator.is_main_process)
    batches = Prefetcher(stream, recipe.dataloader_prefetch_factor if recipe.dataloader_num_workers else 0)
    item = batches.take()

    # ------------------------------------------------------------------------------------------- records
    output = Path(recipe.output_dir)
    if accelerator.is_main_process:
        write_text(output / "recipe.yaml", recipe_yaml(recipe))
        config.save_pretrained(output)
    metrics = MetricsWriter(output, accelerator.is_main_process, state["step"])
    bad_records = BadRecordLog(output, accelerator.is_main_process)
    trackers = Trackers(recipe, accelerator)
    parameters = parameter_count(config)
    throughput = Throughput(config, recipe.sequence_length, rows_per_step, parameters, accelerator.num_processes)
    meter = open_meter(accelerator.device)
    accelerator.print(describe(recipe, config, parameters, accelerator.num_processes))
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

    def note(event: str, line: str) -> None:
        metrics.event(state["step"], event, line)
        say(line)

    # ------------------------------------------------------------------------------------- just before it
    for difference in stream.accepted:
        note("data change", f"accepted: {difference}")
    micro_batch = MicroBatch(recipe)
    if folder is not None:
        proof = prove_resume(folder, state, model, item and item[0], micro_batch.size, accelerator)
        note("resumed", f"resumed from {folder} (step {state['step']:,}, {state['tokens_seen']:,} tokens): {proof}")
    checkpoints = Checkpointer(recipe, model, optimizers, tokenizer)
    rollback = Rollback(recipe, model, optimizers, guard)
    watchdog = Watchdog(output, accelerator.process_index, recipe.hang_minutes)
    last_step = min(recipe.last_step, recipe.stop_at_step or recipe.last_step)
    counts = guard.read()
    model.train()
    gc.collect()
    gc.freeze()  # what stands by now stays: no collection during the run walks it
    throughput.start(state["step"])
    saved_at, postponed = time.monotonic(), False

    # -------------------------------------------------------------------------------------------- train
    with StopSignal(collective_timeout(recipe)) as stop, ExitStack() as at_the_end, watchdog:
        at_the_end.callback(lambda: checkpoints.close(hurry=stop.received is not None))
        at_the_end.callback(progress.close)
        while state["step"] < last_step and item is not None:
            batch, stream_state = item
            step = state["step"] + 1
            beat = partial(watchdog.beat, step)
            rate = set_learning_rate(optimizers, step, recipe)
            try:
                loss = backward(model, batch, micro_batch.size, accelerator, partial(beat, "training"))
            except torch.OutOfMemoryError:
                clear_gradients(optimizers)
                note("out of memory", micro_batch.halve(len(batch.input_ids), accelerator.num_processes))
                continue
            grad_norm = update(model, optimizers, loss, recipe, accelerator, guard)
            for name in newly_repeated(state["stream"], stream_state):
                state["repeated_since"][name] = step
                note(
                    "repeats", f"step {step:,}: source {name} repeats; documents of it come a second time from here on"
                )
            state.update(step=step, tokens_seen=sum(stream_state["tokens"].values()), stream=stream_state)
            progress.update()

            with throughput.waiting():
                item = batches.take()
            for line in bad_records.write(stream.bad_records):
                note("bad record", line)

            overdue = recipe.save_minutes is not None and time.monotonic() - saved_at > 60 * recipe.save_minutes
            leaving, overdue = stop.agreed(item is None or checkpoints.failed is not None, overdue)
            ending = leaving or step == last_step
            saving = ending or overdue or postponed or step % recipe.save_steps == 0 or step in recipe.milestones
            evaluating = held_out.due(step, recipe)

            # once in a while: held-out text, and continuations of the prompts
            if evaluating:
                state["held_out"] = held_out.evaluate(model, partial(beat, "evaluating"))
                bits = ", ".join(f"{name} {r['bits_per_byte']:.3f}" for name, r in state["held_out"].items())
                say(f"step {step:,}: held-out bits per byte {bits}")
            if samples.due(step, evaluating):
                for line in samples.write(model, step, partial(beat, "sampling")):
                    say(f"step {step:,}: {line}")

            # once in a while: numbers
            if saving or evaluating or step % recipe.logging_steps == 0:
                state["loss"], norm = torch.stack([loss, grad_norm.to(loss)]).tolist()
                earlier, counts = counts, guard.read()
                record = {
                    "step": step,
                    "loss": state["loss"],
                    "grad_norm": norm,
                    "learning_rate": rate,
                    "tokens_seen": state["tokens_seen"],
                    **throughput.read(step),
                    "energy_joules": meter.read(),
                    "save_stall_seconds": round(checkpoints.take_stall(), 3),
                    "skipped_steps": counts["skipped"],
                    "spikes": counts["spikes"],
                    "mixture": shares(stream_state["tokens"]),
                    "repeated_since": state["repeated_since"],
                    "records": stream_state["records"],
                    **({"held_out": state["held_out"]} if evaluating else {}),
                }
                metrics.write(record)
                trackers.log(record)
                speed = record["tokens_per_second"]
                progress.set_postfix(loss=f"{state['loss']:.3f}", tok_s=f"{speed:,.0f}", lr=f"{rate:.1e}")

                if counts["skipped"] > earlier["skipped"]:
                    note("skipped", guard.describe(step, earlier, counts))
                if counts["not_finite"] >= recipe.max_skipped_steps:
                    raise UserError(
                        f"step {step}: loss or gradient not finite in {counts['not_finite']} steps in a row "
                        f"(max_skipped_steps); the run goes on from {folder or 'its start'}. Lower learning_rate, or "
                        "look at the data of these steps"
                    )
                if recipe.spike_action == "rollback" and counts["spikes"] > earlier["spikes"] and not ending:
                    checkpoints.wait()
                    state, line = rollback.to_newest(state)
                    note("rollback", line)
                    metrics.forget_after(state["step"])
                    progress.n, counts = state["step"], guard.read()
                    throughput.start(state["step"])
                    continue

            # once in a while: a checkpoint; of a model that is sound, or a step later
            if saving:
                beat("saving")
                state["probe"] = probe(model, item and item[0], batch, micro_batch.size, accelerator)
                state.update(guard=guard.state_dict(), optimizer_steps=step - counts["skipped"])
                postponed = not all(map(math.isfinite, (state["loss"], norm, state["probe"]["loss"])))
                if not postponed:
                    folder = checkpoints.save(state)
                    saved_at = time.monotonic()
                elif ending:
                    raise UserError(
                        f"step {step}: loss {state['loss']}, gradient norm {norm}, loss on further text "
                        f"{state['probe']['loss']}: such a model is not saved; the run goes on from "
                        f"{folder or 'its start'}. Lower learning_rate, or look at the data of this step"
                    )
                else:
                    note("not saved", f"step {step:,}: not saved yet, for a loss or gradient is not finite")
            if leaving:
                break
    gc.unfreeze()
    batches.close()
    trackers.close()
    if batches.error is not None and state["step"] < last_step:
        raise UserError(
            f"{batches.error}. The run stopped after step {state['step']:,}; {folder or 'nothing was to be saved'}"
        )

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
