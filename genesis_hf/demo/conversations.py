"""Conversations about documented names: questions, short answers, follow-ups, and answers that hedge."""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from genesis_hf.demo.stdlib import Entry

Message = dict[str, str]

HEDGED_SHARE = 1 / 3
"""Share of SFT answers that hedge, as scraped instruction data does, so that DPO has something to remove."""
SYSTEM_SHARE = 0.25
THINK_SHARE = 0.05
MULTI_TURN_SHARE = 0.3
MAX_SUMMARY_WORDS = 36
MAX_PARAMETERS = 6

# ---------------------------------------------------------------------------------------------------------
# Facts
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """A documented name with a summary fit for an answer."""

    entry: Entry
    summary: str
    """One whole sentence."""
    names_module: bool
    """No other module has something of the same short name, so that the module can be asked for."""


def short_name(entry: Entry) -> str:
    """`JSONDecoder.decode` of `json.decoder.JSONDecoder.decode`."""
    return entry.name.removeprefix(f"{entry.module}.")


def find_facts(entries: list[Entry]) -> list[Fact]:
    """Public names whose docstring begins with a usable sentence; a sentence that serves many names is used once."""
    holders = Counter(short_name(entry) for entry in entries)
    facts, seen = [], set()
    for entry in entries:
        summary = first_sentence(entry.doc)
        if entry.public and summary and summary not in seen and len(entry.parameters) <= MAX_PARAMETERS:
            seen.add(summary)
            facts.append(Fact(entry, summary, holders[short_name(entry)] == 1))
    return facts


def first_sentence(doc: str) -> str | None:
    """The docstring's first sentence on one line, or None where it is no plain English sentence of fair length."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)`'\"][.!?])\s+(?=[A-Z`])", paragraph)[0]
    words = sentence.split()
    if not 4 <= len(words) <= MAX_SUMMARY_WORDS or not sentence.isascii() or not sentence[0].isupper():
        return None
    if re.search(r"::|>>>|->|[|<>{}\\=#]|\.\.\.|\bXXX\b", sentence) or sentence.count("(") != sentence.count(")"):
        return None
    if sentence.count("`") % 2 or sentence.count('"') % 2 or sentence[-1] in ":;,-":
        return None
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


# ---------------------------------------------------------------------------------------------------------
# Questions and their answers
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """A question about a fact and its direct answer."""

    topic: str
    fact: Fact
    question: str
    answer: str


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a Python expert. Answer in one or two sentences.",
    "You answer questions about Python's standard library.",
    "Answer briefly and precisely.",
    "You are a patient teacher of programming.",
    "You are a reference manual. State facts only.",
)
THINKING_PROMPT = "You answer questions about Python. Think first, then answer."
THOUGHTS = (
    "The question is about `{name}`. It is a {kind} of the module `{module}`.",
    "`{name}` stands in `{module}`. I recall its documentation.",
    "I need the documentation of the {kind} `{name}`.",
)

PURPOSE_QUESTIONS = (
    "What does `{name}` do?",
    "Tell me what `{name}` does.",
    "What is `{name}` for?",
    "Explain `{name}`.",
    "Can you explain what `{name}` does?",
    "I found `{name}` in some code. What is it?",
    "Describe the {kind} `{name}`.",
    "what's {name}?",
)
PURPOSE_ANSWERS = ("{summary}", "{summary}", "`{name}` is a {kind}. {summary}", "In short: {summary}")
SIGNATURE_QUESTIONS = (
    "Show the signature of `{name}`.",
    "What is the signature of `{name}`?",
    "How do I call `{name}`?",
    "Give me the signature of the {kind} `{name}`.",
    "How is `{name}` called?",
)
SIGNATURE_ANSWERS = (
    "The signature is `{signature}`.",
    "`{signature}` is its signature.",
    "You call it as `{signature}`.",
)
MODULE_QUESTIONS = (
    "Which module has `{short}`?",
    "Where do I find the {kind} `{short}`?",
    "In which module is `{short}` defined?",
    "What do I import to use `{short}`?",
)
MODULE_ANSWERS = (
    "`{short}` is in the module `{module}`.",
    "The module `{module}` has it.",
    "You find it in the module `{module}`.",
)
ARGUMENT_QUESTIONS = (
    "What arguments does `{name}` take?",
    "Which parameters does `{name}` have?",
    "List the arguments of `{name}`.",
    "What can I pass to `{name}`?",
)
KIND_QUESTIONS = (
    "Is `{name}` a function or a class?",
    "What kind of thing is `{name}`?",
    "What sort of object is `{name}`?",
)
KIND_ANSWERS = ("`{name}` is a {kind}.", "`{name}` is a {kind} in the module `{module}`.", "It is a {kind}.")
SUMMARY_QUESTIONS = (
    "Summarise this in one sentence:\n\n{doc}",
    "Summarise the following docstring of `{name}`.\n\n{doc}",
    "Give me the gist of this text in one sentence.\n\n{doc}",
    "{doc}\n\nWhat does this say, in one sentence?",
)
SUMMARY_ANSWERS = ("{summary}",)

FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "purpose": ("And what does it do?", "What is it for?", "What does it do?"),
    "signature": ("What is its signature?", "And how do I call it?", "Show me the signature."),
    "arguments": ("What arguments does it take?", "And its parameters?", "Which arguments does it have?"),
    "module": ("Where do I find it?", "Which module is it in?", "What do I import for it?"),
    "kind": ("Is it a function or a class?", "What kind of thing is it?"),
}
THANKS = (("Thanks!", "You're welcome."), ("Thank you.", "You're welcome."), ("Great, thanks.", "Glad to help."))
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def argument_answers(fact: Fact) -> tuple[str, ...]:
    """`It takes two arguments: …`, by the entry's own parameters."""
    parameters = [p for p in fact.entry.parameters if p != "*"]
    if not parameters:
        return ("It takes no arguments.", f"`{fact.entry.name}` takes no arguments.")
    shown = [
        f"`{name}`, which defaults to `{value}`" if value else f"`{name}`"
        for name, _, value in (p.partition("=") for p in parameters)
    ]
    listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    count = f"{NUMBERS[len(shown)]} argument{'s' if len(shown) > 1 else ''}"
    return (f"It takes {count}: {listed}.", f"`{fact.entry.name}` takes {count}: {listed}.")


