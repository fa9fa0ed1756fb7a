"""Every paid call once: what came back is written down before anybody reads it, and read from there the next time."""

import asyncio
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from genesis_hf.chat import Message
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items
from genesis_hf.synthesis.budget import Budget, Rate, Spend, most, spent_on
from genesis_hf.synthesis.prompts import seed_of
from genesis_hf.synthesis.providers.base import CallFailed, Completion, Provider, Request
from genesis_hf.synthesis.recipe import ProviderSettings
from genesis_hf.synthesis.records import Appender, read_lines

T = TypeVar("T")

CALLS = "calls.jsonl"

MAX_ATTEMPTS = 3
"""Times that a question is asked anew, with another seed, where the answer is of no use."""

CHAT_MARKS = re.compile(r"<[|｜][\w▁]+[|｜]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
"""Tokens of chat formats, ours and others'."""


class Unusable(Exception):
    """An answer that is no use; the text says why."""


class Stopped(Exception):
    """The run was asked to end before this call."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What an answer was taken for, and who gave it."""

    value: T
    model: str


class Calls:
    """Asks providers, one journal for all; several calls at a time.

    Attributes:
        stopping: set from outside: nothing more is asked.
    """

    def __init__(self, folder: Path, budget: Budget, done: Container[int] = ()) -> None:
        """
        Args:
            budget: what earlier starts paid is added to it.
            done: numbers whose calls nobody will ask for again: they are counted and not held.

        Raises:
            UserError: the journal can't be read.
        """
        self.budget = budget
        self.stopping = asyncio.Event()
        self._journal = Appender(folder / CALLS)
        self._entries: dict[int, dict[str, dict[str, Any]]] = {}
        self._limits: dict[int, Limits] = {}
        for line, entry in enumerate(read_lines(folder / CALLS), 1):
            try:
                number, step = entry["key"].split("/", 1)
                budget.add(Spend(entry["tokens"], entry["cost"]))
                if int(number) not in done:
                    self._entries.setdefault(int(number), {})[step] = entry
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{folder / CALLS}, line {line}: no call of this run ({error}); remove it") from None

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.__exit__(*exception)

    async def ask(
        self,
        provider: Provider,
        number: int,
        step: str,
        messages: list[Message],
        seed: int,
        accept: Callable[[str], T],
    ) -> Asked[T]:
        """An answer to messages that `accept` makes something of.

        What the journal has is not asked again. An answer that is empty, cut, holds tokens of a chat format or that
        `accept` refuses is paid for all the same; then the question is asked with another seed, `MAX_ATTEMPTS` times
        beyond those that the journal has.

        Args:
            number, step: the call's place, such as 17 and "answer-1"; they must mean the same at every start.
            accept: raises `Unusable` where a text won't do.

        Raises:
            CallFailed: no answer, or none of use.
            ProviderUnusable, BudgetUsedUp, Stopped: nothing more can be asked.
        """
        asked, why = 0, None
        for attempt in count(1):
            name = step if attempt == 1 else f"{step}#{attempt}"
            request = make_request(provider.settings, messages, seed_of(seed, name))
            entry = self._known(number, name, provider.settings, request)
            if entry is None:
                if asked == MAX_ATTEMPTS:
                    raise CallFailed(f"{step}: {why}, {MAX_ATTEMPTS} times")
                asked += 1
                entry = await self._pay(provider, number, name, request)
            try:
                return Asked(accept(checked_text(entry)), entry["model"])
            except Unusable as unusable:
                why = unusable

    def of(self, number: int) -> list[dict[str, Any]]:
        """The journal's entries of a number that isn't finished."""
        return list(self._entries.get(number, {}).values())

    def forget(self, number: int) -> None:
        """The number is finished: its entries are needed no more."""
        self._entries.pop(number, None)

    def _known(self, number: int, name: str, settings: ProviderSettings, request: Request) -> dict[str, Any] | None:
        entry = self._entries.get(number, {}).get(name)
        return entry if entry is not None and entry["request"] == request_sha256(settings, request) else None

    async def _pay(self, provider: Provider, number: int, name: str, request: Request) -> dict[str, Any]:
        settings = provider.settings
        bound = most(settings, request)
        limits = self._limits.setdefault(id(provider), Limits(settings))
        async with limits.slots:
            await self.budget.reserve(bound)
            try:
                await limits.take(bound.tokens, self.stopping)
                if self.stopping.is_set():
                    raise Stopped
                completion = await provider.complete(request)
                spend = spent_on(settings, request, completion)
                limits.tokens.give_back(bound.tokens - spend.tokens)
                entry = journal_entry(f"{number}/{name}", settings, request, completion, spend)
                self._journal.add(entry)
                self.budget.add(spend)
            finally:
                await self.budget.release(bound)
        self._entries.setdefault(number, {})[name] = entry
        return entry


class Limits:
    """Calls at once and a minute, of one provider."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.requests, self.tokens = Rate(settings.requests_per_minute), Rate(settings.tokens_per_minute)

    async def take(self, tokens: int, stopping: asyncio.Event) -> None:
        """Wait for a call's turn, or until the run is asked to end."""
        await self.requests.take(1, stopping)
        await self.tokens.take(tokens, stopping)


def make_request(settings: ProviderSettings, messages: list[Message], seed: int) -> Request:
    return Request(messages, settings.max_tokens, settings.temperature, settings.top_p, seed)


def request_sha256(settings: ProviderSettings, request: Request) -> str:
    """What is asked, and of which model."""
    return hash_items([settings.kind, settings.model, settings.extra_body, vars(request)])


def journal_entry(
    key: str, settings: ProviderSettings, request: Request, completion: Completion, spend: Spend
) -> dict[str, Any]:
    return {
        "key": key,
        "request": request_sha256(settings, request),
        "model": completion.model,
        "text": completion.text.encode("utf-8", "replace").decode(),  # no half of a surrogate pair
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "tokens": spend.tokens,
        "cost": spend.cost,
    }


def checked_text(entry: Mapping[str, Any]) -> str:
    """The text of an answer, or `Unusable`: it is empty, cut or holds a chat format's tokens."""
    text = entry["text"].strip()
    if entry["finish_reason"] == "length":
        raise Unusable("the answer was cut at max_tokens")
    if not text:
        raise Unusable("the answer is empty")
    if entry["finish_reason"] != "stop":
        raise Unusable("the answer did not come to its end")
    if found := CHAT_MARKS.search(text):
        raise Unusable(f"the answer holds a chat format's token, {found[0]}")
    return text
