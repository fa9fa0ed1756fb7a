"""Tokenise a pretraining recipe's sources once, into token shards that training memory-maps.

    python scripts/prepare_data.py --config recipes/genesis-1b/pretrain.yaml --prepared_dir data/prepared [--num_proc N]

An interrupted call goes on where it was. docs/prepare_data.md says more, also how a task array does it.
"""

import _env  # noqa: F401

from pathlib import Path

from genesis_hf.config import PretrainRecipe, parse_recipe, recipe_yaml
from genesis_hf.data.preparation.prepare import PrepareSettings, prepare, verify, with_prepared
from genesis_hf.errors import report_user_errors


def main() -> None:
    settings, recipe = parse_recipe(PrepareSettings, PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(with_prepared(recipe, settings)), end="")
        return
    if settings.verify:
        verify(recipe, settings)
        print("every file is what its index.json says")
        return

    # -----------------------------------------------------------------------------------------------------
    # Tokenise
    # -----------------------------------------------------------------------------------------------------
    totals = prepare(recipe, settings)
    if settings.task_index is not None:
        print(f"task {settings.task_index} of {settings.num_tasks} is done; a call without task_index writes the index")
        return

    # -----------------------------------------------------------------------------------------------------
    # What came out
    # -----------------------------------------------------------------------------------------------------
    columns = ("documents", "tokens", "held_out", "excluded", "filtered", "empty", "bad")
    print(f"{'source':24}" + "".join(f"{column:>16}" for column in columns))
    for name, counts in totals.items():
        print(f"{name:24}" + "".join(f"{counts[column]:16,}" for column in columns))
        if counts["bad"]:
            print(f"  what could not be read: {Path(settings.prepared_dir) / name / 'bad_records.jsonl'}")
    print(f"recipe that trains on it: {Path(settings.prepared_dir) / 'pretrain.yaml'}")


if __name__ == "__main__":
    with report_user_errors():
        main()
