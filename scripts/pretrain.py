"""Pretrain a model from scratch, or go on where it was.

python scripts/pretrain.py --config recipes/demo/pretrain.yaml [--key value …]
accelerate launch --config_file accelerate_configs/fsdp2_2gpu.yaml scripts/pretrain.py --config …
"""

import _env  # noqa: F401

from genesis_hf.checkpoint.folders import read_trainer_state
from genesis_hf.config import PretrainRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors
from genesis_hf.processes import is_main, leave_processes
from genesis_hf.publishing.publish import publish_finished_run
from genesis_hf.training.plan import plan
from genesis_hf.training.pretrain import pretrain


def main() -> None:
    (recipe,) = parse_recipe(PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe))
        print(plan(recipe))
        return
    checkpoint = pretrain(recipe)
    publishes = recipe.push_to_hub and is_main()
    leave_processes()
    if publishes and read_trainer_state(checkpoint)["step"] >= recipe.last_step:
        publish_finished_run(checkpoint, recipe.hub_model_id, recipe.hub_private_repo)


if __name__ == "__main__":
    with report_user_errors():
        main()
