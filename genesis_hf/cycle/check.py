"""What a phase's script would refuse, said before the trunk trains for days."""

import typing
from dataclasses import fields
from typing import Any

import trl

from genesis_hf.config import (
    DPORecipe,
    EvaluateRecipe,
    ExportRecipe,
    KTORecipe,
    PublishRecipe,
    SampleRecipe,
    SFTRecipe,
    build,
    coerce,
    nearest,
)
from genesis_hf.cycle.recipe import Phase
from genesis_hf.errors import UserError

RECIPES: dict[str, type] = {
    "export": ExportRecipe,
    "evaluate": EvaluateRecipe,
    "sample": SampleRecipe,
    "publish": PublishRecipe,
    "sft": SFTRecipe,
    "dpo": DPORecipe,
    "kto": KTORecipe,
}


def check_phase(where: str, phase: Phase, values: dict[str, Any]) -> None:
    """Raise `UserError` for keys and values that the phase's script would refuse.

    Of TRL's keys only names and types: a machine that submits jobs may lack the GPU that the values are for.
    """
    kind = RECIPES[phase.phase]
    ours = {f.name for f in fields(kind) if f.init}
    theirs = typing.get_type_hints(trl_config(phase.phase)) if phase.phase in ("sft", "dpo", "kto") else {}
    source = phase.config or "set"
    try:
        build(kind, {key: value for key, value in values.items() if key in ours}, source)
        for key in [key for key in values if key not in ours]:
            if key not in theirs:
                raise UserError(f"{source}: unknown key `{key}`{nearest(key, {*ours, *theirs})}")
            coerce(values[key], theirs[key], f"{source}: {key}")
    except UserError as error:
        raise UserError(f"{where}, {phase.phase}: {error}") from None


def trl_config(phase: str) -> type:
    """TRL's dataclass of a phase that trains."""
    return getattr(trl, f"{phase.upper()}Config")
