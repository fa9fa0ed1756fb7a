"""Back to the newest checkpoint after a loss spike, past the data that brought it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from genesis_hf.checkpoint.manifest import newest_good_checkpoint
from genesis_hf.checkpoint.restore import restore_checkpoint
from genesis_hf.config import PretrainRecipe
from genesis_hf.errors import UserError
from genesis_hf.training.guard import StepGuard

MAX_ROLLBACKS = 3
"""To one and the same checkpoint; after these the model needs a person."""


class Rollback:
    """Restores model, optimizers and guard; the data goes on where it is (Chowdhery et al. 2022, PaLM, section 5.1)."""

    def __init__(
        self, recipe: PretrainRecipe, model: nn.Module, optimizers: list[torch.optim.Optimizer], guard: StepGuard
    ) -> None:
        self._recipe, self._model, self._optimizers, self._guard = recipe, model, optimizers, guard
        self._done: list[Path] = []

    def to_newest(self, state: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The state to go on with, and a line about it; the same state where no checkpoint stands yet.

        Raises:
            UserError: `MAX_ROLLBACKS` to this checkpoint didn't help.
        """
        folder = newest_good_checkpoint(self._recipe.output_dir)
        if folder is None:
            return state, f"step {state['step']:,}: a loss spike, and no checkpoint to go back to yet"
        if self._done[-MAX_ROLLBACKS:] == [folder] * MAX_ROLLBACKS:
            raise UserError(
                f"step {state['step']:,}: a loss spike after {MAX_ROLLBACKS} rollbacks to {folder}; lower "
                "learning_rate, or choose an earlier checkpoint with resume_from_checkpoint"
            )
        self._done.append(folder)
        restored = restore_checkpoint(folder, self._model, self._optimizers)
        self._guard.load_state_dict(restored["guard"])
        data = {key: state[key] for key in ("stream", "tokens_seen", "repeated_since")}
        line = f"step {state['step']:,}: a loss spike; back to {folder}, and on with the data that comes now"
        return {**restored, **data}, line
