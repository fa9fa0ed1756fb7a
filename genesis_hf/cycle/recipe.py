"""`recipes/M/cycle.yaml`: milestones of the trunk, and what happens at each."""

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from genesis_hf.config import setting
from genesis_hf.errors import UserError
from genesis_hf.lineage.folders import CLOSED

MADE = {"export": "base", "sft": "sft", "dpo": "dpo", "kto": "kto"}
"""Phases that make a model, and what its folder is called unless the phase has a name."""

TOLD = ("config", "model", "checkpoint", "output_dir", "output_file", "stop_at_step")
"""Keys that follow from a phase's place in the tree."""

NAME = re.compile(r"\w[\w.-]{,99}")
"""Of a branch or a phase, which becomes a folder's."""


@dataclass
class Phase:
    """One command at a milestone; what it is given as model is what the phase before it made."""

    phase: Literal["export", "evaluate", "sft", "dpo", "kto", "sample", "publish"] = setting(help="which script")
    config: str | None = setting(None, "its recipe")
    name: str | None = setting(
        None, "of its folder and record; null: the phase's, with the model's where it makes none"
    )
    accelerate_config: str | None = setting(None, "topology for accelerate launch; null: one process")
    set: dict[str, Any] = setting({}, "keys of the recipe that are other here")
    slurm: dict[str, Any] = setting({}, "options of sbatch that are other here")

    def __post_init__(self) -> None:
        if self.name is not None:
            refuse_name("phase name", self.name)
        self.set = with_underscores(self.set)


@dataclass
class Trunk:
    """The pretraining run that grows."""

    config: str = setting(help="its recipe; its output_dir is the run directory")
    accelerate_config: str | None = setting(None, "topology for accelerate launch; null: one process")
    set: dict[str, Any] = setting({}, "keys of the recipe that are other here")
    slurm: dict[str, Any] = setting({}, "options of sbatch that are other here")

    def __post_init__(self) -> None:
        self.set = with_underscores(self.set)
        for key in ("config", "stop_at_step"):
            if key in self.set:
                raise UserError(f"trunk can't `set` {key}, which follows from the cycle's own keys")


@dataclass
class Branch:
    """What is made of the trunk's model at a milestone."""

    phases: list[Phase] = setting(help="in order; each gets the model of the one before")
    milestones: list[int] | None = setting(None, "only at these; null: at all")


@dataclass
class CycleRecipe:
    """`scripts/cycle.py`"""

    output_dir: str = setting(help="folder of the branches, a folder a milestone, and of the records")
    trunk: Trunk = setting(help="the pretraining run")
    milestones: list[int] = setting(help="steps of the trunk at which branches leave it")
    each_milestone: list[Phase] = setting([], "what comes before the branches and is shared by them")
    branches: dict[str, Branch] = setting({}, "by name")
    slurm: dict[str, Any] = setting({}, "options of sbatch for every job, such as partition, time, gpus")
    scheduler: Literal["here", "slurm"] = setting("here", "run here, one after the other, or submit jobs")
    stage: str | None = setting(None, "run this stage alone, which the stages before it have to be finished for")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the commands and touch nothing")

    def __post_init__(self) -> None:
        if not self.output_dir.strip():
            raise UserError("output_dir is empty; name a folder for the branches and the records")
        self.output_dir = os.path.normpath(self.output_dir)
        if not self.milestones or sorted(set(self.milestones)) != self.milestones or self.milestones[0] < 1:
            raise UserError(f"milestones must be steps in rising order, at least one, not {self.milestones}")
        shared = [phase.name or MADE.get(phase.phase) for phase in self.each_milestone]
        for name, branch in self.branches.items():
            refuse_name("branch", name)
            if name in shared:
                raise UserError(f"branch {name}: each_milestone makes a folder of that name; give one another name")
            unknown = set(branch.milestones or []) - set(self.milestones)
            if unknown:
                raise UserError(f"branch {name}: {sorted(unknown)} is no milestone (milestones are {self.milestones})")
            if not branch.phases:
                raise UserError(f"branch {name} has no phases")
        for where, phases in self.chains():
            refuse_impossible(where, phases)

    def chains(self) -> list[tuple[str, list[Phase]]]:
        """Each branch's phases from the checkpoint on, with words for where they stand."""
        shared = self.each_milestone
        return [(f"branch {name}", [*shared, *branch.phases]) for name, branch in self.branches.items()] or [
            ("each_milestone", shared)
        ]


def refuse_name(what: str, name: str) -> None:
    """Raise `UserError` for a name that is no folder's, or that of a folder in which no model is looked for."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{what} {name!r}: letters, digits, dots, hyphens and underscores only, at most 100, no dot or hyphen first"
        )
    if name in CLOSED:
        raise UserError(f"{what} {name}: scripts/lineage.py looks for no model in a folder called so; take another")


def with_underscores(settings: dict[str, Any]) -> dict[str, Any]:
    """Keys as the recipes have them; a command line takes hyphens, too."""
    return {key.replace("-", "_"): value for key, value in settings.items()}


def refuse_impossible(where: str, phases: list[Phase]) -> None:
    """Raise `UserError` where a phase has no model, no recipe, or the folder of another."""
    names: list[str] = []
    made = None
    for phase in phases:
        reserved = (*TOLD, "revision") if phase.phase == "publish" else TOLD
        told = [key for key in phase.set if key.partition(".")[0] in reserved]
        if told:
            raise UserError(f"{where}: {phase.phase} can't `set` {told[0]}, which follows from its place in the tree")
        if phase.phase == "export" and made is not None:
            raise UserError(f"{where}: export comes once, before what uses its model")
        if phase.phase != "export" and made is None:
            raise UserError(f"{where}: {phase.phase} has no model yet; begin with an export")
        if phase.config is None and phase.phase not in ("publish", "export", "sample"):
            raise UserError(f"{where}: {phase.phase} needs its recipe as `config`")
        if phase.phase == "publish" and "hub_model_id" not in phase.set and phase.config is None:
            raise UserError(f"{where}: publish needs `set: {{hub_model_id: owner/name}}`")
        if phase.phase in MADE:
            made = phase.name or MADE[phase.phase]
        names.append(phase.name or (made if phase.phase in MADE else f"{phase.phase}-{made}"))
        if names.count(names[-1]) > 1:
            raise UserError(f"{where}: two phases are called {names[-1]}; give one of them another `name`")
