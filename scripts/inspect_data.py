"""Show the rows that a pretraining recipe trains on, as text or one object a row.

python scripts/inspect_data.py --config recipes/demo/pretrain.yaml --num_rows 3 [--start ROW] [--format jsonl]
python scripts/inspect_data.py --config … --rank 1 --world_size 4     # the rows that process 1 of 4 gets
"""

import _env  # noqa: F401

import json

from genesis_hf.config import InspectDataRecipe, PretrainRecipe, parse_recipe, recipe_yaml
from genesis_hf.inspection import inspect_rows
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.tokenizer import load_tokenizer


def main() -> None:
    wanted, recipe = parse_recipe(InspectDataRecipe, PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(wanted), recipe_yaml(recipe), sep="", end="")
        return

    tokenizer = load_tokenizer(recipe.tokenizer)
    shown = 0
    for row in inspect_rows(recipe, tokenizer, wanted):
        print(json.dumps(row.summary()) if wanted.format == "jsonl" else row.text(tokenizer) + "\n", flush=True)
        shown += 1
    if not shown:
        raise UserError(f"the data ends before row {wanted.start:,}")


if __name__ == "__main__":
    with report_user_errors():
        main()
