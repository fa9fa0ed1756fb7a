"""The recipe as stages, each an ordinary command that could as well be typed by hand."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_folder, checkpoint_step, complete_checkpoints
from genesis_hf.config import PretrainRecipe, build, read_yaml, set_dotted
from genesis_hf.cycle.check import check_phase
from genesis_hf.cycle.recipe import MADE, CycleRecipe, Phase
from genesis_hf.cycle.slurm import sbatch_options
from genesis_hf.errors import UserError
from genesis_hf.lineage.folders import CLOSED
from genesis_hf.publishing.layout import step_branch
from genesis_hf.stages import Stage, script_command

SCRIPTS = {"publish": "push_to_hub", "sample": "sample_answers"}
"""Scripts that are not called as their phase."""

DATA = (
    *("paths", "prepared", "include_path", "prompts", "sample_prompts", "exclude_documents"),
    *("tokenizer", "vocab_file", "merges_file"),
)
"""Keys of recipes that name files or folders of data."""


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
        UserError: a recipe that can't be read or that its script would refuse, a milestone that the trunk doesn't reach
            or has not kept, folders inside each other.
    """
    trunk = build(PretrainRecipe, resolved(recipe.trunk.config, recipe.trunk.set), recipe.trunk.config)
    run = os.path.normpath(trunk.output_dir)
    refuse_nested(recipe, trunk.output_dir)
    refuse_unreachable(recipe, trunk, run)
    check_phases(recipe)
    stages: list[Stage] = []
    for step in recipe.milestones:
        before = [trunk_name(earlier) for earlier in recipe.milestones if earlier < step][-1:]
        stages.append(trunk_stage(recipe, trunk, run, step, before))
        folder = f"{recipe.output_dir}/step_{step:09d}"
        place = Place(step, f"{step:09d}", folder, stages[-1].name, str(checkpoint_folder(run, step)))
        shared, place, beside = chain(recipe, recipe.each_milestone, place, [])
        stages += shared
        for name, branch in recipe.branches.items():
            if branch.milestones is None or step in branch.milestones:
                own = replace(place, prefix=f"{place.prefix}-{name}", folder=f"{folder}/{name}", branch=f", {name}")
                stages += chain(recipe, branch.phases, own, beside)[0]
    return stages


def trunk_name(step: int) -> str:
    """Of the stage that brings the trunk to a milestone."""
    return f"{step:09d}-trunk"


def trunk_stage(recipe: CycleRecipe, pretraining: PretrainRecipe, run: str, step: int, before: list[str]) -> Stage:
    """Pretraining to one milestone. All milestones are kept, whatever the recipe's retention."""
    trunk = recipe.trunk
    kept = sorted({*recipe.milestones, *pretraining.keep_steps})
    place = {"output_dir": run} if "output_dir" in trunk.set else {}
    settings = {**trunk.set, **place, "stop_at_step": step, "keep_steps": kept}
    return Stage(
        name=trunk_name(step),
        title=f"Trunk to step {step:,}",
        command=script_command("pretrain", trunk.config, settings, accelerate_config=trunk.accelerate_config),
        recipe=trunk.config,
        produces=[str(checkpoint_folder(run, step) / "manifest.json")],
        after=before,
        lasting=True,
        slurm=sbatch_options({**recipe.slurm, **trunk.slurm}),
    )


def chain(
    recipe: CycleRecipe, phases: list[Phase], place: Place, beside: list[str]
) -> tuple[list[Stage], Place, list[str]]:
    """The stages of some phases in a row, where they end, and the stages that came of the last model there.

    A phase that makes a model is waited for by the next one that needs it; an evaluation is waited for by none but a
    publication, whose card shows it.

    Args:
        beside: stages that came of the model at `place`.
    """
    stages: list[Stage] = []
    beside = [*beside]
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
            reads=sorted({path for path in local_data(values) if not is_below(path, recipe.output_dir)}),
            slurm=sbatch_options({**recipe.slurm, **phase.slurm}),
        )
        stages.append(stage)
        if phase.phase in MADE:
            place = replace(place, stage=stage.name, model=produces[0], called=called)
            beside = []
        else:
            beside.append(stage.name)
    return stages, place, beside


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
    values = read_yaml(config) if config else {}
    for key, value in settings.items():
        if "." in key:
            set_dotted(values, key, json.dumps(value, default=str))
        else:
            values[key] = value
    return values


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, by their names."""
    return Path(folder) in Path(os.path.normpath(path)).parents


def check_phases(recipe: CycleRecipe) -> None:
    """Raise `UserError` for a recipe, a topology or a value that a phase's script would refuse days later."""
    phases = [phase for _, chain in recipe.chains() for phase in chain]
    for topology in [recipe.trunk.accelerate_config, *(phase.accelerate_config for phase in phases)]:
        if topology and not os.path.isfile(topology):
            raise UserError(f"accelerate_config {topology}: no such file")
    somewhere = Place(recipe.milestones[0], "", "folder", "", "model")
    for where, phases in recipe.chains():
        for phase in phases:
            values = resolved(phase.config, {**given(phase, somewhere, "folder")[0], **phase.set})
            check_phase(where, phase, values)


def local_data(values: Any, key: str = "") -> Iterator[str]:
    """Files and folders of data that a recipe names: those a change of which changes the result."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from local_data(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from local_data(value, key)
    elif isinstance(values, str) and key in DATA:
        yield values


def refuse_nested(recipe: CycleRecipe, run: str) -> None:
    """Raise `UserError` where the trunk's run would lie in a milestone's folder, or the tree in the trunk's run."""
    if not run.strip():
        raise UserError(f"{recipe.trunk.config}: `output_dir` is missing")
    tree, trunk = Path(recipe.output_dir).resolve(), Path(run).resolve()
    if tree == trunk or trunk in tree.parents:
        raise UserError(f"output_dir {recipe.output_dir} lies in the trunk's run directory {run}; name another")
    below = trunk.relative_to(tree).parts[0] if tree in trunk.parents else ""
    if below.startswith("step_") or below in CLOSED:
        raise UserError(f"trunk: output_dir {run} lies in {recipe.output_dir}/{below}, which the tree uses otherwise")


def refuse_unreachable(recipe: CycleRecipe, trunk: PretrainRecipe, run: str) -> None:
    """Raise `UserError` for a milestone past the schedule's end, or one that the run has passed without keeping it."""
    last = trunk.max_steps
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
