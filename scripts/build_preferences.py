"""Preference pairs from a chat model's own answers: sampled, judged against a constitution, balanced for length.

    python scripts/build_preferences.py --config recipes/M/preferences.yaml [--verify true]

OUTPUT_DIR/preferences.jsonl and preferences_held_out.jsonl are for scripts/dpo.py; report.html is to be read. The same
command goes on after an interruption, and nothing is asked or paid for twice.
"""

import _env  # noqa: F401

import sys

from genesis_hf.config import parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors
from genesis_hf.synthesis.recipe import PreferencesRecipe


def main() -> None:
    (recipe,) = parse_recipe(PreferencesRecipe)

    # After the recipe: these bring torch and TRL, which take seconds.
    from genesis_hf.synthesis.pairs import differences
    from genesis_hf.synthesis.preference_files import verify_preferences
    from genesis_hf.synthesis.preferences import build_preferences, preview

    # ------------------------------------------------------------------------------------------------
    # Nothing is written
    # ------------------------------------------------------------------------------------------------
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        print(preview(recipe))
        return
    if recipe.verify:
        agree, wrong = verify_preferences(recipe)
        print("\n".join([*wrong, f"{agree:,} pairs are what they were derived from, {len(wrong):,} are not"]))
        sys.exit(1 if wrong else 0)

    # ------------------------------------------------------------------------------------------------
    # Prompts, answers, scores, pairs
    # ------------------------------------------------------------------------------------------------
    figures = build_preferences(recipe)

    # ------------------------------------------------------------------------------------------------
    # What came of it
    # ------------------------------------------------------------------------------------------------
    print(figures["words"])
    for outcome, count in figures["outcomes"].items():
        print(f"{count:8,}  {outcome}")
    for name, split in figures["splits"].items():
        if split["after"]["pairs"]:
            print(f"{name}: chosen against rejected {differences(split['before'])} before balancing")
            print(f"{name}: {differences(split['after'])} after")
    if figures["judge"] and figures["judge"]["agreement"] is not None:
        print(f"the judge ranks alike in both orders: {100 * figures['judge']['agreement']:.1f} %")
    print(f"pairs: {recipe.output_dir}/preferences.jsonl, to read: {recipe.output_dir}/report.html")
    if figures["failed"]:
        sys.exit(f"calls about {figures['failed']:,} prompts failed; the same command asks for them again")


if __name__ == "__main__":
    with report_user_errors():
        main()
