"""The constitution: what answers are to be like, and what they are to be about."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genesis_hf.config import build, read_yaml, setting
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items

SHARES_TOLERANCE = 1e-6


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
    templates: list[str] = setting(help="first questions, with {topic} and {persona} in them as needed")
    topics: list[str] = setting([], "what they are about; none: the constitution's topics")
    principles: list[str] = setting([], "names of those that matter here; none: all")
    thinking: float = setting(0.0, "share of its conversations whose answers think first, in <think> … </think>")

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
            asked = " ".join(category.templates)
            if "{topic}" in asked and not (category.topics or self.topics):
                raise UserError(f"constitution: category {category.name!r} asks for {{topic}}, and there are no topics")
            if "{persona}" in asked and not self.personas:
                raise UserError(f"constitution: category {category.name!r} asks for {{persona}}, and there are none")


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
