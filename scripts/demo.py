"""The whole road on two CPU cores: text, tokenizer, pretraining, SFT, DPO, evaluations, report.

    bash scripts/demo.sh [--text DIR] [--output_dir runs/demo]

Every step is an ordinary command, printed before it runs. Interrupted at any point, the same line goes on.
"""

import _env  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

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
    text = {
        split: [{"name": k, "weight": weights[k], "paths": [f"{root}/data/{split}/{k}.jsonl"]} for k in kinds]
        for split in ("pretrain", "heldout")
    }
    max_steps = read_yaml(f"{RECIPES}/pretrain.yaml")["max_steps"]

    def stage(name: str, title: str, script: str, recipe: str | None, produces: list[str], **settings: object) -> Stage:
        command = [sys.executable, f"scripts/{script}.py"]
        if recipe:
            command += ["--config", f"{RECIPES}/{recipe}.yaml"]
        for key, value in settings.items():
            command += [
                f"--{key}",
                value
                if isinstance(value, str)
                else yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n..."),
            ]
        return Stage(name, title, command, f"{RECIPES}/{recipe}.yaml" if recipe else None, produces)

    def pretrain(name: str, title: str, steps: int, **settings: object) -> Stage:
        return stage(
            name, title, "pretrain", "pretrain", [f"{root}/pretrain/checkpoints/step_{steps:09d}"],
            output_dir=f"{root}/pretrain", tokenizer=f"{root}/tokenizer",
            sources=text["pretrain"], eval_sources=text["heldout"], **settings,
        )  # fmt: skip

    def evaluate(name: str, model: str) -> Stage:
        return stage(
            f"evaluate-{name}", f"Evaluate {name}", "evaluate", "eval", [f"{root}/evaluation/{name}/evaluation.json"],
            model=model, include_path=f"{root}/data/tasks", held_out_sources=text["heldout"],
            output_dir=f"{root}/evaluation/{name}",
        )  # fmt: skip

    def sample(name: str, model: str) -> Stage:
        return stage(
            f"sample-{name}", f"Sample answers of {name}", "sample_answers", "sample", [f"{root}/samples/{name}.jsonl"],
            model=model, prompts=f"{root}/data/prompts.jsonl", output_file=f"{root}/samples/{name}.jsonl",
        )  # fmt: skip

    prepare = {"output_dir": f"{root}/data"} | ({"text": demo.text} if demo.text else {})
    chat, preference = f"{root}/data/sft", f"{root}/data/preference"
    base, sft, dpo = f"{root}/base", f"{root}/sft/final", f"{root}/dpo/final"
    return [
        stage("data", "Prepare text, conversations, preferences and tasks", "prepare_demo", None, [f"{root}/data"], **prepare),
        stage("tokenizer", "Train the tokenizer", "train_tokenizer", "tokenizer", [f"{root}/tokenizer/tokenizer.json"],
              output_dir=f"{root}/tokenizer", sources=text["pretrain"]),
        pretrain("pretrain-first-half", "Pretrain the first half", max_steps // 2, stop_at_step=max_steps // 2),
        pretrain("pretrain-second-half", "Resume in a new process and pretrain the rest", max_steps),
        stage("export", "Export as a plain Llama folder and prove it", "export", None, [f"{base}/parity.json"],
              checkpoint=f"{root}/pretrain", output_dir=base, held_out_sources=text["heldout"]),
        evaluate("base", base),
        stage("sft", "Supervised fine-tuning", "sft", "sft", [f"{sft}/config.json"], model=base, output_dir=f"{root}/sft",
              mixture=[{"name": "docstrings", "paths": [f"{chat}/train.jsonl"]}],
              eval_mixture=[{"name": "docstrings", "paths": [f"{chat}/heldout.jsonl"]}]),
        evaluate("sft", sft),
        sample("sft", sft),
        stage("dpo", "Preference training", "dpo", "dpo", [f"{dpo}/config.json"], model=sft, output_dir=f"{root}/dpo",
              mixture=[{"name": "direct", "paths": [f"{preference}/train.jsonl"]}],
              eval_mixture=[{"name": "direct", "paths": [f"{preference}/heldout.jsonl"]}]),
        evaluate("dpo", dpo),
        sample("dpo", dpo),
        stage("report", "Write the report", "report", None, [f"{root}/report.html"], run=root, output_file=f"{root}/report.html"),
    ]  # fmt: skip


def show_results(demo: Demo, records: list[dict]) -> None:
    """The table, a few answers, and what to do next."""
    from genesis_hf.report import read_road, results_table, sample_text

    root = demo.output_dir
    road = read_road(root)
    print("\n" + results_table(road))
    print("\n" + sample_text(road))
    minutes = sum(record["seconds"] for record in records) / 60
    memory = max(record["peak_memory_gib"] for record in records)
    print(f"\n{minutes:.1f} minutes of work, {memory:.2f} GiB in the largest process")
    print(f"report: {root}/report.html")
    print(f"talk to it: {sys.executable} scripts/chat.py {root}/dpo/final --format chatml")


if __name__ == "__main__":
    with report_user_errors():
        main()
