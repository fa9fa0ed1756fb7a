"""The recipe as stages, each an ordinary command that could as well be typed by hand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_folder, checkpoint_step, complete_checkpoints
from genesis_hf.config import read_yaml
from genesis_hf.cycle.recipe import MADE, CycleRecipe, Phase
from genesis_hf.errors import UserError
from genesis_hf.publishing.layout import step_branch
from genesis_hf.stages import Stage, script_command

SCRIPTS = {"publish": "push_to_hub", "sample": "sample_answers"}
"""Scripts that are not called as their phase."""


@dataclass
class Place:
    """Where a chain of phases stands: at which milestone, in which folder, after which stage, with which model."""

    step: int
    prefix: str
    folder: str
    stage: str
    model: str
    called: str = ""
    """what the model's phase is called"""
    branch: str = ""


def make_tree(recipe: CycleRecipe) -> list[Stage]:
    """The stages in the order in which they run here: the trunk to a milestone, its branches, the trunk further.

    Raises:
        UserError: a recipe that can't be read, a milestone that the trunk doesn't reach or has not kept.
    """
    trunk = resolved(recipe.trunk.config, recipe.trunk.set)
    run = str(trunk.get("output_dir", ""))
    refuse_unreachable(recipe, trunk, run)
    stages: list[Stage] = []
    for step in recipe.milestones:
        before = [trunk_name(earlier) for earlier in recipe.milestones if earlier < step][-1:]
        stages.append(trunk_stage(recipe, run, step, before))
        folder = f"{recipe.output_dir}/step_{step:09d}"
        place = Place(step, f"{step:09d}", folder, stages[-1].name, str(checkpoint_folder(run, step)))
        shared, place = chain(recipe, recipe.each_milestone, place)
        stages += shared
        for name, branch in recipe.branches.items():
            if branch.milestones is None or step in branch.milestones:
                own = replace(place, prefix=f"{place.prefix}-{name}", folder=f"{folder}/{name}", branch=f", {name}")
                stages += chain(recipe, branch.phases, own)[0]
    return stages


def trunk_name(step: int) -> str:
    """Of the stage that brings the trunk to a milestone."""
    return f"{step:09d}-trunk"


def trunk_stage(recipe: CycleRecipe, run: str, step: int, before: list[str]) -> Stage:
    """Pretraining to one milestone. All milestones are kept, whatever the recipe's retention."""
    trunk = recipe.trunk
    kept = sorted({*recipe.milestones, *(resolved(trunk.config, trunk.set).get("keep_steps") or [])})
    settings = {**trunk.set, "stop_at_step": step, "keep_steps": kept}
    return Stage(
        name=trunk_name(step),
        title=f"Trunk to step {step:,}",
        command=script_command("pretrain", trunk.config, settings, accelerate_config=trunk.accelerate_config),
        recipe=trunk.config,
        produces=[str(checkpoint_folder(run, step) / "manifest.json")],
        after=before,
        lasting=True,
        slurm=words({**recipe.slurm, **trunk.slurm}),
    )


def chain(recipe: CycleRecipe, phases: list[Phase], place: Place) -> tuple[list[Stage], Place]:
    """The stages of some phases in a row, and where they end.

    A phase that makes a model is waited for by the next one that needs it; an evaluation is waited for by none but a
    publication, whose card shows it.
    """
    stages: list[Stage] = []
    beside: list[str] = []
    for phase in phases:
        called = phase.name or MADE.get(phase.phase, f"{phase.phase}-{place.called}")
        folder = f"{place.folder}/{called}"
        settings, produces = given(phase, place, folder)
        values = resolved(phase.config, {**settings, **phase.set})
        stage = Stage(
            name=f"{place.prefix}-{called}",
            title=f"Step {place.step:,}{place.branch}: {called}",
            command=script_command(
                SCRIPTS.get(phase.phase, phase.phase),
                phase.config,
                {**settings, **phase.set},
                accelerate_config=phase.accelerate_config,
            ),
            recipe=phase.config,
            produces=produces,
            after=[place.stage, *(beside if phase.phase == "publish" else [])],
            reads=sorted({path for path in local_data(values) if not path.startswith(f"{recipe.output_dir}/")}),
            slurm=words({**recipe.slurm, **phase.slurm}),
        )
        stages.append(stage)
        if phase.phase in MADE:
            place = replace(place, stage=stage.name, model=produces[0], called=called)
            beside = []
        else:
            beside.append(stage.name)
    return stages, place


def given(phase: Phase, place: Place, folder: str) -> tuple[dict[str, Any], list[str]]:
    """What a phase is told by its place in the tree, and what it makes."""
    model = {"model": place.model}
    if phase.phase == "export":
        return {"checkpoint": place.model, "output_dir": folder}, [folder]
    if phase.phase in MADE:
        return {**model, "output_dir": folder}, [f"{folder}/final"]
    if phase.phase == "evaluate":  # beside the model, where the card of its publication looks for it
        return {**model, "output_dir": place.model}, [f"{place.model}/evaluation.json"]
    if phase.phase == "sample":
        return {**model, "output_file": f"{folder}.jsonl"}, [f"{folder}.jsonl"]
    return {**model, "revision": step_branch(place.step)}, []


def resolved(config: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys with those that are other here."""
    return {**(read_yaml(config) if config else {}), **settings}


def local_data(values: Any, key: str = "") -> Iterator[str]:
    """Files and folders of data that a recipe names: those a change of which changes the result."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from local_data(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from local_data(value, key)
    elif isinstance(values, str) and key in ("paths", "include_path", "prompts", "sample_prompts"):
        yield values


def words(options: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in options.items()}


def refuse_unreachable(recipe: CycleRecipe, trunk: dict[str, Any], run: str) -> None:
    """Raise `UserError` for a milestone past the schedule's end, or one that the run has passed without keeping it."""
    if not run:
        raise UserError(f"{recipe.trunk.config}: `output_dir` is missing")
    last = trunk.get("max_steps", 0)
    if recipe.milestones[-1] > last:
        raise UserError(
            f"milestone {recipe.milestones[-1]:,} lies past the trunk's max_steps of {last:,}; raise max_steps in "
            f"{recipe.trunk.config}, and name {last:,} under extended_at if the rate shall warm up again there"
        )
    there = {checkpoint_step(folder) for folder in complete_checkpoints(run)}
    passed = [step for step in recipe.milestones if step not in there and step < max(there, default=0)]
    gone = [step for step in passed if not (records(recipe) / f"{trunk_name(step)}.json").exists()]
    if gone:
        raise UserError(
            f"{run} is at step {max(there):,} and has not kept milestone {gone[0]:,}; take it out of `milestones`, "
            "or bring its checkpoint back"
        )


def records(recipe: CycleRecipe) -> Path:
    """The folder of the stages' records."""
    return Path(recipe.output_dir) / "stages"
