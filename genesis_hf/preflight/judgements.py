"""What a trial's figures mean for the whole run."""

import statistics
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_folder, complete_checkpoints
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.config import PretrainRecipe
from genesis_hf.files import read_json
from genesis_hf.preflight.commands import Ended
from genesis_hf.preflight.trial import Records, Trial
from genesis_hf.preflight.verdicts import Verdict, size


def step_seconds(records: Records, tokens_per_step: int) -> float | None:
    """Median seconds of an optimizer step, the first tenth left out: it holds compilation and warming caches."""
    speeds = [record["tokens_per_second"] for _, record in sorted(records.items())]
    speeds = speeds[max(1, len(speeds) // 10) :]
    return tokens_per_step / statistics.median(speeds) if speeds else None


def judge_training(trial: Trial, ended: Ended, records: Records) -> Verdict:
    """Whether the recipe's own data, model and shape train to the end of the trial."""
    if ended.wrong:
        mend = smaller_micro_batch(trial) or f"as it says; all of its output: {trial.scratch / 'training.log'}"
        return Verdict("training", "wrong", ended.wrong, mend)
    reached = max(records, default=trial.first)
    if reached < trial.last:
        mend = "more text, or when_dry: repeat"
        return Verdict("training", "wrong", f"the data ended after step {reached:,} of {trial.last:,}", mend)
    first, last = records[min(records)]["loss"], records[reached]["loss"]
    figure = f"{trial.steps} steps in {ended.seconds:,.0f} s, start included; loss {first:.3f} → {last:.3f}"
    skipped = records[reached].get("skipped_steps", 0)
    values = {"steps": trial.steps, "first_loss": first, "last_loss": last, "skipped_steps": skipped}
    if skipped:
        mend = "a lower learning_rate or a longer warmup_steps; look at the data of these steps"
        return Verdict("training", "slow", f"{figure}; {skipped} steps skipped, not finite or spikes", mend, values)
    return Verdict("training", "ok", figure, "", values)


def smaller_micro_batch(trial: Trial) -> str:
    """The mend where memory ran out and training found what fits; "" where it did not run out."""
    rows = read_json(trial.run / "micro_batch.json").get("per_device_train_batch_size")
    return f"per_device_train_batch_size: {rows}, and as many more gradient_accumulation_steps" if rows else ""


def judge_memory(trial: Trial, records: Records, found: dict[str, Any]) -> Verdict:
    """Peak memory at the real shape, of the card or of the computer."""
    total = min(process["memory_bytes"] for process in found["processes"])
    on_card = found["processes"][0]["device"] != "cpu"
    peak = max(record["memory_gib"] for record in records.values()) * 2**30
    peak *= 1 if on_card else found["num_processes"]
    figure = f"{size(peak)} at most, {peak / total:.0%} of {size(total)}"
    values = {"peak_bytes": int(peak), "total_bytes": total}
    if mend := smaller_micro_batch(trial):
        return Verdict("memory", "slow", f"ran out with the recipe's rows; with fewer, {figure}", mend, values)
    if peak <= 0.92 * total:
        return Verdict("memory", "ok", figure, "", values)
    mend = "a smaller per_device_train_batch_size, or gradient_checkpointing: full; fragments need room too"
    return Verdict("memory", "slow", figure, mend, values)


def judge_speed(trial: Trial, records: Records, seconds: float, tokens_per_step: int) -> Verdict:
    """Tokens a second, use of the card, and how long the whole schedule takes at this speed."""
    left = trial.recipe.last_step - trial.first
    days = left * seconds / 86400
    span = f"{days:,.1f} days" if days >= 1 else f"{24 * days:,.1f} hours"
    known = [record["mfu"] for record in records.values() if record["mfu"] is not None]
    mfu = statistics.median(known) if known else None
    figure = (
        f"{tokens_per_step / seconds:,.0f} tokens/s, {seconds:.2f} s a step, MFU "
        f"{'unknown' if mfu is None else f'{mfu:.0%}'}; {left:,} steps take {span}, evaluations apart"
    )
    values = {"tokens_per_second": tokens_per_step / seconds, "step_seconds": seconds, "mfu": mfu, "days": days}
    if mfu is None or mfu >= 0.25:
        return Verdict("speed", "ok", figure, "", values)
    mend = "a larger per_device_train_batch_size with fewer gradient_accumulation_steps, or torch_compile: true"
    return Verdict("speed", "slow", figure, mend, values)


def judge_data(records: Records) -> Verdict:
    """The share of the time in which training waited for rows."""
    share = statistics.fmean(record["data_wait_share"] for _, record in sorted(records.items())[1:])
    values = {"data_wait_share": share}
    if share <= 0.05:
        return Verdict("data", "ok", f"training waits for rows {share:.1%} of the time", "", values)
    mend = "more dataloader_num_workers, or tokens prepared before (scripts/prepare_data.py)"
    return Verdict("data", "slow", f"training waits for rows {share:.1%} of the time", mend, values)


def judge_stall(recipe: PretrainRecipe, records: Records, seconds: float) -> Verdict:
    """How long training stood still for a save, against the time between two of them; a twentieth is slow."""
    stall = sum(record.get("save_stall_seconds", 0.0) for record in records.values())
    interval = recipe.save_steps * seconds
    figure = f"training stood still for {stall:.2f} s, every {interval:,.0f} s"
    values = {"stall_seconds": stall, "interval_seconds": interval}
    if stall <= 0.05 * interval:
        return Verdict("save stall", "ok", figure, "", values)
    mend = "higher save_steps" if recipe.save_async else "save_async: true, or higher save_steps"
    return Verdict("save stall", "slow", figure, mend, values)


def judge_saves(check: str, trial: Trial, expected: list[int]) -> Verdict:
    """Whether exactly the checkpoints of these steps stand, newest first, each whole, and `latest` names the newest."""
    wanted = [checkpoint_folder(trial.run, step) for step in expected]
    standing = complete_checkpoints(trial.run)
    mend = f"look at {trial.run / 'checkpoints'} and its disk"
    if standing != wanted:
        names = ", ".join(folder.name for folder in standing) or "none"
        return Verdict(check, "wrong", f"complete checkpoints: {names}; expected {names_of(wanted)}", mend)
    problems = [problem for folder in wanted for problem in verify_checkpoint(folder)]
    if problems:
        return Verdict(check, "wrong", problems[0], mend)
    latest = trial.run / "checkpoints" / "latest"
    if not latest.is_file() or latest.read_text(encoding="utf-8").strip() != wanted[0].name:
        return Verdict(check, "wrong", f"{latest} does not name {wanted[0].name}", mend)
    stored = sum(path.stat().st_size for path in wanted[0].rglob("*") if path.is_file())
    figure = f"{names_of(wanted)}: {size(stored)} each, every file as its manifest says"
    return Verdict(check, "ok", figure, "", {"checkpoint_bytes": stored})


def names_of(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def judge_resume(trial: Trial, ended: Ended, before: Records, after: Records, on_card: bool) -> Verdict:
    """Whether a new process trained the last steps as the first one did.

    On the CPU each number must be the same to the last bit. On a card, kernels may add in another order from run to
    run: the first loss, which is a forward pass alone, may move by 1e-6, the ones after it by 1e-3 of their size.
    """
    if ended.wrong:
        return Verdict("resume", "wrong", ended.wrong, f"as it says; all of its output: {trial.scratch / 'resume.log'}")
    steps = range(trial.saved + 1, trial.last + 1)
    lacking = [step for step in steps if step not in before or step not in after]
    if lacking:
        return Verdict("resume", "wrong", f"step {lacking[0]:,} was not trained again", "look at its resume.log")
    pairs = {step: (numbers(before[step]), numbers(after[step])) for step in steps}
    moved = {step: abs(one[0] - other[0]) / abs(one[0]) for step, (one, other) in pairs.items()}
    worst = max(moved, key=moved.get)
    values = {"steps": len(steps), "largest_difference": moved[worst]}
    if all(one == other for one, other in pairs.values()):
        figure = f"{len(steps)} steps in a new process: losses and gradient norms identical to the last bit"
        return Verdict("resume", "ok", figure, "", values)
    if on_card and moved[steps[0]] <= 1e-6 and moved[worst] <= 1e-3:
        figure = f"{len(steps)} steps in a new process: first loss the same, the others within {moved[worst]:.1g}"
        return Verdict("resume", "ok", figure, "", values)
    step = next(step for step, (one, other) in pairs.items() if one != other)
    (loss, norm), (loss_again, norm_again) = pairs[step]
    figure = (
        f"step {step:,}: loss {loss:.6f} and gradient norm {norm:.6f}, but {loss_again:.6f} and {norm_again:.6f} in a "
        "new process from the checkpoint"
    )
    mend = "don't start a long run: install the versions of constraints.txt and try again"
    return Verdict("resume", "wrong", figure, mend, values)


def numbers(record: dict[str, Any]) -> tuple[float, float]:
    return record["loss"], record["grad_norm"]


def judge_export(trial: Trial, ended: Ended) -> Verdict:
    """Whether the exported folder computes what the checkpoint's model computes."""
    if ended.wrong:
        return Verdict("export", "wrong", ended.wrong, f"as it says; all of its output: {trial.scratch / 'export.log'}")
    figures = read_json(trial.scratch / "export" / "parity.json").get("formats_compared", {}).get("llama")
    if not figures or not figures.get("agrees"):
        return Verdict("export", "wrong", "no proof that it matches", f"look at {trial.scratch / 'export.log'}")
    figure = (
        f"read back in a fresh process: logits differ by at most {figures['max_logit_difference']:.2g}, "
        f"top-1 agreement {figures['top1_agreement']:.2%}"
    )
    return Verdict("export", "ok", figure, "", {"max_logit_difference": figures["max_logit_difference"]})


def tokens_per_step(recipe: PretrainRecipe, micro_batches: int, num_processes: int) -> int:
    """Tokens of an optimizer step over all processes; `micro_batches` are one process's."""
    return recipe.per_device_train_batch_size * micro_batches * num_processes * recipe.sequence_length
