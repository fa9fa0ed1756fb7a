"""Turn a base model into a chat model: TRL's SFTTrainer over a mixture of conversations.

    python scripts/sft.py --config recipes/M/sft.yaml [--model DIR --output_dir RUN --learning_rate 2e-5 …]

The result is RUN/final, a plain Llama folder. The same command goes on after an interruption.
"""

import _env  # noqa: F401

from genesis_hf.errors import report_user_errors
from genesis_hf.post_training.recipe import batch_plan, resolved_yaml
from genesis_hf.post_training.sft import parse_sft_recipe, train_sft
from genesis_hf.processes import is_main


def main() -> None:
    recipe, training = parse_sft_recipe()
    if recipe.dry_run:
        print(resolved_yaml(recipe, training), end="")
        print(f"# {batch_plan(training, 'conversations')}")
        return
    summary = train_sft(recipe, training)
    if summary and is_main():
        print_summary(summary, training.output_dir)


def print_summary(summary: dict, output_dir: str) -> None:
    words = "already finished" if summary["already_finished"] else "finished"
    print(f"{words}: {summary['steps']} steps in {summary['seconds']:.0f} s → {output_dir}/final")
    if summary["held_out"]:
        before, after = summary["held_out"]["before"], summary["held_out"]["after"]
        print(
            f"held-out answers: loss {before['loss']:.4f} ± {before['stderr']:.4f} → "
            f"{after['loss']:.4f} ± {after['stderr']:.4f} nats a token ({after['tokens']:,} tokens)"
        )


if __name__ == "__main__":
    with report_user_errors():
        main()
