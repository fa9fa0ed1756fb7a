"""A recipe's first steps in a folder of their own, through the scripts that a user calls.

SCRATCH/
    trial.yaml, resume.yaml    the recipe, shortened
    run/                       the run directory of both
    export/                    the checkpoint as a Llama folder
    *.log                      what the commands said
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_folder, find_checkpoint, read_trainer_state
from genesis_hf.config import PretrainRecipe, recipe_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.preflight.commands import Ended, run_command
from genesis_hf.training.metrics import read_metrics

Records = dict[int, dict[str, Any]]
"""Lines of metrics.jsonl by step."""


class Trial:
    """The first steps of a run, the end of them a second time from a checkpoint, and an export.

    Attributes:
        run: the run directory.
        saved: step of the first checkpoint, from which the second process goes on.
        last: the last step, with the second checkpoint.
    """

    def __init__(
        self, recipe: PretrainRecipe, steps: int, scratch: Path, scripts: Path, launcher: list[str], silent: float
    ) -> None:
        """
        Args:
            launcher: the command before a script's name.
            silent: minutes without a sign of life after which a command counts as hung.

        Raises:
            UserError: nothing of the schedule is left to try.
        """
        self.scratch, self.scripts, self.launcher, self.silent = scratch, scripts, launcher, silent
        self.run = scratch / "run"
        named = recipe.resume_from_checkpoint not in ("auto", "none")
        self.first = read_trainer_state(find_checkpoint(recipe.resume_from_checkpoint))["step"] if named else 0
        steps = min(steps, recipe.last_step - self.first - 1)
        if steps < 2:
            raise UserError(f"the schedule ends at step {recipe.last_step}: nothing is left to try; raise max_steps")
        self.last = self.first + steps
        self.saved = self.last - max(1, min(10, steps // 4))
        self.recipe = dataclasses.replace(
            recipe,
            output_dir=str(self.run),
            resume_from_checkpoint=recipe.resume_from_checkpoint if named else "auto",
            stop_at_step=self.last,
            save_steps=self.saved,
            save_minutes=None,
            save_total_limit=None,
            keep_steps=[],
            save_copy_dir=None,
            push_to_hub=False,
            report_to=[],
            logging_steps=1,
            eval_steps=self.last,  # once, for an evaluation may hang like anything else
            sample_steps=None,
        )

    @property
    def steps(self) -> int:
        return self.last - self.first

    def train(self) -> Ended:
        """All steps, with a checkpoint before the end and one at it."""
        return self._pretrain("training", self.recipe, "trial.yaml")

    def resume(self) -> Ended:
        """A new process from the first checkpoint, over the second one; only the newest is kept."""
        again = dataclasses.replace(
            self.recipe, resume_from_checkpoint=str(checkpoint_folder(self.run, self.saved)), save_total_limit=1
        )
        return self._pretrain("resume", again, "resume.yaml")

    def export(self) -> Ended:
        command = [sys.executable, str(self.scripts / "export.py"), "--checkpoint", str(self.run)]
        command += ["--output_dir", str(self.scratch / "export")]
        return run_command("export", command, self.scratch / "export.log", self.silent)

    def records(self) -> Records:
        """What the run directory's metrics.jsonl says by now."""
        path = self.run / "metrics.jsonl"
        return {record["step"]: record for record in read_metrics(path) if "loss" in record} if path.exists() else {}

    def _pretrain(self, name: str, recipe: PretrainRecipe, file_name: str) -> Ended:
        write_text(self.scratch / file_name, recipe_yaml(recipe))
        command = [*self.launcher, str(self.scripts / "pretrain.py"), "--config", str(self.scratch / file_name)]
        return run_command(name, command, self.scratch / f"{name}.log", self.silent, self._progress)

    def _progress(self) -> str:
        records = self.records()
        if not records:
            return ""
        record = records[max(records)]
        return f"step {record['step']:,} of {self.last:,}, {record['tokens_per_second']:,.0f} tokens/s"
