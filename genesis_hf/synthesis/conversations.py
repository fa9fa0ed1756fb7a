"""One conversation: first question, answers held to the constitution, a simulated user's further questions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from genesis_hf.chat import END_THINK, THINK, Message
from genesis_hf.files import hash_items
from genesis_hf.synthesis.calls import Asked, Calls, Unusable
from genesis_hf.synthesis.constitution import LANGUAGES, Constitution, Principle
from genesis_hf.synthesis.prompts import Plan
from genesis_hf.synthesis.providers.base import Provider
from genesis_hf.synthesis.recipe import ProviderSettings
from genesis_hf.version import __version__

T = TypeVar("T")

THOUGHT = re.compile(rf"\s*{THINK}(.*?){END_THINK}(.*)", re.DOTALL)

NOTHING_TO_CHANGE = "Nothing to change."


@dataclass(frozen=True)
class Cast:
    """Who answers, who criticises, who plays the user."""

    assistant: Provider
    critic: Provider
    user: Provider


async def converse(
    plan: Plan, constitution: Constitution, constitution_sha256: str, cast: Cast, calls: Calls, revisions: int
) -> dict[str, Any]:
    """A planned conversation as it goes into the records.

    Raises:
        CallFailed: it can't be finished now.
        ProviderUnusable, BudgetUsedUp, Stopped: nothing more can be asked.
    """
    system = {"role": "system", "content": answer_instructions(plan, constitution)}
    messages: list[Message] = []
    revised: list[dict[str, Any]] = []

    async def ask(provider: Provider, step: str, asked: list[Message], accept: Callable[[str], T]) -> Asked[T]:
        return await calls.ask(provider, plan.index, step, asked, plan.prompt_seed, accept)

    for turn in range(1, plan.turns + 1):
        question = plan.opening
        if turn > 1:
            asked = next_question(plan, messages)
            question = (await ask(cast.user, f"question-{turn}", asked, spoken)).value
        elif plan.language != "en":
            asked = opening_in_language(plan)
            question = (await ask(cast.user, "opening", asked, spoken)).value
        messages.append({"role": "user", "content": question})
        answer = await ask(cast.assistant, f"answer-{turn}", [system, *messages], answer_of(plan))

        # ------------------------------------------------------------------------------------------------
        # Critique and revision, a principle a round (Bai et al. 2022, "Constitutional AI")
        # ------------------------------------------------------------------------------------------------
        for number in range(revisions):
            name = plan.principles[((turn - 1) * revisions + number) % len(plan.principles)]
            principle = next(one for one in constitution.principles if one.name == name)
            step = f"{turn}.{number + 1}"
            asked = critique_of(principle, messages, answer.value)
            critique = await ask(cast.critic, f"critique-{step}", asked, spoken)
            entry = {"turn": turn, "principle": name, "draft": answer.value, "critique": critique.value}
            revised.append(entry | {"critic": critique.model, "revised": None})
            if critique.value.rstrip(".").lower() == NOTHING_TO_CHANGE.rstrip(".").lower():
                continue
            asked = [system, *messages, *revision_after(answer.value, critique.value)]
            answer = await ask(cast.assistant, f"revision-{step}", asked, answer_of(plan))
            revised[-1]["revised"] = answer.value
        messages.append({"role": "assistant", "content": answer.value})

    return {
        "index": plan.index,
        "id": f"{constitution_sha256[:8]}-{plan.prompt_seed:08x}-{plan.index}",
        "messages": messages,
        **plan_fields(plan),
        "opening_sha256": hash_items([plan.opening]),
        "constitution_sha256": constitution_sha256,
        "provider": cast.assistant.settings.kind,
        "model": answer.model,
        "settings": settings_of(cast.assistant.settings) | {"revisions": revisions},
        "revisions": revised,
        **usage_of(calls.of(plan.index)),
        "sha256": hash_items(messages),
        "genesis_hf": __version__,
    }


def plan_fields(plan: Plan) -> dict[str, Any]:
    """What of a plan a record holds, and `--verify` compares."""
    return {
        "category": plan.category,
        "topic": plan.topic,
        "persona": plan.persona,
        "language": plan.language,
        "turns": plan.turns,
        "thinking": plan.thinking,
        "principles": list(plan.principles),
        "prompt_seed": plan.prompt_seed,
    }


def settings_of(settings: ProviderSettings) -> dict[str, Any]:
    """What changes answers, of a provider's settings."""
    names = ("model", "max_tokens", "temperature", "top_p", "extra_body")
    return {name: getattr(settings, name) for name in names}


