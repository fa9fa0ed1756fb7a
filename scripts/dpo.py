"""Train a chat model on preferences: TRL's DPOTrainer from and against the model given.

    python scripts/dpo.py --config recipes/M/dpo.yaml [--model DIR --output_dir RUN --beta 0.1 …]

The result is RUN/final, a plain Llama folder. The same command goes on after an interruption.
"""

import _env  # noqa: F401

from genesis_hf.errors import report_user_errors
from genesis_hf.post_training.dpo import parse_dpo_recipe, train_dpo
from genesis_hf.post_training.preference_figures import pairs_table
from genesis_hf.post_training.recipe import batch_plan, resolved_yaml
from genesis_hf.processes import is_main


def main() -> None:
    recipe, training = parse_dpo_recipe()
    if recipe.dry_run:
        print(resolved_yaml(recipe, training), end="")
        print(f"# {batch_plan(training, 'pairs')}")
        return
    summary = train_dpo(recipe, training)
    if summary and is_main():
        words = "already finished" if summary["already_finished"] else "finished"
        print(f"{words}: {summary['steps']} steps in {summary['seconds']:.0f} s → {training.output_dir}/final")
        print(pairs_table(summary))


if __name__ == "__main__":
    with report_user_errors():
        main()
