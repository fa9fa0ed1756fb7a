"""Evaluated models side by side, with standard errors, chance levels and the words that follow from them.

    python scripts/compare.py BASE SFT DPO [--output_file compare.html] [--plot compare.png]

Each is a folder that holds an evaluation.json (scripts/evaluate.py); the first one is what the others are held
against. Scores that were not measured alike are refused. Figures that cannot be those of the model that was trained
are headed by a warning; `--strict` then ends with exit code 1.
"""

import _env  # noqa: F401

import argparse
import sys

from genesis_hf.config import CompareRecipe
from genesis_hf.errors import report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FOLDER")
    parser.add_argument("--output_file", help="also write the table here: .md, .html or .json")
    parser.add_argument("--plot", help="also draw bars with 95 %% intervals: .png or .svg")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where figures cannot be right")
    recipe = CompareRecipe(**vars(parser.parse_args()))

    from genesis_hf.evaluation.compare import comparison, load_evaluation
    from genesis_hf.evaluation.tables import markdown, write_comparison

    result = comparison([load_evaluation(model) for model in recipe.models])
    print(markdown(result))
    for path in (recipe.output_file, recipe.plot):
        if path:
            write_comparison(result, path)
            print(f"written to {path}")
    if recipe.strict and result["warnings"]:
        sys.exit(1)


if __name__ == "__main__":
    with report_user_errors():
        main()
