"""Sample a chat model's answers to a set of prompts and measure their style.

    python scripts/sample_answers.py --model DIR --prompts prompts.jsonl --output_file answers.jsonl

The figures go to answers.summary.json. The same model, prompts and settings again: says that the answers are there.
"""

import _env  # noqa: F401

import json
from pathlib import Path

from genesis_hf.config import SampleRecipe, parse_recipe, recipe_dict, recipe_yaml, write_text
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(SampleRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    # After the dry run: these bring torch and TRL, which take seconds.
    from genesis_hf.files import file_sha256, folder_sha256, read_json
    from genesis_hf.generate import load_chat, read_prompts, sample_answers, sampling, write_answers
    from genesis_hf.style import measure_style, style_table

    prompts = read_prompts(recipe.prompts, recipe.num_examples)
    summary_file = Path(recipe.output_file).with_suffix(".summary.json")
    made_from = {
        "recipe": {key: value for key, value in recipe_dict(recipe).items() if key not in ("env", "dry_run")},
        "prompts_sha256": file_sha256(Path(recipe.prompts)),
        "model_sha256": folder_sha256(Path(recipe.model)) if Path(recipe.model).is_dir() else None,
    }
    summary = read_json(summary_file)
    if summary.get("made_from") == made_from and Path(recipe.output_file).exists():
        print(f"already answered: {recipe.output_file}\n{style_table(summary['style'])}")
        return
    model, tokenizer = load_chat(recipe.model)
    answers = sample_answers(model, tokenizer, prompts, sampling(tokenizer, recipe), recipe.batch_size, recipe.seed)
    style = measure_style(answers)
    write_answers(recipe.output_file, answers)
    write_text(
        summary_file,
        json.dumps({"answers": len(answers), "style": style, "made_from": made_from}, indent=2) + "\n",
    )
    print(f"{len(answers)} answers → {recipe.output_file}\n{style_table(style)}\n")
    for answer in answers[:3]:
        print(f"> {answer.prompt[-1]['content']}\n{answer.answer}{'' if answer.stopped else ' …'}\n")


if __name__ == "__main__":
    with report_user_errors():
        main()
