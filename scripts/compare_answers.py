"""How a model's answers changed: stop rate, hedging, refusals, questions, specificity, repetition, length.

    python scripts/compare_answers.py BEFORE.jsonl AFTER.jsonl … [--output_file style.html] [--plot_file style.png]

Each is a file of scripts/sample_answers.py; the first one is what the others are held against, prompt by prompt.
Answers to other prompts, or sampled with other settings, are refused.
"""

import _env  # noqa: F401

import argparse

from genesis_hf.config import CompareAnswersRecipe
from genesis_hf.errors import report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="+", metavar="ANSWERS.jsonl")
    parser.add_argument("--output_file", help="also write the table here: .md, .html or .json")
    parser.add_argument("--plot_file", help="also draw the differences here: .png, .svg or .pdf")
    recipe = CompareAnswersRecipe(**vars(parser.parse_args()))

    from genesis_hf.style.comparison import compare_answers, load_answers
    from genesis_hf.style.comparison_page import draw_differences, markdown, write_comparison

    result = compare_answers([load_answers(path) for path in recipe.answers])
    print(markdown(result))
    if recipe.output_file:
        write_comparison(result, recipe.output_file)
    if recipe.plot_file:
        draw_differences(result, recipe.plot_file)
    for path in filter(None, (recipe.output_file, recipe.plot_file)):
        print(f"written to {path}")


if __name__ == "__main__":
    with report_user_errors():
        main()
