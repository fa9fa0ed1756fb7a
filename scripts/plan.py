"""What a pretraining run will need and take, before anything is spent.

    python scripts/plan.py --config recipes/genesis-1b/pretrain.yaml --device "2x RTX 4090" [--key value …]
        --accelerate_config accelerate_configs/fsdp2_2gpu.yaml --output_file plan.html

Parameters, memory of a card by what it holds, whether it fits and what would make it fit, tokens a second, days,
energy, money, disk. Nothing is downloaded; neither tokenizer nor data need be there. `--key value` overrides a key of
the recipe.
scripts/preflight.py measures on the machine what this predicts.
"""

import _env  # noqa: F401

import sys

from genesis_hf.config import PretrainRecipe, parse_recipe, read_yaml, recipe_yaml, split_arguments
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.planning.recipe import PlanRecipe


def main() -> None:
    refuse_other_phases()
    wanted, recipe = parse_recipe(PlanRecipe, PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(wanted), recipe_yaml(recipe), sep="", end="")
        return

    from genesis_hf.planning.page import as_text, write_page
    from genesis_hf.planning.planner import plan

    found = plan(wanted, recipe)
    print(as_text(found))
    if wanted.output_file:
        write_page(found, wanted.output_file)
        print(f"\nplan: {wanted.output_file}")


def refuse_other_phases() -> None:
    """Raise `UserError` for the recipe of another phase, before its keys are called unknown."""
    path, settings = split_arguments([word for word in sys.argv[1:] if word != "-h"])
    named = {*(read_yaml(path) if path else {}), *(key.partition(".")[0] for key, _ in settings)}
    missing = [key for key in ("sources", "model") if key not in named]
    if path and missing:
        raise UserError(f"{path}: not a pretraining recipe (it has no `{missing[0]}`); only pretraining is planned")


if __name__ == "__main__":
    with report_user_errors():
        main()
