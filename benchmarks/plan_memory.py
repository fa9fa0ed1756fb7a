"""Memory that scripts/plan.py predicts for a CPU, against what a run of so many steps really took.

    python benchmarks/plan_memory.py [--cases demo,float32] [--steps 40] [--output_file figures.json]

Needs the demo's data and tokenizer (scripts/prepare_demo.py and scripts/train_tokenizer.py, as scripts/demo.sh calls
them). Each case is a pretraining run in a process of its own, one after the other, with checkpoints and held-out
evaluations; measured is the process's largest resident set (`memory_gib` in metrics.jsonl).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from genesis_hf.config import PretrainRecipe, parse_recipe, write_text
from genesis_hf.planning.memory import GIB
from genesis_hf.planning.planner import plan
from genesis_hf.planning.recipe import PlanRecipe
from genesis_hf.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]

WIDE = {
    "model.hidden_size": 768,
    "model.num_hidden_layers": 8,
    "model.num_attention_heads": 12,
    "model.num_key_value_heads": 4,
    "model.intermediate_size": 2048,
}
TINY = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 1,
    "model.intermediate_size": 64,
}
CASES = {
    "demo": {},
    "float32": {"bf16": False},
    "adamw": {"optim": "adamw"},
    "a model of nothing": {**TINY, "per_device_train_batch_size": 1},
    "16 rows": {"per_device_train_batch_size": 16},
    "16 rows, full": {"per_device_train_batch_size": 16, "gradient_checkpointing": "full"},
    "16 rows, selective": {"per_device_train_batch_size": 16, "gradient_checkpointing": "selective"},
    "16 rows, sdpa": {"per_device_train_batch_size": 16, "attn_implementation": "sdpa"},
    "53M": WIDE,
    "53M, adamw": {**WIDE, "optim": "adamw"},
    "53M, float32": {**WIDE, "bf16": False},
    "53M, 1 row x 4": {**WIDE, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
}
"""Overrides of recipes/demo/pretrain.yaml."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES).replace(", ", "; "), help="names, comma-separated")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output_file")
    arguments = parser.parse_args()
    figures = {}
    print(f"{'':22}{'measured':>10}{'predicted':>11}{'':>8}")
    for name in [case.replace("; ", ", ") for case in arguments.cases.split(",")]:
        measured, predicted = compare(CASES[name], arguments.steps)
        figures[name] = {"measured_gib": measured, "predicted_gib": round(predicted, 3)}
        print(f"{name:22}{measured:>10.3f}{predicted:>11.3f}{predicted / measured - 1:>+8.0%}", flush=True)
    if arguments.output_file:
        write_text(arguments.output_file, json.dumps(figures, indent=1) + "\n")


def compare(changes: dict[str, object], steps: int) -> tuple[float, float]:
    """GiB measured and predicted for the demo's recipe with these changes."""
    with tempfile.TemporaryDirectory() as folder:
        few = {
            "output_dir": f"{folder}/run",
            "max_steps": steps,
            "warmup_steps": 2,
            "decay_steps": steps // 3,
            "save_steps": steps // 2,
            "eval_steps": steps // 2,
            "eval_rows": 8,
        }
        words = [word for key, value in {**few, **changes}.items() for word in (f"--{key}", str(value).lower())]
        config = ["--config", str(ROOT / "recipes" / "demo" / "pretrain.yaml")]
        wanted, recipe = parse_recipe(PlanRecipe, PretrainRecipe, argv=[*config, "--device", "cpu", *words])
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "scripts/pretrain.py", *config, *words]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        measured = max(record["memory_gib"] for record in read_metrics(f"{folder}/run/metrics.jsonl"))
    return measured, plan(wanted, recipe).memory.total / GIB


if __name__ == "__main__":
    main()
