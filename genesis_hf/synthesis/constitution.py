"""The constitution: what answers are to be like, and what they are to be about."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genesis_hf.config import build, read_yaml, setting
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items

SHARES_TOLERANCE = 1e-6

FIELD = re.compile(r"\{\{|\}\}|\{(\w*)\}")
"""Of a template: a field, or a brace written twice."""

LANGUAGES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish"},
    **{"de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian"},
    **{"fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian"},
    **{"id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian"},
    **{"ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian"},
    **{"ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili"},
    **{"ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu"},
    **{"vi": "Vietnamese", "zh": "Chinese"},
}
"""What a model is told to write in, by ISO 639-1 code."""


@dataclass
class Principle:
    """One thing that every answer should keep to."""

    name: str = setting(help="what it is called in records and reports")
    text: str = setting(help="the principle as one would tell it to a person")
    keeps: list[str] = setting([], "answers that keep it")
    breaks: list[str] = setting([], "answers that break it")


@dataclass
class Category:
    """A kind of conversation."""

    name: str = setting(help="what it is called in records and reports")
    share: float = setting(help="of all conversations; the shares of all categories add up to 1")
    templates: list[str] = setting(help="first questions, in English, with {topic} and {persona} as needed")
    topics: list[str] = setting([], "what they are about; none: the constitution's topics")
    principles: list[str] = setting([], "names of those that matter here; none: all")
    thinking: float = setting(0.0, "share of its conversations whose answers think first, in <think> … </think>")
    refusals: bool = setting(False, "answers may refuse, as they should where safety is the question")

    def __post_init__(self) -> None:
        if not self.templates:
            raise UserError(f"category {self.name!r}: templates is empty; give at least one first question")
        for key in ("share", "thinking"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"category {self.name!r}: {key} must lie between 0 and 1, not {getattr(self, key)}")


@dataclass
class Constitution:
    """What a person edits as YAML."""

    principles: list[Principle] = setting(help="what answers keep to")
    categories: list[Category] = setting(help="kinds of conversations, with shares")
    topics: list[str] = setting([], "for categories without their own")
    personas: list[str] = setting([], "who asks, as a noun phrase: 'a nurse on night shift'")
    languages: dict[str, float] = setting({"en": 1.0}, "share by ISO 639-1 code; they add up to 1")
    turns: dict[int, float] = setting({1: 1.0}, "share by the number of questions; they add up to 1")

    def __post_init__(self) -> None:
        if not self.principles:
            raise UserError("constitution: principles is empty; name at least one")
        if not self.categories:
            raise UserError("constitution: categories is empty; name at least one")
        for kind in ("principles", "categories"):
            names = [one.name for one in getattr(self, kind)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"constitution: {kind} has {twice[0]!r} twice; give each a name of its own")
        check_shares("categories", {category.name: category.share for category in self.categories})
        check_shares("languages", self.languages)
        check_shares("turns", self.turns)
        if wrong := [turns for turns in self.turns if turns < 1]:
            raise UserError(f"constitution: turns has {wrong[0]}; a conversation has at least 1")
        known = {principle.name for principle in self.principles}
        for category in self.categories:
            if unknown := [name for name in category.principles if name not in known]:
                raise UserError(
                    f"constitution: category {category.name!r} names the principle {unknown[0]!r}, which is none of "
                    f"{', '.join(sorted(known))}"
                )
            check_templates(self, category)
        if unknown := sorted(set(self.languages) - set(LANGUAGES)):
            raise UserError(
                f"constitution: languages has {unknown[0]!r}, which is none of the ISO 639-1 codes known here: "
                f"{', '.join(LANGUAGES)}"
            )
        check_distinct("topics", self.topics)
        check_distinct("personas", self.personas)


def check_templates(constitution: Constitution, category: Category) -> None:
    """Raise `UserError` unless a category's templates are distinct and there is what their fields ask for."""
    where = f"category {category.name!r}"
    check_distinct(f"{where}: templates", category.templates)
    check_distinct(f"{where}: topics", category.topics)
    there = {"topic": category.topics or constitution.topics, "persona": constitution.personas}
    for template in category.templates:
        for name in fields_of(template):
            if name not in there:
                raise UserError(
                    f"constitution: {where}: {{{name}}} in {template!r} is neither {{topic}} nor {{persona}}; "
                    "a brace of its own is written twice"
                )
            if not there[name]:
                raise UserError(f"constitution: {where} asks for {{{name}}}, and there are no {name}s")


def fields_of(template: str) -> list[str]:
    """The names in braces."""
    return [match[1] for match in FIELD.finditer(template) if match[1] is not None]


def check_distinct(key: str, texts: list[str]) -> None:
    """Raise `UserError` where one is empty or there twice."""
    seen = set()
    for text in texts:
        if not text.strip():
            raise UserError(f"constitution: {key} has an empty text")
        if text in seen:
            raise UserError(f"constitution: {key} has {text!r} twice")
        seen.add(text)


def check_shares(key: str, shares: dict[Any, float]) -> None:
    """Raise `UserError` unless shares are above or equal to 0 and add up to 1."""
    if wrong := [name for name, share in shares.items() if not 0 <= share <= 1]:
        raise UserError(f"constitution: {key}: the share of {wrong[0]} is {shares[wrong[0]]}; give 0 to 1")
    total = math.fsum(shares.values())
    if abs(total - 1) > SHARES_TOLERANCE:
        raise UserError(f"constitution: the shares of {key} add up to {total:.6g}, not 1")


def load_constitution(source: str | dict[str, Any]) -> Constitution:
    """A constitution from a YAML file, a recipe that has one under `constitution`, or the mapping itself.

    Raises:
        UserError: unreadable; an unknown key; shares that don't add up; a template that asks for what isn't there.
    """
    if isinstance(source, dict):
        return build(Constitution, source, "constitution")
    values = read_yaml(Path(source))
    inner = values.get("constitution", values)
    if isinstance(inner, str):
        return load_constitution(inner)
    return build(Constitution, inner, str(source))


def constitution_sha256(constitution: Constitution) -> str:
    """A hash of all that it says."""
    return hash_items([constitution])