def usage_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Calls, tokens and US dollars of a conversation's journal entries; null where one of them doesn't say."""

    def total(key: str) -> Any:
        values = [entry[key] for entry in entries]
        return None if None in values else sum(values)

    cost = total("cost")
    usage = {key: total(key) for key in ("prompt_tokens", "completion_tokens")}
    return {"usage": {"calls": len(entries), **usage}, "cost": cost if cost is None else round(cost, 8)}


# ---------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------


def answer_instructions(plan: Plan, constitution: Constitution) -> str:
    """The system turn under which answers are written; it is no part of the record's messages."""
    chosen = [one for one in constitution.principles if one.name in plan.principles]
    parts = [
        "You are the assistant in a conversation. Your answers keep to these principles:",
        *map(describe, chosen),
        f"Write in {LANGUAGES[plan.language]}. Answer the person; never mention these instructions or the principles.",
    ]
    if plan.thinking:
        parts.append(
            f"Begin with your reasoning between {THINK} and {END_THINK}: what is asked, what matters, what might be "
            "wrong. Then write the answer itself, which must stand on its own."
        )
    return "\n\n".join(parts)


def describe(principle: Principle) -> str:
    """A principle with its examples."""
    lines = [f"{principle.name}: {principle.text.strip()}"]
    lines += [f"An answer that keeps it: {text.strip()}" for text in principle.keeps]
    lines += [f"An answer that breaks it: {text.strip()}" for text in principle.breaks]
    return "\n".join(lines)


def critique_of(principle: Principle, messages: Sequence[Message], answer: str) -> list[Message]:
    return [
        {
            "role": "system",
            "content": "You review an assistant's answers by one principle. In at most three sentences you say where "
            "an answer falls short of it and what would mend that: concretely, quoting the words you mean. If it "
            f"keeps the principle fully, you write only: {NOTHING_TO_CHANGE}",
        },
        {
            "role": "user",
            "content": f"The principle\n\n{describe(principle)}\n\nThe conversation\n\n{transcript(messages)}\n\n"
            f"The answer to review\n\n{answer}\n\nYour review:",
        },
    ]


def revision_after(draft: str, critique: str) -> list[Message]:
    return [
        {"role": "assistant", "content": draft},
        {
            "role": "user",
            "content": f"A reviewer says of this answer:\n\n{critique}\n\nWrite the answer again so that it mends "
            "this and keeps what was good. Write only the new answer, as if it were the first.",
        },
    ]


def next_question(plan: Plan, messages: Sequence[Message]) -> list[Message]:
    return [
        {"role": "system", "content": user_instructions(plan)},
        {
            "role": "user",
            "content": f"The conversation so far\n\n{transcript(messages)}\n\nWrite the person's next message: what "
            "such a person would really say now. They may ask further, doubt, disagree, give a detail or change the "
            "aim a little; they don't thank and don't sum up. Only the message, without a name before it:",
        },
    ]


def opening_in_language(plan: Plan) -> list[Message]:
    return [
        {"role": "system", "content": user_instructions(plan)},
        {
            "role": "user",
            "content": f"Say this in {LANGUAGES[plan.language]}, as such a person would write it there, nothing added "
            f"and nothing left out. Only the message:\n\n{plan.opening}",
        },
    ]


def user_instructions(plan: Plan) -> str:
    who = f"{plan.persona}, in a conversation with an assistant" if plan.persona else "the user of a chat assistant"
    return f"You play {who}. You write in {LANGUAGES[plan.language]}, in your own words and as shortly as people type."


def transcript(messages: Sequence[Message]) -> str:
    """The turns as text, without what the assistant thought."""
    names = {"user": "Person", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message['role']]}: {without_thought(message['content'])}" for message in messages)


# ---------------------------------------------------------------------------------------------------------
# What came back
# ---------------------------------------------------------------------------------------------------------


def spoken(text: str) -> str:
    """A text without the thoughts that some models write before it.

    Raises:
        Unusable: nothing is left, or they don't end.
    """
    text = without_thought(text)
    if THINK in text or END_THINK in text:
        raise Unusable(f"{THINK} and {END_THINK} are not one pair before the answer")
    if not text:
        raise Unusable("nothing follows the thoughts")
    return text


def without_thought(text: str) -> str:
    match = THOUGHT.fullmatch(text)
    return (match[2] if match else text).strip()


def answer_of(plan: Plan) -> Callable[[str], str]:
    """How an answer is read: with thoughts, as `chat_turns.flatten_answer` lays them out, or without any."""

    def with_thought(text: str) -> str:
        answer = spoken(text)
        match = THOUGHT.fullmatch(text)
        if match is None or not match[1].strip():
            raise Unusable(f"no thoughts between {THINK} and {END_THINK}")
        return f"{THINK}\n{match[1].strip()}\n{END_THINK}\n\n{answer}"

    return with_thought if plan.thinking else spoken
