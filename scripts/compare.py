"""Evaluated models side by side, with standard errors, chance levels and the words that follow from them.

    python scripts/compare.py BASE SFT DPO [--output_file compare.html]

Each is a folder that holds an evaluation.json (scripts/evaluate.py); the first one is what the others are held
against. Scores that were not measured alike are refused.
"""

import _env  # noqa: F401

import argparse

from genesis_hf.compare import comparison, load_evaluation, markdown, write_comparison
from genesis_hf.config import CompareRecipe
from genesis_hf.errors import report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FOLDER")
    parser.add_argument("--output_file", help="also write the table here: .md, .html or .json")
    recipe = CompareRecipe(**vars(parser.parse_args()))
    result = comparison([load_evaluation(model) for model in recipe.models])
    print(markdown(result))
    if recipe.output_file:
        write_comparison(result, recipe.output_file)
        print(f"written to {recipe.output_file}")


if __name__ == "__main__":
    with report_user_errors():
        main()
