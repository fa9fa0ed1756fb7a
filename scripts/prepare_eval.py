"""Make lm-eval tasks over local data from files of evaluation sets in their authors' forms.

    python scripts/prepare_eval.py --source_dir DIR --output_dir data/tasks [--tasks hellaswag,mmlu]
    python scripts/evaluate.py --include_path data/tasks --tasks hellaswag,mmlu --model …

The same folder serves `lm_eval --include_path`. Prompts and metrics are those of the installed lm-eval.
"""

import _env  # noqa: F401

from pathlib import Path

from genesis_hf.config import PrepareEvalRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(PrepareEvalRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    from genesis_hf.evaluation.task_files import KNOWN, prepare_tasks

    done = prepare_tasks(Path(recipe.source_dir), Path(recipe.output_dir), recipe.tasks)
    for name, made in done.items():
        parts = f" in {made.parts} tasks" if made.parts else ""
        examples = f"{made.examples:,} examples for prompts" if made.examples else "prompts' examples from the items"
        print(f"{name:16} {made.items:6,} items{parts}, {examples}: {Path(made.files[0]).name}")
        if made.missing:
            print(f"{'':16} without {', '.join(made.missing)}: no data")
    left = [name for name in recipe.tasks or KNOWN if name not in done]
    if left:
        print(f"no data for: {', '.join(left)}")
    print(f"→ {recipe.output_dir}, for --include_path")


if __name__ == "__main__":
    with report_user_errors():
        main()