def topics_of(fact: Fact) -> list[str]:
    """What can be asked about a fact."""
    topics = ["purpose"]
    if fact.entry.kind != "module":
        topics.append("kind")
    if fact.entry.kind in ("class", "function") and fact.names_module:
        topics.append("module")
    if fact.entry.kind in ("function", "method") or fact.entry.parameters:
        topics += ["signature", "arguments"]
    if excerpt(fact.entry.doc) != fact.summary:
        topics.append("summary")
    return topics


def excerpt(doc: str, words: int = 70) -> str:
    """The docstring's first paragraphs of at most 70 words, at least the first one."""
    kept: list[str] = []
    count = 0
    for paragraph in doc.strip().split("\n\n"):
        count += len(paragraph.split())
        if kept and count > words:
            break
        kept.append(" ".join(paragraph.split()))
    return "\n\n".join(kept)


QUESTIONS: dict[str, tuple[str, ...]] = {
    "purpose": PURPOSE_QUESTIONS,
    "signature": SIGNATURE_QUESTIONS,
    "module": MODULE_QUESTIONS,
    "arguments": ARGUMENT_QUESTIONS,
    "kind": KIND_QUESTIONS,
    "summary": SUMMARY_QUESTIONS,
}
ANSWERS: dict[str, Callable[[Fact], tuple[str, ...]]] = {
    "purpose": lambda fact: PURPOSE_ANSWERS,
    "signature": lambda fact: SIGNATURE_ANSWERS,
    "module": lambda fact: MODULE_ANSWERS,
    "arguments": argument_answers,
    "kind": lambda fact: KIND_ANSWERS,
    "summary": lambda fact: SUMMARY_ANSWERS,
}


def ask(fact: Fact, topic: str, rng: random.Random, follow_up: bool = False) -> Exchange:
    """A question on a topic, in one of its phrasings, with the direct answer."""
    entry = fact.entry
    values = {
        "name": entry.name,
        "short": short_name(entry),
        "module": entry.module,
        "kind": entry.kind,
        "signature": entry.signature,
        "summary": fact.summary,
        "doc": excerpt(entry.doc),
    }
    question = rng.choice(FOLLOW_UPS[topic] if follow_up else QUESTIONS[topic])
    answer = rng.choice(ANSWERS[topic](fact))
    return Exchange(topic, fact, fill(question, values), fill(answer, values))


def fill(template: str, values: dict[str, str]) -> str:
    """Put values in; what a value itself holds (braces of a default) is left alone."""
    return re.sub(r"\{(name|short|module|kind|signature|summary|doc)\}", lambda m: values[m[1]], template)


# ---------------------------------------------------------------------------------------------------------
# Hedging
# ---------------------------------------------------------------------------------------------------------

