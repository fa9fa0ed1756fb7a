"""Numbers worked through by a bounded number of workers: a second try for what failed, an orderly end when asked."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

from genesis_hf.synthesis.budget import Budget, BudgetUsedUp
from genesis_hf.synthesis.calls import Calls, Stopped
from genesis_hf.synthesis.providers.base import CallFailed, ProviderUnusable

GRACE_SECONDS = 10.0
"""Given to calls in the air when the run is asked to end; a second Ctrl-C gives them none."""

MAX_FAILURES_IN_ROW = 20
"""After so many numbers in a row that fail when first tried, the provider is taken to be the reason."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Outcome:
    """How it ended.

    Attributes:
        failed: numbers that failed twice, with the reason.
        ended: why the rest was not tried; None: all was.
        stopped_by: the signal that asked the run to end; None: none did.
    """

    failed: dict[int, str] = field(default_factory=dict)
    ended: str | None = None
    stopped_by: signal.Signals | None = None


async def work_through(
    numbers: Iterable[int],
    do: Callable[[int], Awaitable[None]],
    calls: Calls,
    workers: int,
    report_failure: Callable[[int, str], None] = lambda number, reason: None,
) -> Outcome:
    """Do every number, `workers` at a time; those that fail are tried once more at the end.

    Args:
        do: what there is to do for a number; `CallFailed` leaves it for later.
        calls: what `do` asks with; its `stopping` ends the work.
        report_failure: told of each number that failed, and why.
    """
    outcome = Outcome()
    with asked_to_stop(calls, outcome) as leave:
        first = await one_pass(iter(numbers), do, calls, workers, report_failure, outcome, leave)
        if outcome.ended is None and outcome.stopped_by is None and first:
            outcome.failed = await one_pass(iter(first), do, calls, workers, report_failure, outcome, leave, last=True)
        else:
            outcome.failed = first
    return outcome


async def one_pass(
    numbers: Iterator[int],
    do: Callable[[int], Awaitable[None]],
    calls: Calls,
    workers: int,
    report_failure: Callable[[int, str], None],
    outcome: Outcome,
    leave: asyncio.Event,
    last: bool = False,
) -> dict[int, str]:
    """Do every number once; those that failed, with the reason."""
    failed: dict[int, str] = {}
    in_row = 0

    async def work() -> None:
        nonlocal in_row
        for number in numbers:
            if calls.stopping.is_set():
                return
            # What an earlier start failed at tells nothing new about the provider.
            tried_before = bool(calls.of(number))
            try:
                await do(number)
                in_row = 0
            except Stopped:
                return
            except (ProviderUnusable, BudgetUsedUp) as error:
                outcome.ended = outcome.ended or str(error)
                calls.stopping.set()
                return
            except CallFailed as error:
                failed[number] = str(error)
                report_failure(number, str(error))
                in_row += not (tried_before or last)
                if in_row >= MAX_FAILURES_IN_ROW:
                    outcome.ended = outcome.ended or f"{in_row} failed in a row, the last one: {error}"
                    calls.stopping.set()

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    leaving = asyncio.create_task(leave.wait())
    try:
        remaining = set(tasks)
        while remaining and not leave.is_set():
            finished, remaining = await asyncio.wait({*remaining, leaving}, return_when=asyncio.FIRST_COMPLETED)
            remaining.discard(leaving)
            for task in finished - {leaving}:
                task.result()  # an error of our own ends the run at once
    finally:
        for task in [*tasks, leaving]:
            task.cancel()
        await asyncio.gather(*tasks, leaving, return_exceptions=True)
    return failed


@contextmanager
def asked_to_stop(calls: Calls, outcome: Outcome) -> Iterator[asyncio.Event]:
    """SIGINT and SIGTERM let calls in the air come back, for `GRACE_SECONDS`; the event says that the time is over."""
    loop, leave = asyncio.get_running_loop(), asyncio.Event()

    def handle(number: signal.Signals) -> None:
        if outcome.stopped_by is not None:
            leave.set()
            return
        outcome.stopped_by = number
        calls.stopping.set()
        loop.call_later(GRACE_SECONDS, leave.set)

    for number in SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield leave
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def progress_bar(total: int, done: int, budget: Budget, unit: str) -> tqdm:
    """Done of all, speed, time left; `cost_so_far` beside it."""
    bar = tqdm(total=total, initial=done, unit=f" {unit}", disable=None, smoothing=0.05)
    bar.set_postfix_str(cost_so_far(budget))
    return bar


def cost_so_far(budget: Budget) -> str:
    """What all starts together have spent."""
    cost = f"${budget.cost:.2f}" if budget.prices_known else "cost unknown: no prices"
    return f"{cost}, {budget.tokens:,} tokens in {budget.calls:,} calls"
