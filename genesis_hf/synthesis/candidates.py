"""Prompts, and several answers to each: from models in this process, or asked of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genesis_hf.answers import UnfinishedAnswers, read_answers
from genesis_hf.chat import Message
from genesis_hf.config import SampleRecipe
from genesis_hf.export import resolve_model
from genesis_hf.files import file_sha256, folder_sha256, hash_items
from genesis_hf.generate import load_chat, read_prompts, sample_batches, sampling
from genesis_hf.synthesis.calls import Calls
from genesis_hf.synthesis.constitution import Constitution, constitution_sha256
from genesis_hf.synthesis.pairs import Candidate
from genesis_hf.synthesis.prompts import check_prompts, plan_conversation, seed_of
from genesis_hf.synthesis.providers.base import CallFailed, Provider, ProviderUnusable
from genesis_hf.synthesis.recipe import PreferencesRecipe, ProviderSettings

ANSWER_KEYS = ("kind", "model", "max_tokens", "temperature", "top_p", "extra_body")
"""Settings of a provider that change its answers."""


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        seed: of what is drawn for it.
        category, topic, persona: None where it comes from a file.
        principles: names of those that answers are judged by.
    """

    number: int
    seed: int
    messages: list[Message]
    category: str | None
    topic: str | None
    persona: str | None
    principles: list[str]

    def audit(self) -> dict[str, Any]:
        """What lets it be derived again and compared."""
        known = {key: getattr(self, key) for key in ("category", "topic", "persona", "principles")}
        return {"number": self.number, "prompt_seed": self.seed, "prompt_sha256": hash_items([self.messages]), **known}


def make_prompts(recipe: PreferencesRecipe, constitution: Constitution) -> list[Prompt]:
    """The first `num_prompts` prompts of the recipe's file, or drawn from the constitution; fewer where a file ends.

    Raises:
        UserError: an unreadable file; too few combinations in the constitution.
    """
    if recipe.prompts is None:
        check_prompts(constitution, recipe.num_prompts)
        return [draw_prompt(constitution, recipe.seed, number) for number in range(recipe.num_prompts)]
    principles = [principle.name for principle in constitution.principles]
    return [
        Prompt(number, seed_of(recipe.seed, number), messages, None, None, None, principles)
        for number, messages in enumerate(read_prompts(recipe.prompts, recipe.num_prompts))
    ]


def draw_prompt(constitution: Constitution, seed: int, number: int) -> Prompt:
    """First question number `number`, as scripts/synthesize.py draws it; in the language of its template."""
    plan = plan_conversation(constitution, seed, number)
    messages = [{"role": "user", "content": plan.opening}]
    about = plan.category, plan.topic, plan.persona
    return Prompt(number, plan.prompt_seed, messages, *about, list(plan.principles))


def made_from(recipe: PreferencesRecipe, constitution: Constitution) -> dict[str, Any]:
    """All that the candidates depend on; with more prompts the ones there stay the same."""
    return {
        "constitution_sha256": constitution_sha256(constitution),
        "prompts_sha256": file_sha256(Path(recipe.prompts)) if recipe.prompts else None,
        "seed": recipe.seed,
        "num_candidates": recipe.num_candidates,
        "candidates": {str(place): describe_provider(settings) for place, settings in enumerate(recipe.candidates)},
    }


def describe_provider(settings: ProviderSettings) -> dict[str, Any]:
    """What of a provider's settings its answers depend on; of a local model, the hash of its files, too."""
    described = {key: getattr(settings, key) for key in ANSWER_KEYS}
    return described | ({"sha256": folder_sha256(resolve_model(settings.model))} if settings.kind == "local" else {})


def answer_locally(recipe: PreferencesRecipe, place: int, prompts: Sequence[Prompt]) -> list[list[Candidate]]:
    """Each prompt's answers by the local model number `place` of the recipe, written down as they come.

    What is drawn follows from the seed, the prompt's number and the candidate's alone. Interrupted, the same call goes
    on; finished, it reads.

    Raises:
        UserError: a model that can't be read, or prompts that don't fit into its context.
    """
    settings, k = recipe.candidates[place], recipe.num_candidates
    path = Path(recipe.output_dir) / f"candidates-{place}.jsonl"
    questions = [prompt.messages for prompt in prompts for _ in range(k)]
    answers = read_answers(path) if path.exists() else []
    if len(answers) < len(questions):
        unfinished = UnfinishedAnswers(path, {"place": place, **describe_provider(settings)})
        unfinished.add({number: a for number, a in enumerate(answers) if number not in unfinished.done})
        model, tokenizer = load_chat(settings.model)
        sampled = SampleRecipe(
            settings.model,
            str(path),
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature or 0.0,
            top_p=settings.top_p or 1.0,
        )
        generation = sampling(tokenizer, sampled)
        seed = seed_of(recipe.seed, "candidates", place)
        for batch in sample_batches(model, tokenizer, questions, generation, recipe.batch_size, seed, unfinished.done):
            unfinished.add(batch)
        answers = unfinished.finish()
    return [
        [Candidate(place, c, (a := answers[p * k + c]).answer, a.stopped, a.tokens) for c in range(k)]
        for p in range(len(prompts))
    ]


async def answer_remotely(
    calls: Calls, provider: Provider, place: int, prompt: Prompt, num_candidates: int
) -> list[Candidate]:
    """A prompt's answers by provider number `place`; one that can't be had is left out.

    Raises:
        CallFailed: not one of them.
        ProviderUnusable, BudgetUsedUp, Stopped: nothing more can be asked.
    """
    candidates, failure = [], None
    for number in range(num_candidates):
        step = f"candidate-{place}-{number}"
        try:
            asked = await calls.ask(provider, prompt.number, step, prompt.messages, prompt.seed, str)
        except ProviderUnusable:
            raise
        except CallFailed as error:
            failure = error
        else:
            candidates.append(Candidate(place, number, asked.value, True, None))
    if failure is not None and not candidates:
        raise failure
    return candidates
