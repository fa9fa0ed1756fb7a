"""Look at what a model writes before evaluating it: 6 prompts, greedy and sampled, each judged OK, WEAK or FAIL.

    python scripts/smoke_generate.py MODEL [--temperatures 0,0.8] [--prompts prompts.jsonl] [--output_file look.json]

MODEL is an exported folder, a run directory, a checkpoint or a Hub id. A base model continues sentences; a model whose
tokenizer has a chat template answers questions. `--strict true` ends with exit code 1 where anything is FAIL.
"""

import _env  # noqa: F401

import json
import sys

from genesis_hf.config import QuickLookRecipe, parse_recipe, recipe_yaml, write_text
from genesis_hf.errors import report_user_errors


def main() -> None:
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("--"):  # the model may stand alone
        argv = ["--model", *argv]
    (recipe,) = parse_recipe(QuickLookRecipe, argv=argv)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    from genesis_hf.evaluation.quick_look import as_values, look, summary
    from genesis_hf.generate import load_chat

    model, tokenizer = load_chat(recipe.model)
    looks = look(model, tokenizer, recipe, {"auto": None, "true": True, "false": False}[recipe.chat])
    for one in looks:
        reasons = f" ({'; '.join(one.reasons)})" if one.reasons else ""
        print(f"{one.verdict:4} T={one.temperature:g} {one.prompt!r}{reasons}\n     {one.text.strip()[:300]!r}")
    print(summary(looks))
    if recipe.output_file:
        write_text(recipe.output_file, json.dumps(as_values(looks), indent=2, ensure_ascii=False) + "\n")
        print(f"written to {recipe.output_file}")
    if recipe.strict and any(one.verdict == "FAIL" for one in looks):
        sys.exit(1)


if __name__ == "__main__":
    with report_user_errors():
        main()
