"""Count evaluation items and held-out documents that stand in a pretraining recipe's sources, by n-gram overlap.

    python scripts/decontaminate.py --config recipes/M/pretrain.yaml --evaluation_sets "DIR,GLOB,…" \
        --decontamination_dir DIR [--ngram 13] [--remove true]

Interrupted, the same command goes on. `decontamination.json` in the folder holds figures and examples; with `--remove`,
`excluded_documents.txt` is for the recipe's `exclude_documents`.
"""

import _env  # noqa: F401

import json
from pathlib import Path

from genesis_hf.config import PretrainRecipe, parse_recipe, recipe_yaml, write_text
from genesis_hf.data.contamination.decontaminate import (
    DecontaminateSettings,
    build_report,
    decontaminate,
    report_table,
    write_excluded,
)
from genesis_hf.errors import report_user_errors


def main() -> None:
    settings, recipe = parse_recipe(DecontaminateSettings, PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(settings) + recipe_yaml(recipe), end="")
        return

    # -----------------------------------------------------------------------------------------------------
    # Index, scan, report
    # -----------------------------------------------------------------------------------------------------
    sets, targets, units = decontaminate(settings, recipe)
    report = build_report(settings, sets, targets, units)
    path = Path(settings.decontamination_dir) / "decontamination.json"
    write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(report_table(report))
    print(f"report with examples: {path}")

    # -----------------------------------------------------------------------------------------------------
    # What to leave out
    # -----------------------------------------------------------------------------------------------------
    if settings.remove:
        files = write_excluded(settings, recipe, sets, targets, units)
        print(f"put this into the recipe:\nexclude_documents: {json.dumps(files)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
