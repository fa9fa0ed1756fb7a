"""Recipes and constitutions of synthesis that tests make small."""

from pathlib import Path
from typing import Any

from chat_server import ChatServer

from genesis_hf.synthesis.constitution import Constitution, load_constitution
from genesis_hf.synthesis.recipe import ProviderSettings, SynthesizeRecipe

CONSTITUTION: dict[str, Any] = {
    "principles": [
        {"name": "helpful", "text": "Be helpful.", "keeps": ["Use a sieve."], "breaks": ["Look it up."]},
        {"name": "curious", "text": "Be curious."},
    ],
    "categories": [
        {"name": "reasoning", "share": 0.6, "templates": ["How does {topic} work?", "I'm {persona}. What is {topic}?"]},
        {"name": "safety", "share": 0.4, "templates": ["As {persona}, may I break {topic}?"]},
    ],
    "topics": [f"the {name}" for name in ("bridge", "lens", "river", "loaf", "tide", "clock", "rope", "page")],
    "personas": [f"a {name}" for name in ("nurse", "baker", "pilot", "clerk", "sailor", "welder", "tailor", "judge")],
}


def constitution(**changes: Any) -> Constitution:
    return load_constitution(CONSTITUTION | changes)


def provider(server: ChatServer | None = None, **changes: Any) -> ProviderSettings:
    """Settings whose retries don't keep a test waiting: the server says when."""
    values = {"model": "scripted", "base_url": server and server.base_url, "concurrency": 8, "max_tokens": 64}
    return ProviderSettings(**values | changes)


def recipe(folder: Path, server: ChatServer | None = None, **changes: Any) -> SynthesizeRecipe:
    values = {"output_dir": str(folder), "constitution": CONSTITUTION, "num_conversations": 40}
    return SynthesizeRecipe(**{"provider": provider(server)} | values | changes)
