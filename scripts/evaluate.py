"""Measure models with lm-eval and on held-out text; results are kept, so a second run measures only what is new.

    python scripts/evaluate.py --config recipes/M/eval.yaml --model DIR[,DIR …]

DIR is an exported folder, a run directory, a checkpoint or a Hub id. `evaluation.json` goes beside the model, or to
`output_dir` (with several models: a folder each below it).
"""

import _env  # noqa: F401

from pathlib import Path

from genesis_hf.config import EvaluateRecipe, parse_recipe, recipe_yaml
from genesis_hf.compare import comparison, distinct_names, load_evaluation, markdown
from genesis_hf.evaluate import evaluate
from genesis_hf.errors import report_user_errors
from genesis_hf.export import resolve_model


def main() -> None:
    (recipe,) = parse_recipe(EvaluateRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    names = distinct_names([Path(model) for model in recipe.model])
    for model, name in zip(recipe.model, names, strict=True):
        folder = resolve_model(model)
        output_dir = Path(recipe.output_dir or folder)
        if recipe.output_dir and len(names) > 1:
            output_dir /= name.replace("/", "-")
        print(f"{model} → {output_dir}", flush=True)
        evaluate(folder, recipe, output_dir)
        print(markdown(comparison([load_evaluation(output_dir)])))


if __name__ == "__main__":
    with report_user_errors():
        main()
