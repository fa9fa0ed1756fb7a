"""The whole road on two CPU cores: text, tokenizer, pretraining, SFT, DPO, evaluations, report.

    bash scripts/demo.sh [--text DIR] [--output_dir runs/demo]

Every step is an ordinary command, printed before it runs. Interrupted at any point, the same line goes on.
"""

import _env  # noqa: F401

import sys
from dataclasses import dataclass

from genesis_hf.config import parse_recipe, read_yaml, setting
from genesis_hf.errors import report_user_errors
from genesis_hf.stages import Stage, Stages, only_one, script_command

RECIPES = "recipes/demo"


@dataclass
class Demo:
    """What `scripts/demo.sh` understands."""

    text: str | None = setting(None, "folder of .txt .md .jsonl(.gz) .parquet to pretrain on; null: Python's own")
    output_dir: str = setting("runs/demo", "everything goes here")
    dry_run: bool = setting(False, "print the commands and touch nothing")


def main() -> None:
    (demo,) = parse_recipe(Demo)
    stages = Stages(road(demo), f"{demo.output_dir}/stages")
    if demo.dry_run:
        for stage in stages.all.values():
            print(f"# {stage.title}\n{' '.join(stage.command)}\n")
        return

    with only_one(demo.output_dir):
        ran = stages.run_all()
        records = stages.finished()

    if not ran:
        print(f"{demo.output_dir} is finished already; remove it to start afresh.\n")
    show_results(demo, records)


def road(demo: Demo) -> list[Stage]:
    """The stages in the order in which they happen."""
    root = demo.output_dir
    kinds = ["code", "prose"] if demo.text is None else ["text"]
    weights = {"code": 0.75, "prose": 0.25, "text": 1.0}
    train_text = [{"name": k, "weight": weights[k], "paths": [f"{root}/data/pretrain/{k}.jsonl"]} for k in kinds]
    held_out_text = [{"name": k, "paths": [f"{root}/data/heldout/{k}.jsonl"]} for k in kinds]
    max_steps = read_yaml(f"{RECIPES}/pretrain.yaml")["max_steps"]

    def stage(
        name: str,
        title: str,
        script: str,
        produces: list[str],
        after: list[str],
        recipe: str | None = None,
        *arguments: str,
        **settings: object,
    ) -> Stage:
        path = f"{RECIPES}/{recipe}.yaml" if recipe else None
        command = script_command(script, path, settings, arguments)
        return Stage(name, title, command, path, [f"{root}/{product}" for product in produces], after)

    def pretrain(name: str, title: str, until: int, after: str, **settings: object) -> Stage:
        settings |= {"output_dir": f"{root}/pretrain", "tokenizer": f"{root}/tokenizer", "keep_steps": [max_steps // 2]}
        settings |= {"sources": train_text, "eval_sources": held_out_text}
        return stage(
            name, title, "pretrain", [f"pretrain/checkpoints/step_{until:09d}"], [after], "pretrain", **settings
        )

    def evaluate(name: str, model: str, after: str) -> Stage:
        settings = {"model": model, "include_path": f"{root}/data/tasks", "held_out_sources": held_out_text}
        settings |= {"output_dir": f"{root}/evaluation/{name}"}
        product = f"evaluation/{name}/evaluation.json"
        return stage(f"evaluate-{name}", f"Evaluate {name}", "evaluate", [product], [after], "eval", **settings)

    def sample(name: str, model: str) -> Stage:
        output = f"samples/{name}.jsonl"
        settings = {"model": model, "prompts": f"{root}/data/prompts.jsonl", "output_file": f"{root}/{output}"}
        title = f"Sample answers of {name}"
        return stage(f"sample-{name}", title, "sample_answers", [output], [name], "sample", **settings)

    def train(phase: str, title: str, after: str, model: str, folder: str) -> Stage:
        train, held_out = (f"{root}/data/{folder}/{split}.jsonl" for split in ("train", "heldout"))
        settings = {
            "model": model,
            "output_dir": f"{root}/{phase}",
            "mixture": [{"name": "docstrings", "paths": [train]}],
            "eval_mixture": [{"name": "docstrings", "paths": [held_out]}],
        }
        return stage(phase, title, phase, [f"{phase}/final", f"{phase}/summary.json"], [after], phase, **settings)

    data = {"output_dir": f"{root}/data"} | ({"text": demo.text} if demo.text else {})
    prepared = [f"data/{part}" for part in ("summary.json", "pretrain", "heldout", "sft", "preference", "tasks")]
    tokenizer = {"output_dir": f"{root}/tokenizer", "sources": train_text}
    export = {"checkpoint": f"{root}/pretrain", "output_dir": f"{root}/base", "held_out_sources": held_out_text}
    base, sft, dpo = f"{root}/base", f"{root}/sft/final", f"{root}/dpo/final"
    stages = [
        stage("data", "Prepare text, conversations, preferences, tasks", "prepare_demo", prepared, [], **data),
        stage(
            "tokenizer",
            "Train the tokenizer",
            "train_tokenizer",
            ["tokenizer/recipe.yaml", "tokenizer"],
            ["data"],
            "tokenizer",
            **tokenizer,
        ),
        pretrain("pretrain-1", "Pretrain the first half", max_steps // 2, "tokenizer", stop_at_step=max_steps // 2),
        pretrain("pretrain-2", "Resume in a new process and pretrain the second half", max_steps, "pretrain-1"),
        stage(
            "export",
            "Export as a plain Llama folder, and prove it",
            "export",
            ["base", "base/parity.json"],
            ["pretrain-2"],
            "export",
            **export,
        ),
        evaluate("base", base, "export"),
        train("sft", "Supervised fine-tuning", "export", base, "sft"),
        evaluate("sft", sft, "sft"),
        sample("sft", sft),
        train("dpo", "Preference training", "sft", sft, "preference"),
        evaluate("dpo", dpo, "dpo"),
        sample("dpo", dpo),
    ]
    everything = [before.name for before in stages]
    return [*stages, stage("report", "Write the report", "report", ["report.html"], everything, None, root)]


def show_results(demo: Demo, records: list[dict]) -> None:
    """The table, a few answers, and what to do next."""
    from genesis_hf.report.material import collect
    from genesis_hf.report.pages import sample_text
    from genesis_hf.report.results import findings, results_rows
    from genesis_hf.report.tables import text_table

    root = demo.output_dir
    material = collect([root])
    print("\n" + text_table(results_rows(material)) + "\n")
    print("\n".join(findings(material)))
    print("\n" + sample_text(material))
    minutes = sum(record["seconds"] for record in records) / 60
    memory = max(record["peak_memory_gib"] for record in records)
    print(f"\n{minutes:.1f} minutes of work, {memory:.2f} GiB in the largest process")
    print(f"report: {root}/report.html")
    print(f"talk to it: {sys.executable} scripts/chat.py {root}/dpo/final --format chatml")


if __name__ == "__main__":
    with report_user_errors():
        main()
