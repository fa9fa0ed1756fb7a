"""Pretrain a model from scratch, or go on where it was.

python scripts/pretrain.py --config recipes/demo/pretrain.yaml [--key value …]
accelerate launch --config_file accelerate_configs/fsdp2_2gpu.yaml scripts/pretrain.py --config …
"""

import _env  # noqa: F401

from genesis_hf.config import PretrainRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors
from genesis_hf.training.plan import plan
from genesis_hf.training.pretrain import pretrain


def main() -> None:
    (recipe,) = parse_recipe(PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe))
        print(plan(recipe))
        return
    pretrain(recipe)


if __name__ == "__main__":
    with report_user_errors():
        main()
