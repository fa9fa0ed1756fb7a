"""Write conversations with any chat model, held to a constitution.

    python scripts/synthesize.py --config recipes/M/constitution.yaml [--num_conversations 10000 --max_cost 20 …]
    python scripts/synthesize.py --config recipes/M/constitution.yaml --verify true

The same command goes on after an interruption, pays for nothing twice, and writes `conversations.jsonl`, what
scripts/sft.py reads, from the records that pass the checks of quality.
"""

import _env  # noqa: F401

import sys
from pathlib import Path

from genesis_hf.config import parse_recipe, recipe_yaml
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.synthesis.constitution import load_constitution
from genesis_hf.synthesis.prompts import check_prompts, plan_conversation
from genesis_hf.synthesis.recipe import SynthesizeRecipe

SHOWN = 5
"""Prompts of a dry run."""


def main() -> None:
    (recipe,) = parse_recipe(SynthesizeRecipe)
    constitution = load_constitution(recipe.constitution)
    if recipe.dry_run:
        check_prompts(constitution, recipe.num_conversations)
        print(recipe_yaml(recipe), end="")
        for index in range(min(SHOWN, recipe.num_conversations)):
            plan = plan_conversation(constitution, recipe.seed, index)
            thinking = ", thinking" if plan.thinking else ""
            print(f"# {index} {plan.category}, {plan.language}, turns: {plan.turns}{thinking}\n#   {plan.opening}")
        return

    from genesis_hf.synthesis.quality import curate
    from genesis_hf.synthesis.synthesize import RECORDS, synthesize, verify

    # ------------------------------------------------------------------------------------------------
    # Do the records follow from constitution and seed?
    # ------------------------------------------------------------------------------------------------
    if recipe.verify:
        count, differences = verify(recipe, constitution)
        print(f"{count - len(differences):,} of {count:,} records follow from the constitution and the seed")
        for index, keys in list(differences.items())[:10]:
            print(f"record {index}: another {', '.join(keys)}")
        sys.exit(1 if differences else 0)

    # ------------------------------------------------------------------------------------------------
    # Make what is missing
    # ------------------------------------------------------------------------------------------------
    result = synthesize(recipe, constitution)
    print(f"{result.describe()} → {recipe.output_dir}/{RECORDS}")
    if result.outcome.stopped_by is not None:
        print(f"stopped by {result.outcome.stopped_by.name}; the same command goes on", file=sys.stderr)
        sys.exit(128 + result.outcome.stopped_by)

    # ------------------------------------------------------------------------------------------------
    # Keep what is good, also of a run that didn't reach its end
    # ------------------------------------------------------------------------------------------------
    if result.made:
        folder = Path(recipe.output_dir)
        curate(folder / RECORDS, folder, constitution, recipe)
    if result.outcome.ended:
        raise UserError(f"{result.describe()}: {result.outcome.ended}; what is made is kept, the same command goes on")
    if failed := result.outcome.failed:
        reason = next(iter(failed.values()))
        raise UserError(
            f"{result.describe()}; the same command tries the other {len(failed):,} again (failures.jsonl says why; "
            f"the first: {reason})"
        )


if __name__ == "__main__":
    with report_user_errors():
        main()
