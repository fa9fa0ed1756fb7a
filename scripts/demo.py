"""The whole road on two CPU cores: text, tokenizer, pretraining, SFT, DPO, evaluations, report.

    bash scripts/demo.sh [--text DIR] [--output_dir runs/demo]

Every step is an ordinary command, printed before it runs. Interrupted at any point, the same line goes on.
"""

import _env  # noqa: F401

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from genesis_hf.config import parse_recipe, read_yaml, setting
from genesis_hf.errors import report_user_errors
from genesis_hf.stages import Stage, finished_stages, only_one, run_stages

RECIPES = "recipes/demo"


@dataclass
class Demo:
    """What `scripts/demo.sh` understands."""

    text: str | None = setting(None, "folder of .txt .md .jsonl(.gz) .parquet to pretrain on; null: Python's own")
    output_dir: str = setting("runs/demo", "everything goes here")
    dry_run: bool = setting(False, "print the commands and touch nothing")


def main() -> None:
    (demo,) = parse_recipe(Demo)
    stages = road(demo)
    if demo.dry_run:
        for stage in stages:
            print(f"# {stage.title}\n{' '.join(stage.command)}\n")
        return

    with only_one(demo.output_dir):
        ran = run_stages(stages, f"{demo.output_dir}/stages")
        records = finished_stages(stages, Path(demo.output_dir) / "stages")

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
        produces: str,
        recipe: str | None = None,
        *arguments: str,
        **settings: object,
    ) -> Stage:
        path = f"{RECIPES}/{recipe}.yaml" if recipe else None
        command = [sys.executable, f"scripts/{script}.py", *arguments] + (["--config", path] if path else [])
        written = read_yaml(path) if path else {}
        for key, value in settings.items():
            if written.get(key) != value:  # a command shows what its recipe doesn't say already
                command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return Stage(name, title, command, path, [f"{root}/{produces}"])

    def pretrain(name: str, title: str, until: int, **settings: object) -> Stage:
        settings |= {"output_dir": f"{root}/pretrain", "tokenizer": f"{root}/tokenizer"}
        settings |= {"sources": train_text, "eval_sources": held_out_text}
        return stage(name, title, "pretrain", f"pretrain/checkpoints/step_{until:09d}", "pretrain", **settings)

    def evaluate(name: str, model: str) -> Stage:
        settings = {"model": model, "include_path": f"{root}/data/tasks", "held_out_sources": held_out_text}
        output = f"evaluation/{name}"
        return stage(
            f"evaluate-{name}",
            f"Evaluate {name}",
            "evaluate",
            f"{output}/evaluation.json",
            "eval",
            output_dir=f"{root}/{output}",
            **settings,
        )

    def sample(name: str, model: str) -> Stage:
        output = f"samples/{name}.jsonl"
        settings = {"model": model, "prompts": f"{root}/data/prompts.jsonl", "output_file": f"{root}/{output}"}
        return stage(f"sample-{name}", f"Sample answers of {name}", "sample_answers", output, "sample", **settings)

    def train_on(folder: str) -> dict[str, object]:
        train, held_out = (f"{root}/data/{folder}/{split}.jsonl" for split in ("train", "heldout"))
        return {
            "output_dir": f"{root}/{'dpo' if folder == 'preference' else folder}",
            "mixture": [{"name": "docstrings", "paths": [train]}],
            "eval_mixture": [{"name": "docstrings", "paths": [held_out]}],
        }

    data = {"output_dir": f"{root}/data"} | ({"text": demo.text} if demo.text else {})
    tokenizer = {"output_dir": f"{root}/tokenizer", "sources": train_text}
    export = {"checkpoint": f"{root}/pretrain", "output_dir": f"{root}/base", "held_out_sources": held_out_text}
    base, sft, dpo = f"{root}/base", f"{root}/sft/final", f"{root}/dpo/final"
    return [
        stage("data", "Prepare text, conversations, preferences, tasks", "prepare_demo", "data/summary.json", **data),
        stage("tokenizer", "Train the tokenizer", "train_tokenizer", "tokenizer/recipe.yaml", "tokenizer", **tokenizer),
        pretrain("pretrain-1", "Pretrain the first half", max_steps // 2, stop_at_step=max_steps // 2),
        pretrain("pretrain-2", "Resume in a new process and pretrain the second half", max_steps),
        stage(
            "export", "Export as a plain Llama folder, and prove it", "export", "base/parity.json", "export", **export
        ),
        evaluate("base", base),
        stage("sft", "Supervised fine-tuning", "sft", "sft/summary.json", "sft", model=base, **train_on("sft")),
        evaluate("sft", sft),
        sample("sft", sft),
        stage("dpo", "Preference training", "dpo", "dpo/summary.json", "dpo", model=sft, **train_on("preference")),
        evaluate("dpo", dpo),
        sample("dpo", dpo),
        stage("report", "Write the report", "report", "report.html", None, root),
    ]


def show_results(demo: Demo, records: list[dict]) -> None:
    """The table, a few answers, and what to do next."""
    from genesis_hf.report import collect, findings, results_rows, sample_text, text_table

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
