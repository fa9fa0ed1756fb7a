"""Publish a model on the Hub with its card: a branch for each checkpoint, `main` for the newest, tags for releases.

    python scripts/push_to_hub.py --model RUN_OR_CHECKPOINT_OR_EXPORT_OR_FINAL --hub_model_id me/genesis-1b
        [--revision step-040000] [--tag v1.0] [--include_checkpoint true] [--hub_private_repo false]

A run directory or checkpoint is exported first. Interrupted, the same command goes on; what is there is not sent again.
The token is that of `hf auth login`, or HF_TOKEN.
"""

import _env  # noqa: F401

from genesis_hf.config import PublishRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(PublishRecipe)

    # After the options: these bring torch and transformers, which take seconds.
    from genesis_hf.publishing.publish import describe, publish, report

    if recipe.dry_run:
        print(recipe_yaml(recipe) + describe(recipe))
        return
    print(report(recipe, publish(recipe)))


if __name__ == "__main__":
    with report_user_errors():
        main()
