"""Sample a chat model's answers to a set of prompts and measure their style.

    python scripts/sample_answers.py --model DIR --output_file answers.jsonl [--prompts prompts.jsonl]

The figures go to answers.summary.json. Interrupted, the same command goes on; finished, it says that the answers are
there. Answers made with other settings are never overwritten.
"""

import _env  # noqa: F401

import json
from pathlib import Path

from genesis_hf.config import SampleRecipe, parse_recipe, recipe_dict, recipe_yaml, write_text
from genesis_hf.errors import UserError, report_user_errors

NOT_IN_ANSWERS = ("env", "dry_run", "output_file", "batch_size")
"""Keys of the recipe that don't change the answers."""


def main() -> None:
    (recipe,) = parse_recipe(SampleRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    # After the dry run: these bring torch and TRL, which take seconds.
    from genesis_hf.answers import UnfinishedAnswers, differing, read_answers, read_settings, summary_path
    from genesis_hf.export import resolve_model
    from genesis_hf.files import file_sha256, folder_sha256
    from genesis_hf.generate import STYLE_PROMPTS, load_chat, read_prompts, sample_batches, sampling
    from genesis_hf.style import measure_style, style_table

    prompts_file = Path(recipe.prompts or STYLE_PROMPTS)
    prompts = read_prompts(prompts_file, recipe.num_examples)
    model_folder = resolve_model(recipe.model)
    made_from = {
        "recipe": {key: value for key, value in recipe_dict(recipe).items() if key not in NOT_IN_ANSWERS},
        "prompts_sha256": file_sha256(prompts_file),
        "model_sha256": folder_sha256(model_folder),
    }

    # ------------------------------------------------------------------------------------------------
    # Finished before?
    # ------------------------------------------------------------------------------------------------
    if Path(recipe.output_file).exists():
        settings = read_settings(recipe.output_file)
        if other := differing(settings, made_from):
            made = f"with another {', '.join(other)}" if settings else "with settings that are not known"
            raise UserError(f"{recipe.output_file}: holds answers made {made}; choose another output_file or remove it")
        print(f"already answered: {recipe.output_file}\n{style_table(measure_style(read_answers(recipe.output_file)))}")
        return

    # ------------------------------------------------------------------------------------------------
    # Answer what is left
    # ------------------------------------------------------------------------------------------------
    unfinished = UnfinishedAnswers(recipe.output_file, made_from)
    if unfinished.done:
        print(f"going on after {len(unfinished.done)} of {len(prompts)} answers")
    model, tokenizer = load_chat(str(model_folder))
    settings = sampling(tokenizer, recipe)
    for batch in sample_batches(model, tokenizer, prompts, settings, recipe.batch_size, recipe.seed, unfinished.done):
        unfinished.add(batch)

    # ------------------------------------------------------------------------------------------------
    # Measure
    # ------------------------------------------------------------------------------------------------
    style = measure_style([unfinished.done[number] for number in sorted(unfinished.done)])
    summary = {"answers": len(prompts), "style": style, "made_from": made_from}
    write_text(summary_path(recipe.output_file), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    answers = unfinished.finish()
    print(f"{len(answers)} answers → {recipe.output_file}\n{style_table(style)}\n")
    for answer in answers[:3]:
        print(f"> {answer.prompt[-1]['content']}\n{answer.answer}{'' if answer.stopped else ' …'}\n")


if __name__ == "__main__":
    with report_user_errors():
        main()
