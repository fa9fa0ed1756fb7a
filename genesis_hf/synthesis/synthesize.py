"""The run behind `scripts/synthesize.py`: plans, conversations, records, and the proof that they belong together."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genesis_hf.config import recipe_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items
from genesis_hf.synthesis.budget import Budget
from genesis_hf.synthesis.calls import Calls
from genesis_hf.synthesis.constitution import Constitution, constitution_sha256
from genesis_hf.synthesis.conversations import Cast, converse, plan_fields, settings_of
from genesis_hf.synthesis.prompts import check_prompts, plan_conversation
from genesis_hf.synthesis.providers import open_provider
from genesis_hf.synthesis.providers.base import Provider
from genesis_hf.synthesis.recipe import ProviderSettings, SynthesizeRecipe
from genesis_hf.synthesis.records import Appender, check_made_from, finished_numbers, read_lines, sole_writer
from genesis_hf.synthesis.work import Outcome, cost_so_far, progress_bar, work_through

RECORDS, FAILURES = "records.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Made:
    """What a start came to.

    Attributes:
        made: conversations in the records, of `total` asked for.
        spent: in all starts together, in words.
    """

    made: int
    total: int
    spent: str
    outcome: Outcome

    def describe(self) -> str:
        return f"{self.made:,} of {self.total:,} conversations ({self.spent})"


def synthesize(recipe: SynthesizeRecipe, constitution: Constitution) -> Made:
    """Make the conversations that `output_dir` lacks.

    Raises:
        UserError: too few prompts; the folder holds something else or is being written; no key; no prices.
    """
    check_prompts(constitution, recipe.num_conversations)
    folder = Path(recipe.output_dir)
    with sole_writer(folder):
        check_made_from(folder, made_from(recipe, constitution))
        # The constitution as it was read: the file it came from may change.
        write_text(folder / "recipe.yaml", recipe_yaml(replace(recipe, constitution=asdict(constitution))))
        return asyncio.run(run(recipe, constitution, folder))


def made_from(recipe: SynthesizeRecipe, constitution: Constitution) -> dict[str, Any]:
    """What must not change between two starts: all that a record follows from."""
    cast = {"provider": recipe.provider, "critic": recipe.critic, "user": recipe.user}
    return {
        "constitution_sha256": constitution_sha256(constitution),
        "seed": recipe.seed,
        "revisions": recipe.revisions,
        **{role: one and {"kind": one.kind} | settings_of(one) for role, one in cast.items()},
    }


async def run(recipe: SynthesizeRecipe, constitution: Constitution, folder: Path) -> Made:
    """Ask for every conversation that the records lack."""
    sha256 = constitution_sha256(constitution)
    total = recipe.num_conversations
    done = finished_numbers(folder / RECORDS)
    made = sum(number < total for number in done)
    budget = Budget(recipe, [one for one in (recipe.provider, recipe.critic, recipe.user) if one])
    async with AsyncExitStack() as stack:
        cast = await open_cast(recipe, stack)
        records = stack.enter_context(Appender(folder / RECORDS))
        failures = stack.enter_context(Appender(folder / FAILURES))
        calls = stack.enter_context(Calls(folder, budget, done))
        bar = stack.enter_context(progress_bar(total, made, budget, "conversation"))

        async def make(number: int) -> None:
            nonlocal made
            plan = plan_conversation(constitution, recipe.seed, number)
            records.add(await converse(plan, constitution, sha256, cast, calls, recipe.revisions))
            calls.forget(number)
            made += 1
            bar.set_postfix_str(cost_so_far(budget), refresh=False)
            bar.update()

        outcome = await work_through(
            (number for number in range(total) if number not in done),
            make,
            calls,
            recipe.provider.concurrency,
            lambda number, reason: failures.add({"index": number, "reason": reason}),
        )
    return Made(made, total, cost_so_far(budget), outcome)


async def open_cast(recipe: SynthesizeRecipe, stack: AsyncExitStack) -> Cast:
    """The providers of all roles; roles with the same settings share one."""
    opened: list[Provider] = []

    def of(settings: ProviderSettings) -> Provider:
        for provider in opened:
            if provider.settings == settings:
                return provider
        opened.append(open_provider(settings))
        stack.push_async_callback(opened[-1].close)
        return opened[-1]

    return Cast(of(recipe.provider), of(recipe.critic or recipe.provider), of(recipe.user or recipe.provider))


def verify(recipe: SynthesizeRecipe, constitution: Constitution) -> tuple[int, dict[int, list[str]]]:
    """Derive the prompts of the records again, and the hashes of their messages.

    Returns:
        how many records there are, and by number the keys under which a record differs.

    Raises:
        UserError: no records.
    """
    path = Path(recipe.output_dir) / RECORDS
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with the same command, without --verify")
    sha256 = constitution_sha256(constitution)
    differences: dict[int, list[str]] = {}
    seen: set[int] = set()
    for record in read_lines(path):
        keys = differing_keys(record, constitution, sha256, recipe.seed)
        if record.get("index") in seen:
            keys.append("index (there twice)")
        seen.add(record.get("index"))
        if keys:
            differences[record.get("index")] = keys
    return len(seen), differences


def differing_keys(record: dict[str, Any], constitution: Constitution, sha256: str, seed: int) -> list[str]:
    """The keys under which a record is other than its number, the constitution and the seed say."""
    messages = record.get("messages") or [{}]
    found = {"constitution_sha256": sha256, "sha256": hash_items(messages)}
    try:
        plan = plan_conversation(constitution, seed, record["index"])
    except (KeyError, TypeError, ValueError, IndexError, UserError):
        return ["index"]
    found |= {**plan_fields(plan), "opening_sha256": hash_items([plan.opening])}
    keys = [key for key, value in found.items() if record.get(key) != value]
    if plan.language == "en" and messages[0].get("content") != plan.opening:
        keys.append("messages[0]")
    return keys
