"""Whether a step's update is applied: decided on the device, so that nobody waits for it."""

from typing import Any

import torch

from genesis_hf.config import PretrainRecipe

WINDOW = 128
"""Losses that a new one is compared with."""

MINIMUM = 32
"""Losses seen before any can be a spike: fewer give no standard deviation worth the name."""


class StepGuard:
    """Judges each step by its loss and gradient norm.

    Not finite: the update is skipped. With `spike_sigma`, neither is a loss applied that lies so many standard
    deviations above the mean of the last `WINDOW` finite losses. A spike enters the window all the same, so that a loss
    that has risen for good is taken for normal after a while.

    Every process holds the same numbers, for each is given the whole step's.
    """

    def __init__(self, recipe: PretrainRecipe, device: torch.device) -> None:
        self.sigma = recipe.spike_sigma
        self._losses = torch.zeros(WINDOW, dtype=torch.float64, device=device)
        # finite losses seen, steps skipped, of those in a row up to now, most in a row, spikes
        self._counts = torch.zeros(5, dtype=torch.int64, device=device)

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """1.0 where the update is to be skipped, else 0.0: an fp32 scalar on the device.

        Args:
            loss: the step's loss over all processes, a scalar on the device. grad_norm: before clipping, likewise.
        """
        seen, skipped, in_a_row, most_in_a_row, spikes = self._counts.unbind()
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        spike = torch.zeros_like(finite)
        if self.sigma is not None:
            number = seen.clamp(max=WINDOW)
            known = torch.arange(WINDOW, device=loss.device) < number
            mean = self._losses.sum() / number.clamp(min=1)
            spread = (((self._losses - mean) * known).square().sum() / number.clamp(min=1)).sqrt()
            spike = finite & (seen >= MINIMUM) & (loss > mean + self.sigma * spread)
            place = torch.arange(WINDOW, device=loss.device) == seen % WINDOW
            self._losses = torch.where(place & finite, loss.double(), self._losses)
        in_a_row = torch.where(finite, 0, in_a_row + 1)
        skip = ~finite | spike
        self._counts = torch.stack(
            [seen + finite, skipped + skip, in_a_row, torch.maximum(most_in_a_row, in_a_row), spikes + spike]
        )
        return skip.float()

    def read(self) -> dict[str, int]:
        """`skipped` steps of the run, `spikes` among them, and the most in a row that were `not_finite`.

        Waits for the device.
        """
        _, skipped, _, not_finite, spikes = self._counts.tolist()
        return {"skipped": skipped, "spikes": spikes, "not_finite": not_finite}

    @staticmethod
    def describe(step: int, before: dict[str, int], now: dict[str, int]) -> str:
        """A line about the updates skipped between two readings."""
        skipped, spikes = now["skipped"] - before["skipped"], now["spikes"] - before["spikes"]
        causes = [f"{spikes} for a loss spike"] if spikes else []
        causes += [f"{skipped - spikes} for a loss or gradient that is not finite"] if skipped > spikes else []
        return f"step {step:,}: updates skipped since the last line: {', '.join(causes)}; {now['skipped']} in all"

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"losses": self._losses.tolist(), "counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.copy_(torch.tensor(state["losses"], dtype=torch.float64))
        seen, skipped, in_a_row, _, spikes = state["counts"]
        self._counts.copy_(torch.tensor([seen, skipped, in_a_row, in_a_row, spikes]))
