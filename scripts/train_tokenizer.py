"""Train a tokenizer, or convert GPT-2's files, into a folder that AutoTokenizer reads.

python scripts/train_tokenizer.py --config recipes/genesis-1b/tokenizer.yaml [--key value …]
"""

import _env  # noqa: F401

import json
from pathlib import Path

from genesis_hf.config import TokenizerRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors
from genesis_hf.tokenizer import fertility_table
from genesis_hf.tokenizer_training import build_tokenizer, is_finished


def main() -> None:
    (recipe,) = parse_recipe(TokenizerRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    # -----------------------------------------------------------------------------------------------------
    # Read text, train, convert, prove
    # -----------------------------------------------------------------------------------------------------
    if is_finished(recipe):
        print(f"{recipe.output_dir} is finished: this recipe has made it already")
        return
    proof = build_tokenizer(recipe)

    # -----------------------------------------------------------------------------------------------------
    # What came out
    # -----------------------------------------------------------------------------------------------------
    equal = "ids equal SentencePiece's and " if proof.sentencepiece else ""
    print(f"proved on {proof.texts:,} texts, {proof.tokens:,} tokens: {equal}decoding gives the text back")
    figures = json.loads((Path(recipe.output_dir) / "fertility.json").read_text(encoding="utf-8"))
    if figures:
        print(fertility_table(figures))
    print(f"tokenizer: {recipe.output_dir}")


if __name__ == "__main__":
    with report_user_errors():
        main()
