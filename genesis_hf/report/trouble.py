"""What is wrong with runs, or may be: said before everything else."""

from collections.abc import Iterator

from genesis_hf.report.curve import number
from genesis_hf.report.log import mapping
from genesis_hf.report.material import Material, Training
from genesis_hf.report.results import impossible
from genesis_hf.report.tables import count
from genesis_hf.report.trainings import state_words

TROUBLE = {
    "rollback": "the run went back to a checkpoint after a loss spike",
    "out of memory": "out of memory, and the micro-batch was halved",
    "not saved": "a checkpoint was put off, because a loss or gradient was not finite",
    "data change": "the data was changed and the change accepted",
    "bad record": "records could not be read and were left out",
}
"""Events that change how a run is to be read."""


def warnings(material: Material) -> list[str]:
    """What a reader must know before believing the rest."""
    said = impossible(material)
    for folder, parity in material.exports:
        for name, figures in mapping(parity.get("formats_compared")).items():
            if mapping(figures).get("agrees") is False:
                said.append(f"{folder}: {name} does not compute what the live model computes; export again.")
    for run in material.trainings:
        said += run_warnings(run)
    return [*said, *(f"{problem}." for problem in material.problems)]


def run_warnings(run: Training) -> Iterator[str]:
    """Of one training."""
    words, log, events = state_words(run), run.log, run.event_counts
    if words:
        yield words
    if not run.recipe:
        yield f"{run.name} has no recipe.yaml: its settings are unknown."
    if log.unreadable:
        yield f"{run.name}: {log.unreadable:,} lines of metrics.jsonl could not be read."
    if log.not_finite:
        yield f"{run.name}: the loss of {log.not_finite:,} of {log.lines:,} logged steps is not finite."
    skipped, spikes = number(log.last.get("skipped_steps")), number(log.last.get("spikes"))
    if skipped:
        yield f"{run.name}: {count(skipped)} updates were skipped, {count(spikes or 0)} for a loss spike."
    for kind, what in TROUBLE.items():
        if events[kind]:
            yield f"{run.name}: {what}, {events[kind]:,} ×; the events below say when."
    for name, since in mapping(log.last.get("repeated_since")).items():
        step = count(number(since))
        yield f"{run.name}: source {name} repeats since step {step}; documents of it were trained on again."
    for name, curve in log.held_out.items():
        bins = curve.bins()
        best = min(bins, key=lambda found: found.low)
        if bins[-1].high > 1.01 * best.low:
            yield (
                f"{run.name}: held-out {name} ends at {bins[-1].high:.3f} bits per byte, but had {best.low:.3f} near "
                f"step {best.steps / best.count:,.0f}."
            )
    passed = number(mapping(run.summary.get("displacement")).get("passed_at_step"))
    if passed is not None:
        yield f"{run.name}: from step {count(passed)} on, chosen answers were less likely than max_displacement allows."
