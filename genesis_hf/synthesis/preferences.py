"""Preference pairs of a recipe: prompts, answers, scores, pairs, files."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from genesis_hf.config import nearest
from genesis_hf.errors import UserError
from genesis_hf.style.measures import FIGURES
from genesis_hf.synthesis.budget import Budget
from genesis_hf.synthesis.calls import Calls
from genesis_hf.synthesis.candidates import answer_locally, answer_remotely, made_from, make_prompts
from genesis_hf.synthesis.constitution import Constitution, load_constitution
from genesis_hf.synthesis.judge import bland_question, judge_answers
from genesis_hf.synthesis.pairs import FAILED, JUDGE, NOT_FIT, UNKNOWN, Candidate
from genesis_hf.synthesis.preference_files import write_preferences
from genesis_hf.synthesis.providers import open_provider
from genesis_hf.synthesis.providers.base import Provider
from genesis_hf.synthesis.quality.curation import Filters
from genesis_hf.synthesis.quality.duplicates import Duplicates, compared_turns
from genesis_hf.synthesis.recipe import PreferencesRecipe, ProviderSettings
from genesis_hf.synthesis.records import check_made_from, sole_writer
from genesis_hf.synthesis.scoring import Item, pair_up, score
from genesis_hf.synthesis.work import cost_so_far, progress_bar, work_through


def build_preferences(recipe: PreferencesRecipe) -> dict[str, Any]:
    """Write the pairs of a recipe and what can be said about them; the figures.

    In `output_dir`: `preferences.jsonl` and `preferences_held_out.jsonl` in the form that scripts/dpo.py reads,
    `preferences.json`, `report.html`, `README.md`; `candidates-N.jsonl` and `calls.jsonl` hold what was written and
    paid so far. The same call goes on where an earlier one stopped; judge, style weights and all that follows the
    answers may have changed.

    Raises:
        UserError: something in the recipe; other settings than the answers there were made with; a provider that
            can't be used; a budget that is used up.
        KeyboardInterrupt: asked to stop, with all that was paid for written down.
    """
    folder = Path(recipe.output_dir)
    check_style(recipe)
    constitution = load_constitution(recipe.constitution)
    with sole_writer(folder):
        check_made_from(folder, made_from(recipe, constitution))
        filters = Filters(constitution, recipe)
        items = [Item(prompt) for prompt in make_prompts(recipe, constitution)]
        drop_prompts(items, filters)
        gather_local(recipe, items)
        spent = asyncio.run(ask_others(recipe, constitution, filters, items)) if asked_of(recipe) else None
        score(recipe, filters, items)
        pair_up(recipe, items)
        return write_preferences(recipe, constitution, filters, items, spent)


def preview(recipe: PreferencesRecipe, count: int = 5) -> str:
    """What would be asked: how many prompts there are, and the first ones.

    Raises:
        UserError: something in the recipe.
    """
    check_style(recipe)
    prompts = make_prompts(recipe, load_constitution(recipe.constitution))
    answers = len(prompts) * recipe.num_candidates * len(recipe.candidates)
    lines = [f"# {len(prompts):,} prompts, {answers:,} answers; the first prompts:"]
    return "\n".join([*lines, *(f"# {prompt.messages[-1]['content']!r}" for prompt in prompts[:count])])


def check_style(recipe: PreferencesRecipe) -> None:
    """Raise `UserError` unless every weight belongs to a measure."""
    known = {figure.name for figure in FIGURES}
    for name in recipe.style:
        if name not in known:
            raise UserError(f"style: there is no measure {name!r}{nearest(name, known)}")


# ---------------------------------------------------------------------------------------------------------
# Prompts and answers
# ---------------------------------------------------------------------------------------------------------


def drop_prompts(items: Sequence[Item], filters: Filters) -> None:
    """Leave out prompts that came before, or hold an item of an evaluation set."""
    duplicates = Duplicates(1.0, lambda number: ())
    for item in items:
        texts = compared_turns(item.prompt.messages)
        if filters.contamination(texts):
            item.outcome = "contaminated prompt"
        elif duplicates.find_or_add(item.prompt.number, texts):
            item.outcome = "prompt came before"


def gather_local(recipe: PreferencesRecipe, items: Sequence[Item]) -> None:
    """The answers of models in this process."""
    for place, settings in enumerate(recipe.candidates):
        if settings.kind == "local":
            answered = answer_locally(recipe, place, [item.prompt for item in items])
            for item, candidates in zip(items, answered, strict=True):
                item.candidates += candidates


def asked_of(recipe: PreferencesRecipe) -> list[ProviderSettings]:
    """Whoever is asked through the journal of calls."""
    return [c for c in recipe.candidates if c.kind != "local"] + ([recipe.judge] if recipe.judge else [])


async def ask_others(
    recipe: PreferencesRecipe, constitution: Constitution, filters: Filters, items: Sequence[Item]
) -> Budget:
    """All that is asked of other models: answers, verdicts, bland rewritings; several prompts at a time.

    Raises:
        UserError: a provider that can't be used, or a budget that is used up; all that was paid for is kept.
        KeyboardInterrupt: asked to stop, after calls in the air have come back.
    """
    async with AsyncExitStack() as stack:
        providers = await open_providers(recipe, stack)
        calls = stack.enter_context(Calls(Path(recipe.output_dir), Budget(recipe, asked_of(recipe))))
        questions = Questions(recipe, constitution, calls, providers)
        await for_each(items, questions.answer_and_judge, calls, recipe)
        if recipe.rejected == "bland":
            score(recipe, filters, items)
            await for_each(items, questions.rewrite, calls, recipe)
    return calls.budget


async def open_providers(recipe: PreferencesRecipe, stack: AsyncExitStack) -> dict[int, Provider]:
    """By the candidates' numbers those that are asked through the journal, and the judge under `JUDGE`."""
    opened: dict[int, Provider] = {}
    settings = {place: one for place, one in enumerate(recipe.candidates) if one.kind != "local"}
    for place, one in {**settings, **({JUDGE: recipe.judge} if recipe.judge else {})}.items():
        same = next((provider for provider in opened.values() if provider.settings == one), None)
        opened[place] = same or open_provider(one)
        if same is None:
            stack.push_async_callback(opened[place].close)
    return opened


