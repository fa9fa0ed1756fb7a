"""Measure models with lm-eval and on held-out text; results are kept, so a second run measures only what is new.

    python scripts/evaluate.py --config recipes/M/eval.yaml --model DIR[,DIR …]
    accelerate launch --config_file accelerate_configs/ddp_2gpu.yaml scripts/evaluate.py …

DIR is an exported folder, a run directory, a checkpoint or a Hub id. `evaluation.json` goes beside the model, or to
`output_dir` (with several models: a folder each below it). Where the figures cannot be those of the model that was
trained, the table is headed by a warning, and `--strict true` ends with exit code 1.
"""

import _env  # noqa: F401

import sys
from pathlib import Path

from genesis_hf.config import EvaluateRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(EvaluateRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    # After the dry run: these bring torch and lm-eval, which take seconds.
    from genesis_hf.evaluation.compare import comparison, distinct_names, load_evaluation
    from genesis_hf.evaluation.evaluate import evaluate, start_processes
    from genesis_hf.evaluation.sanity import summary, warnings
    from genesis_hf.evaluation.tables import markdown
    from genesis_hf.export import resolve_model

    processes = start_processes()
    names = distinct_names([Path(model) for model in recipe.model])
    impossible = []
    for model, name in zip(recipe.model, names, strict=True):
        with processes.main_process_first():  # it exports a checkpoint, the others find the export
            folder = resolve_model(model)
        output_dir = Path(recipe.output_dir or folder)
        if recipe.output_dir and len(names) > 1:
            output_dir /= name.replace("/", "-")
        processes.print(f"{model} → {output_dir}", flush=True)
        evaluate(folder, recipe, output_dir)
        if processes.is_main_process:
            result = load_evaluation(output_dir)
            print(markdown(comparison([result])))
            if warnings(result.values):
                impossible.append(model)
            else:
                print(f"{name}: {summary(result.values)}")
    processes.wait_for_everyone()
    if recipe.strict and impossible:
        sys.exit(1)


if __name__ == "__main__":
    with report_user_errors():
        main()
