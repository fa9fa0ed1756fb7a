"""Train a chat model on answers labelled good or bad: TRL's KTOTrainer from and against the model given.

    python scripts/kto.py --config recipes/M/kto.yaml [--model DIR --output_dir RUN --beta 0.1 …]

The result is RUN/final, a plain Llama folder. The same command goes on after an interruption.
"""

import _env  # noqa: F401

from genesis_hf.errors import report_user_errors
from genesis_hf.post_training.kto import parse_kto_recipe, train_kto
from genesis_hf.post_training.preference_figures import labelled_table
from genesis_hf.post_training.recipe import batch_plan, resolved_yaml
from genesis_hf.processes import is_main


def main() -> None:
    recipe, training = parse_kto_recipe()
    if recipe.dry_run:
        print(resolved_yaml(recipe, training), end="")
        print(f"# {batch_plan(training, 'answers')}")
        return
    summary = train_kto(recipe, training)
    if summary and is_main():
        words = "already finished" if summary["already_finished"] else "finished"
        print(f"{words}: {summary['steps']} steps in {summary['seconds']:.0f} s → {training.output_dir}/final")
        print(labelled_table(summary))


if __name__ == "__main__":
    with report_user_errors():
        main()
