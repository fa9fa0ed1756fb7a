"""The numbers of metrics.jsonl in TensorBoard, W&B or Trackio, by way of Accelerate."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from genesis_hf.config import PretrainRecipe, recipe_dict
from genesis_hf.errors import UserError

KNOWN = ("tensorboard", "wandb", "trackio")


class Trackers:
    """The trackers of `report_to`; a run that is resumed goes on in the run it had there.

    TensorBoard's files lie in the run directory.

    Raises:
        UserError: a tracker that isn't known or installed.
    """

    def __init__(self, recipe: PretrainRecipe, accelerator: Accelerator) -> None:
        names = [name for name in recipe.report_to if name != "none"]
        for name in names:
            if name not in KNOWN:
                raise UserError(f"report_to: unknown tracker {name!r}; known: {', '.join(KNOWN)}")
            if importlib.util.find_spec(name) is None:
                raise UserError(f"report_to: {name} is not installed: pip install {name}")
        self._accelerator = accelerator if names else None
        if not names:
            return
        output = Path(recipe.output_dir).resolve()
        identity = hashlib.sha256(str(output).encode()).hexdigest()[:16]
        accelerator.project_configuration.set_directories(str(output))
        accelerator.log_with = names
        accelerator.init_trackers(
            "genesis_hf",
            # `env` may hold keys
            config={k: v for k, v in flat({**recipe_dict(recipe), "env": {}}).items() if v is not None},
            init_kwargs={
                "wandb": {"name": output.name, "id": identity, "resume": "allow", "dir": str(output)},
                "trackio": {"name": f"{output.name}-{identity[:4]}", "resume": "allow"},
            },
        )

    def log(self, record: dict[str, Any]) -> None:
        """One record of metrics.jsonl, nested keys joined with `/`."""
        if self._accelerator is not None:
            numbers = {k: v for k, v in flat(record).items() if isinstance(v, (int, float))}
            self._accelerator.log(numbers, step=record["step"])

    def close(self) -> None:
        if self._accelerator is not None:
            self._accelerator.end_training()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under keys joined with `/`, the form that trackers take."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{key}/"))
        elif value is None or isinstance(value, (int, float, str, bool)):
            result[prefix + key] = value
        else:
            result[prefix + key] = json.dumps(value)
    return result
