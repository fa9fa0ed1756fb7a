"""What may be spent: of money and tokens in all, of requests and tokens a minute."""

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from genesis_hf.errors import UserError
from genesis_hf.synthesis.providers.base import Completion, Request
from genesis_hf.synthesis.recipe import BudgetSettings, ProviderSettings

TEMPLATE_TOKENS, MESSAGE_TOKENS = 64, 16
"""Allowed for what a chat template adds, in all and for each message, where the worst case is reckoned."""


class BudgetUsedUp(Exception):
    """The next call might cost more than is left."""


@dataclass(frozen=True)
class Spend:
    """Tokens of a call, prompt and answer together, and US dollars; `cost` is None where prices are unknown."""

    tokens: int
    cost: float | None


def cost_of(settings: ProviderSettings, prompt_tokens: int, completion_tokens: int) -> float | None:
    """US dollars, or None where the recipe names no prices."""
    if settings.prompt_price is None or settings.completion_price is None:
        return None
    return (prompt_tokens * settings.prompt_price + completion_tokens * settings.completion_price) / 1e6


def most(settings: ProviderSettings, request: Request) -> Spend:
    """The most that a call may use: no token is shorter than a byte of the prompt."""
    texts = [str(message["content"]) for message in request.messages]
    prompt = sum(len(text.encode("utf-8", "replace")) + MESSAGE_TOKENS for text in texts) + TEMPLATE_TOKENS
    return Spend(prompt + request.max_tokens, cost_of(settings, prompt, request.max_tokens))


def spent_on(settings: ProviderSettings, request: Request, completion: Completion) -> Spend:
    """What a call used; the most it may have used where the provider doesn't say."""
    if completion.prompt_tokens is None or completion.completion_tokens is None:
        return most(settings, request)
    tokens = completion.prompt_tokens, completion.completion_tokens
    return Spend(sum(tokens), cost_of(settings, *tokens))


class Budget:
    """What all starts of a run may spend together; calls in the air count with the most that they may use.

    Attributes:
        tokens: spent so far.
        cost: US dollars spent so far, on calls whose price is known.
        calls: paid so far.
    """

    def __init__(self, settings: BudgetSettings, providers: list[ProviderSettings]) -> None:
        """
        Raises:
            UserError: a limit in US dollars, and a provider without prices.
        """
        for provider in providers:
            if settings.max_cost is not None and cost_of(provider, 0, 0) is None:
                raise UserError(
                    f"max_cost needs prices: give prompt_price and completion_price of {provider.model} "
                    "(0 where it costs nothing), or max_total_tokens instead"
                )
        self.max_tokens = settings.max_total_tokens if settings.max_total_tokens is not None else math.inf
        self.max_cost = settings.max_cost if settings.max_cost is not None else math.inf
        self.prices_known = all(cost_of(provider, 0, 0) is not None for provider in providers)
        self.tokens, self.cost, self.calls = 0, 0.0, 0
        self._tokens_in_air, self._cost_in_air, self._in_air = 0, 0.0, 0
        self._changed = asyncio.Condition()

    def add(self, spend: Spend) -> None:
        """Count a paid call, also one of an earlier start."""
        self.tokens += spend.tokens
        self.cost += spend.cost or 0.0
        self.calls += 1

    async def reserve(self, bound: Spend) -> None:
        """Wait until a call fits into what calls in the air may leave.

        Raises:
            BudgetUsedUp: it doesn't fit, and nothing is in the air that might turn out cheaper.
        """
        async with self._changed:
            while not self._fits(bound):
                if not self._in_air:
                    raise BudgetUsedUp(self._what_is_left(bound))
                await self._changed.wait()
            self._reserve(bound, +1)

    async def release(self, bound: Spend) -> None:
        """The call has come back: what it used has been added, or nothing."""
        async with self._changed:
            self._reserve(bound, -1)
            self._changed.notify_all()

    def _reserve(self, bound: Spend, sign: int) -> None:
        self._tokens_in_air += sign * bound.tokens
        self._cost_in_air += sign * (bound.cost or 0.0)
        self._in_air += sign
        if not self._in_air:
            self._cost_in_air = 0.0  # without what rounding leaves

    def _fits(self, bound: Spend) -> bool:
        return (
            self.tokens + self._tokens_in_air + bound.tokens <= self.max_tokens
            and self.cost + self._cost_in_air + (bound.cost or 0.0) <= self.max_cost
        )

    def _what_is_left(self, bound: Spend) -> str:
        if self.tokens + bound.tokens > self.max_tokens:
            left = max(0, self.max_tokens - self.tokens)
            return f"max_total_tokens: {left:,} of {self.max_tokens:,} are left, and a call may use {bound.tokens:,}"
        left = max(0.0, self.max_cost - self.cost)
        return f"max_cost: ${left:.4f} of ${self.max_cost:.2f} are left, and a call may cost ${bound.cost:.4f}"


class Rate:
    """So much a minute, evenly, without bursts; the first may begin at once."""

    def __init__(self, per_minute: float | None) -> None:
        self.seconds = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def take(self, amount: float, stopping: asyncio.Event) -> None:
        """Wait for the turn of an amount, or until `stopping` is set."""
        while (delay := self._free_at - time.monotonic()) > 0 and not stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), delay)
        self._free_at = max(self._free_at, time.monotonic()) + amount * self.seconds

    def give_back(self, amount: float) -> None:
        """What was taken and not used."""
        self._free_at -= amount * self.seconds
