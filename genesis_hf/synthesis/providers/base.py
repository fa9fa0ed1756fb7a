"""What every provider of answers can do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from genesis_hf.chat import Message
from genesis_hf.synthesis.recipe import ProviderSettings

FinishReason = Literal["stop", "length", "other"]


@dataclass(frozen=True)
class Request:
    """What a chat model is asked."""

    messages: list[Message]
    max_tokens: int
    temperature: float | None
    """None: the provider's own, here and below"""
    top_p: float | None
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """What came back."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    """as the provider counts; None: it doesn't say"""
    completion_tokens: int | None
    model: str
    """as the provider names it"""


class CallFailed(Exception):
    """A call that came to nothing after all retries: the conversation is left for later, the run goes on."""


class ProviderUnusable(CallFailed):
    """No call can succeed: nobody there, a key refused, no such model. The run ends with one line."""


class Provider(ABC):
    """Answers requests, many at a time; keys come from the environment and go nowhere else."""

    settings: ProviderSettings

    @abstractmethod
    async def complete(self, request: Request) -> Completion:
        """Answer, with retries and back-off where they can help.

        An answer that can't be read, malformed JSON say, is an empty one with the finish reason `other`: it may have
        been charged for.

        Raises:
            CallFailed: this one can't be answered.
            ProviderUnusable: none can.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back connections or memory."""
