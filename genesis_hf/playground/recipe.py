"""The settings of `scripts/playground.py`, from its command line or, on a Hugging Face Space, from the environment."""

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from genesis_hf.config import check_positive, setting
from genesis_hf.errors import UserError
from genesis_hf.playground.names import HUB_ID

ON_SPACE = "SPACE_ID"
"""Environment variable that Hugging Face sets on a Space."""

MODELS = "GENESIS_HF_MODELS"
"""Environment variable with the command line where there is none: models, and options if wanted."""


@dataclass
class PlaygroundRecipe:
    """What is offered, where, and its bounds."""

    models: list[str] = setting([], "runs, folders that hold runs, exported folders; or owner/name[@revision]")
    hub_model: list[str] = setting([], "a model of the Hub, owner/name[@revision]; may be given again")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets others in")
    port: int = setting(7860, "0: any free one")
    max_new_tokens_limit: int = setting(1024, "tokens of an answer at most")
    max_prompt_chars: int = setting(16000, "characters of a prompt with all that went before in its conversation")
    max_models_in_memory: int = setting(2, "the one that was used longest ago makes room for the next")
    concurrency: int = setting(2, "answers written at once; others wait in the queue")
    queue_size: int = setting(50, "those who may wait; more are told to come again")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens_limit", "max_prompt_chars", "max_models_in_memory", "concurrency", "queue_size"):
            check_positive(self, name)
        if not 0 <= self.port <= 65535:
            raise UserError(f"port must be from 0 to 65535, not {self.port}")
        if not self.models and not self.hub_model:
            raise UserError(f"no models: name runs, exported folders or --hub_model owner/name, or set {MODELS}")

    @property
    def roots(self) -> list[str]:
        """Those of `models` that are folders here; one that is neither is refused by name later."""
        return [name for name in self.models if not self._on_hub(name)]

    @property
    def hub_models(self) -> list[str]:
        return [*(name for name in self.models if self._on_hub(name)), *self.hub_model]

    @staticmethod
    def _on_hub(name: str) -> bool:
        # A wrong name beside folders that are here is a slip, no model of the Hub.
        return bool(HUB_ID.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.exists()


def read_recipe(argv: Sequence[str]) -> PlaygroundRecipe:
    """The recipe of a command line.

    Without arguments those of the variable GENESIS_HF_MODELS stand. On a Space the page is for everybody, so it listens
    on all addresses unless `--host` says otherwise.

    Raises:
        UserError: a value out of bounds, no models, or a variable that is no command line.
    """
    try:
        argv = list(argv) or shlex.split(os.environ.get(MODELS, ""))
    except ValueError as error:
        raise UserError(f"{MODELS}: {error}; it is split into words as by a shell") from None
    parser = argparse.ArgumentParser(prog="playground.py", description="Talk to checkpoints in a browser.")
    for field in fields(PlaygroundRecipe):
        text = field.metadata["help"]
        if field.name == "models":
            parser.add_argument("models", nargs="*", metavar="MODELS", help=text)
        elif field.default is MISSING:
            parser.add_argument(f"--{field.name}", action="append", default=[], help=text)
        else:
            default = "0.0.0.0" if field.name == "host" and os.environ.get(ON_SPACE) else field.default
            parser.add_argument(
                f"--{field.name}", type=type(default), default=default, help=f"{text} (default {default})"
            )
    return PlaygroundRecipe(**vars(parser.parse_args(argv)))
