"""What was trained, with which settings, on which data, and what happened meanwhile."""

import datetime
import math
from collections.abc import Sequence
from typing import Any

from genesis_hf.lineage.differences import recipe_differences
from genesis_hf.report.curve import number
from genesis_hf.report.log import Log, mapping
from genesis_hf.report.material import Material, Training
from genesis_hf.report.tables import Rows, amount, count, duration, share, value_text

SETTINGS = (
    *("max_steps", "num_train_epochs", "sequence_length", "max_length", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_processes", "learning_rate", "min_learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "decay_steps", "extended_at", "anneal_at", "anneal_steps", "optim", "muon_learning_rate"),
    *("adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "fp8", "gradient_checkpointing"),
    *("packing", "when_dry", "max_epochs", "held_out_share", "chat_format", "beta", "loss_type", "length_normalized"),
    *("use_peft", "lora_r", "lora_alpha", "seed"),
)
"""Keys of a recipe that a reader wants to know, beside the model's."""

LONGEST_VALUE = 120

RECORDS = ("documents", "empty", "filtered", "held_out", "excluded", "bad")
"""What came of a source's records."""


# ---------------------------------------------------------------------------------------------------------
# In short
# ---------------------------------------------------------------------------------------------------------


def training_rows(material: Material) -> Rows:
    """A line a training: how far it came, and how its loss fell."""
    rows = [["run", "phase", "steps", "tokens", "first loss", "last loss", "tokens/s (median)", "state"]]
    for run in material.trainings:
        log = run.log
        steps = count(run.step) + (f" of {run.last_step:,}" if run.last_step and not run.finished else "")
        rows.append(
            [
                run.name,
                run.phase,
                steps,
                amount(run.tokens),
                loss_text(log.first.get("loss")),
                loss_text(log.last.get("loss")),
                count(log.speed),
                "finished" if run.finished else "not finished",
            ]
        )
    return rows


def loss_text(value: object) -> str:
    known = number(value)
    return "unknown" if known is None else f"{known:.3f}"


def state_words(run: Training) -> str | None:
    """What there is to know of a training that has not finished; None where it has."""
    if run.finished:
        return None
    if not run.log.lines:
        return f"{run.name}: no step has been logged; it was stopped before its first line, or has just begun."
    written = moment(number(run.log.last.get("time")) or run.written)
    schedule = f" of {run.last_step:,}" if run.last_step else ""
    return (
        f"{run.name} has not finished: step {count(run.step)}{schedule}, last line written "
        f"{written} UTC. It goes on, was stopped, or has crashed; its files don't tell which."
    )


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


def setting_rows(runs: Sequence[Training]) -> Rows:
    """The settings of the runs of a phase, a column each."""
    rows = [["setting", *(run.name for run in runs)]]
    models = [run.recipe.get("model") for run in runs]
    for key in dict.fromkeys(key for model in models if isinstance(model, dict) for key in model):
        cells = [model.get(key) if isinstance(model, dict) else None for model in models]
        rows.append([f"model.{key}", *map(setting_text, cells)])
    if any(isinstance(model, str) for model in models):
        rows.append(["model", *(setting_text(model) if isinstance(model, str) else "–" for model in models)])
    for key in SETTINGS:
        cells = [run.recipe.get(key) for run in runs]
        if key.startswith("lora_") and not any(run.recipe.get("use_peft") for run in runs):
            continue
        if any(cell is not None and cell != [] for cell in cells):
            rows.append([key, *map(setting_text, cells)])
    return rows


def setting_differences(runs: Sequence[Training]) -> Rows:
    """Keys in which runs of a phase differ from the first, of all that their recipes hold."""
    known = [run for run in runs if run.recipe]
    rows = [["setting", *(run.name for run in known)]]
    if len(known) < 2:
        return rows
    found = [recipe_differences(known[0].recipe, run.recipe) for run in known[1:]]
    for key in dict.fromkeys(key for differences in found for key in differences):
        first = next(differences[key][0] for differences in found if key in differences)
        others = [differences[key][1] if key in differences else first for differences in found]
        rows.append([key, *map(setting_text, [first, *others])])
    return rows


def setting_text(value: Any) -> str:
    """A value of a recipe in the room that a table has."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if inner not in (None, {}, [])}
    text = value_text(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def mixture_rows(run: Training) -> Rows:
    """The sources of a pretraining: what was wanted, what came of it, what was read for it and what left out."""
    rows = [["source", "wanted", "realised", "tokens", "passes", *(name.replace("_", " ") for name in RECORDS)]]
    last, stream = run.log.last, run.state.get("stream") or {}
    sources = {str(s.get("name")): number(s.get("weight", 1.0)) or 0.0 for s in dicts(run.recipe.get("sources"))}
    weights = sum(sources.values())
    for name in dict.fromkeys([*sources, *mapping(last.get("mixture"))]):
        realised = number(mapping(last.get("mixture")).get(name))
        tokens = realised * run.log.tokens if realised is not None and run.log.tokens is not None else None
        records = mapping(mapping(last.get("records")).get(name))
        rows.append(
            [
                name,
                f"{sources[name] / weights:.2%}" if name in sources and weights else "–",
                f"{realised:.2%}" if realised is not None else "unknown",
                amount(tokens),
                passes(name, mapping(last.get("repeated_since")), mapping(stream.get("epochs"))),
                *(count(number(records.get(kind))) if records else "unknown" for kind in RECORDS),
            ]
        )
    return rows


def passes(name: str, repeated_since: dict[str, Any], epochs: dict[str, Any]) -> str:
    """`1`, or `3rd since step 40,000` in words that don't need an ordinal."""
    since, epoch = repeated_since.get(name), number(epochs.get(name))
    if since is None:
        return "1"
    now = f"in pass {int(epoch) + 1}" if epoch else "again"
    return f"{now}; repeats since step {count(number(since))}"


def conversation_rows(runs: Sequence[Training]) -> Rows:
    """The sources of SFT and preference training."""
    rows = [["run", "source", "rows", "examples", "tokens", "trained on", "share", "cut", "dropped, and where first"]]
    for run in runs:
        sources = dicts(run.summary.get("mixture"))
        total = sum(number(s.get("trained_tokens")) or 0 for s in sources)
        for source in sources:
            figures = [number(source.get(key)) for key in ("rows", "examples", "tokens", "trained_tokens", "cut")]
            faults = mapping(source.get("faults"))
            dropped = [
                f"{count(number(n))} {reason} ({faults.get(reason, 'unknown')})"
                for reason, n in mapping(source.get("dropped")).items()
            ]
            rows.append(
                [
                    run.name,
                    str(source.get("name")),
                    count(figures[0]),
                    count(figures[1]),
                    amount(figures[2]),
                    amount(figures[3]),
                    share(figures[3] / total if total and figures[3] is not None else None),
                    count(figures[4]),
                    "; ".join(dropped) or "none",
                ]
            )
    return rows


def fertility_rows(material: Material) -> Rows:
    """Bytes a token of each source."""
    several = len(material.fertility) > 1
    rows = [["source", "bytes per token", "byte fallback", "documents", "bytes", "tokens"]]
    for folder, sources in material.fertility:
        for name, figures in sources.items():
            values = [number(mapping(figures).get(key)) for key in ("bytes_per_token", "byte_fallback_share")]
            amounts = [number(mapping(figures).get(key)) for key in ("documents", "bytes", "tokens")]
            rows.append(
                [
                    f"{folder}: {name}" if several else name,
                    "unknown" if values[0] is None else f"{values[0]:.3f}",
                    "unknown" if values[1] is None else f"{values[1]:.3%}",
                    count(amounts[0]),
                    *map(amount, amounts[1:]),
                ]
            )
    return rows


def dicts(value: object) -> list[dict[str, Any]]:
    """The mappings of a list; of anything else none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# ---------------------------------------------------------------------------------------------------------
# Events, costs
# ---------------------------------------------------------------------------------------------------------


def event_counts(material: Material) -> Rows:
    """How often what happened, a line a training."""
    kinds = dict.fromkeys(kind for run in material.trainings for kind in run.event_counts)
    rows = [["run", *kinds]]
    rows += [[run.name, *(f"{run.event_counts[k]:,}" for k in kinds)] for run in material.trainings if run.event_counts]
    return rows


def event_rows(run: Training) -> Rows:
    """The newest events of a training, in their order."""
    rows = [["step", "event", "what", "when (UTC)"]]
    for event in run.events:
        what = [str(event.get("event", "unknown")), str(event.get("text", ""))]
        rows.append([count(event["step"]), *what, moment(number(event.get("time")))])
    return rows


def moment(seconds: float | None) -> str:
    """Seconds since 1970 as `2026-01-31 12:00`; unknown where no calendar has them."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds or math.nan, datetime.UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "unknown"


def run_cost_rows(material: Material) -> Rows:
    """What each training took; of a fork, from where it began."""
    rows = [["run", "steps", "tokens", "time", "waiting for data", "saving", "peak memory, GiB", "energy"]]
    for run in material.trainings:
        log = run.log
        # A resumed post-training's summary counts its last process, a log's lines leave out the start: the longer one.
        known = [number(run.summary.get("seconds")), log.seconds]
        seconds = max((value for value in known if value is not None), default=None)
        rows.append(
            [
                run.name,
                count(None if run.step is None else max(0, run.step - run.forked_at)),
                amount(None if run.tokens is None else run.tokens - log.tokens_before),
                duration(seconds),
                share(log.waited),
                duration(log.stalled) if "save_stall_seconds" in log.last else "unknown",
                f"{log.memory_gib:.2f}" if log.memory_gib is not None else "unknown",
                energy_text(log),
            ]
        )
    return rows


def energy_text(log: Log) -> str:
    """What the meters of the run's machine said."""
    if log.joules is not None:
        return f"{log.joules / 3.6e6:,.3g} kWh"
    return "not readable there" if log.energy_said else "not recorded"


def cost_words(material: Material) -> list[str]:
    """What the figures of `run_cost_rows` hold and what not."""
    said = []
    if any(run.log.seconds is not None and run.phase == "pretraining" for run in material.trainings):
        said.append(
            "Time of a pretraining is that inside its loop, with evaluations and saves; start-up and what was done "
            "again after a crash are not in it."
        )
    if any(number(run.summary.get("seconds")) is not None for run in material.trainings):
        said.append("Time of SFT and preference training is that of their last process or of their loop, the longer.")
    for run in material.trainings:
        if run.forked_at:
            parent = run.fork.get("run", "another run")
            said.append(
                f"{run.name} is a fork of {parent}: its first {count(run.forked_at)} steps and about "
                f"{amount(run.log.tokens_before)} tokens are that run's, and what they took is not in this table."
            )
    return said


def stage_rows(material: Material) -> Rows:
    """Time and memory of every stage of a pipeline."""
    rows = [["stage", "minutes", "peak memory, GiB"]]
    seconds = [number(stage.get("seconds")) for stage in material.stages]
    memory = [number(stage.get("peak_memory_gib")) for stage in material.stages]
    for stage, time, peak in zip(material.stages, seconds, memory, strict=True):
        rows.append(
            [
                stage["name"],
                "unknown" if time is None else f"{time / 60:.1f}",
                "unknown" if peak is None else f"{peak:.2f}",
            ]
        )
    if material.stages:
        times, peaks = ([value for value in values if value is not None] for values in (seconds, memory))
        least = "" if len(times) == len(seconds) else "at least "
        total = f"{least}{sum(times) / 60:.1f}" if times else "unknown"
        rows.append(["all", total, f"{max(peaks):.2f}" if peaks else "unknown"])
    return rows
