"""How an answer is sampled, within the bounds of a playground."""

import math
from dataclasses import dataclass

import numpy as np
from transformers import GenerationConfig

from genesis_hf.errors import UserError

BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0.01, 1),
    "top_k": (0, 1000),
    "repetition_penalty": (1, 2),
    "max_new_tokens": (1, 2**20),
    "seed": (0, 2**32 - 1),
}
"""Lowest and highest value of each setting."""

WHOLE = ("top_k", "max_new_tokens", "seed")


@dataclass(frozen=True)
class Sampling:
    """Settings that bear transformers.GenerationConfig's names; temperature 0 and top_k 0 mean none of it.

    Raises:
        UserError: a value that is no number, out of bounds, or a fraction where a whole number belongs.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None
    """None: another one each time"""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high:
                raise UserError(f"{name} must be from {low} to {high}, not {str(value)[:40]}")
            if name in WHOLE and value != int(value):
                raise UserError(f"{name} must be a whole number, not {str(value)[:40]}")
            object.__setattr__(self, name, int(value) if name in WHOLE else float(value))

    def with_seed(self) -> "Sampling":
        """The same with a seed that can be told, where none was given."""
        return self if self.seed is not None else self.changed(seed=int(np.random.default_rng().integers(10**6)))

    def changed(self, **values: float | None) -> "Sampling":
        """The same with other values."""
        return Sampling(**{**self.__dict__, **values})

    def settings(self, stop_ids: list[int]) -> GenerationConfig:
        """transformers' settings for these."""
        drawn = {}
        if self.temperature > 0:
            drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
            do_sample=self.temperature > 0,
            eos_token_id=stop_ids,
            **drawn,
        )