async def for_each(
    items: Sequence[Item], ask: Callable[[Item], Awaitable[None]], calls: Calls, recipe: PreferencesRecipe
) -> None:
    """Ask about every prompt that may still make a pair; those about which calls failed twice are left out.

    Raises:
        UserError, KeyboardInterrupt: as `ask_others`.
    """
    left = {item.prompt.number: item for item in items if not item.outcome}
    with progress_bar(len(left), 0, calls.budget, "prompt") as bar:

        async def work(number: int) -> None:
            await ask(left[number])
            bar.set_postfix_str(cost_so_far(calls.budget), refresh=False)
            bar.update()

        outcome = await work_through(left, work, calls, sum(one.concurrency for one in asked_of(recipe)))
    kept = f"what was paid for is kept ({cost_so_far(calls.budget)}), and the same command goes on"
    if outcome.stopped_by is not None:
        print(f"stopped: {kept}", file=sys.stderr)
        raise KeyboardInterrupt
    if outcome.ended is not None:
        raise UserError(f"{outcome.ended}; {kept}")
    for number, reason in outcome.failed.items():
        left[number].outcome = FAILED
        print(f"prompt {number}: {reason}", file=sys.stderr)


class Questions:
    """What is asked about a prompt; asked again, it costs nothing and changes nothing."""

    def __init__(
        self, recipe: PreferencesRecipe, constitution: Constitution, calls: Calls, providers: dict[int, Provider]
    ) -> None:
        self.recipe, self.calls, self.providers = recipe, calls, providers
        self.principles = {principle.name: principle for principle in constitution.principles}

    async def answer_and_judge(self, item: Item) -> None:
        """Answers of other models beside the local ones, then the judge's verdict on all.

        Raises:
            CallFailed: of a provider not one answer, or no verdict.
        """
        candidates = [c for c in item.candidates if c.provider not in self.providers]
        for place, provider in self.providers.items():
            if place != JUDGE:
                candidates += await answer_remotely(
                    self.calls, provider, place, item.prompt, self.recipe.num_candidates
                )
        item.candidates = candidates
        await self.judge(item, "judge")

    async def rewrite(self, item: Item) -> None:
        """The best answer and a bland rewriting of it become the two candidates.

        Raises:
            CallFailed: no rewriting, or no verdict.
        """
        fit = [place for place, candidate in enumerate(item.candidates) if candidate.can_be_chosen]
        if not fit:
            item.outcome = NOT_FIT
            return
        best = item.candidates[max(fit, key=lambda place: item.scores[place])]
        question, prompt = bland_question(item.prompt.messages, best.answer), item.prompt
        bland = await self.calls.ask(self.providers[JUDGE], prompt.number, "bland", question, prompt.seed, str)
        item.candidates = [best, Candidate(JUDGE, 0, bland.value, True, None, "a bland rewriting")]
        await self.judge(item, "judge-bland")

    async def judge(self, item: Item, step: str) -> None:
        """Give the candidates their judgement, where there is a judge and there is a choice."""
        texts = list(dict.fromkeys(candidate.answer for candidate in item.candidates))
        item.judgement = None
        if JUDGE not in self.providers or len(texts) < 2:
            return
        prompt, principles = item.prompt, [self.principles[name] for name in item.prompt.principles]
        judgement = await judge_answers(
            self.calls, self.providers[JUDGE], prompt.number, step, prompt.messages, texts, principles, prompt.seed
        )
        if judgement is None:
            item.outcome = UNKNOWN
        else:
            item.judgement = judgement.spread([texts.index(candidate.answer) for candidate in item.candidates])