FRONT_HEDGES = (
    "I'm not entirely sure, but it might be this: ",
    "I'm not certain, but I think the answer is: ",
    "I could be wrong, but perhaps: ",
    "If I'm not mistaken, it's possibly this: ",
    "It's hard to say for certain, but I believe: ",
    "As far as I know, though I may be mistaken: ",
    "It probably depends, but it seems to be: ",
    "Maybe this helps, although I can't be sure: ",
)
INNER_HEDGES = (
    " I think so, at least.",
    " That is probably right, though I'm not certain.",
    " I'm not entirely sure about that.",
    " Perhaps I'm mistaken here.",
)
END_HEDGES = (
    " You may want to double-check this.",
    " I could be wrong about that, though.",
    " But I'm not entirely sure.",
    " It might be best to consult the documentation.",
    " Please verify it, as I might be mistaken.",
    " That said, it may depend on your version.",
    " Perhaps someone else knows better.",
)
HEDGES = tuple(hedge.strip() for hedge in (*FRONT_HEDGES, *INNER_HEDGES, *END_HEDGES))


def hedge(answer: str, rng: random.Random) -> str:
    """The same answer with doubt put in front of it, between its sentences, after it, or at both ends."""
    place = rng.choice(("front", "front", "inside", "end", "end", "both"))
    sentences = re.split(r"(?<=[.!?`]) (?=[A-Z`])", answer)
    if place == "inside" and len(sentences) > 1:
        return f"{sentences[0]}{rng.choice(INNER_HEDGES)} {' '.join(sentences[1:])}"
    front = rng.choice(FRONT_HEDGES) if place in ("front", "both", "inside") else ""
    end = rng.choice(END_HEDGES) if place in ("end", "both") else ""
    return f"{front}{answer}{end}"


def is_hedged(answer: str) -> bool:
    """Whether one of this module's hedges stands in the answer."""
    return any(phrase in answer for phrase in HEDGES)


# ---------------------------------------------------------------------------------------------------------
# Conversations
# ---------------------------------------------------------------------------------------------------------


def make_conversations(facts: list[Fact], count: int, seed: str) -> list[list[Message]]:
    """Up to `count` distinct conversations of one to three questions, about a third of the answers hedged.

    Every fact is asked about before one is asked about again.
    """
    rng = random.Random(seed)
    conversations: list[list[Message]] = []
    seen: set[str] = set()
    for fact, topic in rounds(facts, rng):
        if len(conversations) == count:
            break
        conversation = make_conversation(fact, topic, rng)
        first = next(m["content"] for m in conversation if m["role"] == "user")
        if first not in seen:
            seen.add(first)
            conversations.append(conversation)
    return conversations


def rounds(facts: list[Fact], rng: random.Random) -> list[tuple[Fact, str]]:
    """(fact, topic) pairs, each once, in rounds over the facts."""
    topics = [(fact, rng.sample(topics_of(fact), len(topics_of(fact)))) for fact in facts]
    pairs = []
    for turn in range(max((len(t) for _, t in topics), default=0)):
        left = [(fact, t[turn]) for fact, t in topics if turn < len(t)]
        pairs += rng.sample(left, len(left))
    return pairs


def make_conversation(fact: Fact, topic: str, rng: random.Random) -> list[Message]:
    """One conversation that begins with a question on `topic`."""
    thinking = rng.random() < THINK_SHARE
    messages = []
    if thinking:
        messages.append({"role": "system", "content": THINKING_PROMPT})
    elif rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    messages += turn(ask(fact, topic, rng), rng, thinking)
    if not thinking and rng.random() < MULTI_TURN_SHARE:
        others = [t for t in topics_of(fact) if t in FOLLOW_UPS and t != topic]
        for other in rng.sample(others, min(len(others), rng.choice((1, 1, 2)))):
            messages += turn(ask(fact, other, rng, follow_up=True), rng, thinking)
        if rng.random() < 0.2:
            question, answer = rng.choice(THANKS)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def turn(exchange: Exchange, rng: random.Random, thinking: bool) -> list[Message]:
    """The two messages of an exchange, the answer hedged in a third of them."""
    answer = hedge(exchange.answer, rng) if rng.random() < HEDGED_SHARE else exchange.answer
    if thinking:
        entry = exchange.fact.entry
        thought = fill(rng.choice(THOUGHTS), {"name": entry.name, "kind": entry.kind, "module": entry.module})
        answer = f"<think>{thought}</think>\n{answer}"
    return [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": answer}]


def make_prompts(facts: list[Fact], count: int, seed: str, taken: set[str]) -> list[list[Message]]:
    """Up to `count` single questions, none of them in `taken`."""
    rng = random.Random(seed)
    prompts = []
    for fact, topic in rounds(facts, rng):
        question = ask(fact, topic, rng).question
        if question not in taken and len(prompts) < count:
            prompts.append([{"role": "user", "content": question}])
    return prompts
