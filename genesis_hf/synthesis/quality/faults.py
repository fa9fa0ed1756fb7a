"""What is wrong with the answers of a conversation, each by itself."""

import re
from collections.abc import Sequence

from genesis_hf.chat import Message
from genesis_hf.conversations.checks import Fault, check_messages
from genesis_hf.style.refusal import refusal_of
from genesis_hf.style.repetition import repeated_share
from genesis_hf.style.text import is_english, prose_of, visible, words_of
from genesis_hf.synthesis.constitution import Category
from genesis_hf.synthesis.recipe import QualitySettings

Reason = tuple[str, str]
"""A kind, under which conversations are counted, and details."""

BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model|virtual assistant|chatbot)\b"
    r"|\bmy (?:knowledge cut-?off|training data)\b"
    r"|\bi hope (?:this|that|it) (?:helps|was helpful|answers your question)\b"
    r"|\b(?:please )?(?:feel free|don't hesitate) to (?:ask|reach out|let me know|contact)\b"
    r"|\blet me know if you (?:have|need|want|would like|'d like)\b"
    r"|\bif you have any (?:other|more|further|additional) questions\b"
    r"|\bis there anything else (?:i can|you)\b"
)
"""Phrases that say nothing, or speak of being a machine; English, in lower case."""


def boilerplate_of(answer: str) -> str | None:
    """The first such phrase of an English answer's prose, in lower case; None where there is none."""
    if not is_english(answer):
        return None
    match = BOILERPLATE.search(" ".join(prose_of(answer).lower().split()))
    return match and match[0]


def fault_of_answer(answer: str, category: Category | None, settings: QualitySettings) -> Reason | None:
    """What is wrong with one answer; None: nothing.

    Args:
        category: its conversation's, which may allow refusals; None where it is not known.
    """
    if not visible(answer):
        return "empty", "nothing after its thoughts" if answer.strip() else "no text"
    may_refuse = category is not None and category.refusals
    if settings.drop_refusals and not may_refuse and (phrase := refusal_of(answer)):
        return "refusal", phrase
    if settings.drop_boilerplate and (phrase := boilerplate_of(answer)):
        return "boilerplate", phrase
    share = repeated_share(words_of(visible(answer)))
    if share > settings.max_answer_repetition:
        return "repetitive", f"{100 * share:.0f} % of its word 4-grams are repeats"
    return None


def fault_of(messages: Sequence[Message], category: Category | None, settings: QualitySettings) -> Reason | None:
    """What is wrong with a conversation, or with one of its answers; None: nothing."""
    try:
        check_messages(messages)
    except Fault as fault:
        return "not trainable", str(fault)
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return next(filter(None, (fault_of_answer(answer, category, settings) for answer in answers)), None)
