"""Train a chat model on preferences: TRL's DPOTrainer from and against the model given.

    python scripts/dpo.py --config recipes/M/dpo.yaml [--model DIR --output_dir RUN --beta 0.1 …]

The result is RUN/final, a plain Llama folder. The same command goes on after an interruption.
"""

import _env  # noqa: F401

from genesis_hf.post_training.dpo import parse_dpo_recipe, train_dpo
from genesis_hf.errors import report_user_errors
from genesis_hf.post_training.recipe import batch_plan, resolved_yaml


def main() -> None:
    recipe, training = parse_dpo_recipe()
    if recipe.dry_run:
        print(resolved_yaml(recipe, training), end="")
        print(f"# {batch_plan(training, 'pairs')}")
        return
    summary = train_dpo(recipe, training)
    if summary:
        print_summary(summary, training.output_dir)


def print_summary(summary: dict, output_dir: str) -> None:
    words = "already finished" if summary["already_finished"] else "finished"
    print(f"{words}: {summary['steps']} steps in {summary['seconds']:.0f} s → {output_dir}/final")
    held_out = summary["held_out"]
    if not held_out:
        return
    before, after = held_out["before"], held_out["after"]
    print(f"{held_out['pairs']} held-out pairs                    before            after")
    for name, words in (("ranked", "ranked right"), ("ranked_per_token", "ranked right, per token")):
        print(f"  {words:30} {percent(before[name])}  {percent(after[name])}")
    print(f"  {'implicit reward ranks right':30} {'':16}  {percent(held_out['implicit_reward'])}")
    for name in ("chosen", "rejected"):
        key = f"log_probability_{name}"
        print(f"  {f'log-probability of {name}':30} {before[key]:9.2f} nats    {after[key]:9.2f} nats")
    lengths = held_out["mean_tokens"]
    print(f"  mean tokens: chosen {lengths['chosen']:.1f}, rejected {lengths['rejected']:.1f}")


def percent(share: dict) -> str:
    return f"{share['value']:6.1%} ± {share['stderr'] or 0:6.1%}"


if __name__ == "__main__":
    with report_user_errors():
        main()
