"""The trunk and its branches: pretrain to each milestone, and do there what the recipe says.

    python scripts/cycle.py --config recipes/M/cycle.yaml [--scheduler slurm] [--dry_run true]

Every stage is an ordinary command, printed before it runs. What is finished is recognised by what went into it; a stage
that fails stops its branch only. Interrupted at any point, the same line goes on where it was.
"""

import _env  # noqa: F401

import os
import shlex
import sys

from genesis_hf.config import parse_recipe, split_arguments
from genesis_hf.cycle.recipe import CycleRecipe
from genesis_hf.cycle.slurm import job_script, sbatch_line, submit
from genesis_hf.cycle.status import status_table
from genesis_hf.cycle.tree import make_tree, records
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.stages import Stages, only_one


def main() -> None:
    (recipe,) = parse_recipe(CycleRecipe)
    config, settings = split_arguments(sys.argv[1:])
    for_jobs = ["--config", str(config)]
    for_jobs += [w for k, v in settings if k not in ("scheduler", "dry_run", "stage") for w in (f"--{k}", v)]
    stages = Stages(make_tree(recipe), records(recipe))
    # torch's launcher otherwise kills a training 30 seconds after Ctrl-C, amid its save
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")

    if recipe.dry_run:
        for stage in stages.all.values():
            print(f"# {stage.title}{', after ' + ', '.join(stage.after) if stage.after else ''}")
            if recipe.scheduler == "slurm":
                names = [f"<{name}>" for name in stage.after]
                print(
                    f"{shlex.join(sbatch_line(stage, stages.folder, names))} <<'EOF'\n{job_script(stage, for_jobs)}EOF"
                )
            print(f"{shlex.join(stage.command)}\n")
        return
    if recipe.stage is not None:
        if recipe.stage not in stages.all:
            raise UserError(f"stage {recipe.stage}: not in this tree; it has {', '.join(stages.all)}")
        stages.run(stages.all[recipe.stage])
        return
    if recipe.scheduler == "slurm":
        submit(stages, for_jobs)
        return

    with only_one(recipe.output_dir):
        try:
            ran = stages.run_all()
        finally:
            print(f"\n{status_table(stages)}")
    print(f"\n{'all is finished' if ran else 'nothing was left to do'}; python scripts/lineage.py shows the tree")


if __name__ == "__main__":
    with report_user_errors():
        main()
