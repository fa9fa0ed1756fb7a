"""Fetch a training checkpoint from the Hub, to continue its run on this machine.

    python scripts/pull_checkpoint.py --hub_model_id me/genesis-1b --output_dir runs/genesis-1b [--revision step-040000]

Without a revision the newest one is taken. Interrupted, the same command goes on; it ends with the one that trains on.
"""

import _env  # noqa: F401

from genesis_hf.config import PullRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(PullRecipe)

    # After the options: these bring torch, which takes seconds.
    from genesis_hf.publishing.pull import describe, how_to_go_on, pull_checkpoint

    if recipe.dry_run:
        print(recipe_yaml(recipe) + describe(recipe))
        return
    pulled = pull_checkpoint(recipe)
    words = "already there" if pulled.already_there else f"{pulled.revision} is there, verified"
    print(f"{words}: {pulled.checkpoint}\n{how_to_go_on(pulled)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
