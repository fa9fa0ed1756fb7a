"""Recipes of `scripts/synthesize.py` and `scripts/build_preferences.py`."""

import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from genesis_hf.config import check_positive, setting
from genesis_hf.errors import UserError


@dataclass(kw_only=True)
class ProviderSettings:
    """Who answers, how, and at what price."""

    kind: Literal["openai", "anthropic", "local"] = setting(
        "openai", "an OpenAI-compatible endpoint, Anthropic's API, or a Hugging Face model in this process"
    )
    model: str = setting(help="its name there; local: a folder, run directory or Hub id")
    base_url: str | None = setting(None, "of the endpoint, such as http://127.0.0.1:8000/v1; null: the vendor's own")
    api_key_env: str | None = setting(
        None, "environment variable that holds the key; null: OPENAI_API_KEY or ANTHROPIC_API_KEY, none for loopback"
    )
    max_tokens: int = setting(1024, "of an answer")
    temperature: float | None = setting(0.8, "null: the model's own; local: greedy")
    top_p: float | None = setting(0.95, "null: the model's own; anthropic: sent where temperature is null")
    timeout: float = setting(120.0, "seconds that a call may take")
    max_retries: int = setting(6, "of a call that failed for a passing reason, with back-off")
    concurrency: int = setting(16, "calls at once")
    requests_per_minute: float | None = setting(None, "null: no limit")
    tokens_per_minute: float | None = setting(None, "prompt and answer together; null: no limit")
    prompt_price: float | None = setting(None, "US dollars a million prompt tokens; null: unknown")
    completion_price: float | None = setting(None, "US dollars a million tokens of answers; null: unknown")
    extra_body: dict[str, Any] = setting({}, "further fields of an OpenAI-compatible request")

    def __post_init__(self) -> None:
        for name in ("max_tokens", "timeout", "concurrency"):
            check_positive(self, name)
        for name in ("requests_per_minute", "tokens_per_minute", "top_p"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for name in ("max_retries", "prompt_price", "completion_price", "temperature"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        if (self.top_p or 0) > 1:
            raise UserError(f"top_p must be at most 1, not {self.top_p}")
        # Neither is shown: it may be the secret.
        if self.api_key_env is not None and not re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env):
            raise UserError("api_key_env takes the name of an environment variable (A-Z, 0-9, _), never the key itself")
        if self.base_url is not None and not is_plain_address(self.base_url):
            raise UserError("base_url must be like http://127.0.0.1:8000/v1, without a password, `?` or `#`")


def is_plain_address(url: str) -> bool:
    """Whether it is an address of HTTP, with nothing in it that could be secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https") and bool(parts.hostname) and not ("@" in url or parts.query or parts.fragment)
    )


@dataclass(kw_only=True)
class BudgetSettings:
    """What a run may spend, in all of its starts together."""

    max_cost: float | None = setting(None, "US dollars; needs the prices of every provider; null: no limit")
    max_total_tokens: int | None = setting(None, "prompt and answer tokens; null: no limit")

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_total_tokens"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(
                    f"{name} is {getattr(self, name)}: nothing can be asked; give more, or null for no limit"
                )


@dataclass(kw_only=True)
class QualitySettings:
    """What is kept of what was written."""

    near_duplicates: float = setting(0.8, "Jaccard similarity of word 5-grams from which a text counts as a copy")
    max_answer_repetition: float = setting(0.5, "share of an answer's word 4-grams that may be repeats")
    drop_refusals: bool = setting(True, "drop conversations whose answers refuse, but in categories that allow it")
    drop_boilerplate: bool = setting(True, "drop conversations whose answers hope to help or speak of being a model")
    check_language: bool = setting(True, "drop conversations in another language than was asked for")
    evaluation_sets: list[str] = setting([], "files whose items must not occur, as scripts/decontaminate.py takes them")
    license: str | None = setting(None, "of what the provider's model writes, for the data card; null: unknown")

    def check(self) -> None:
        for name in ("near_duplicates", "max_answer_repetition"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")


@dataclass(kw_only=True)
class SynthesizeRecipe(BudgetSettings, QualitySettings):
    """`scripts/synthesize.py`"""

    output_dir: str = setting(help="folder of the records, the conversations kept and the report")
    constitution: dict[str, Any] | str = setting(help="the constitution, or the YAML file that holds it")
    provider: ProviderSettings = setting(help="who answers")
    critic: ProviderSettings | None = setting(None, "who criticises; null: the provider")
    user: ProviderSettings | None = setting(None, "who plays the user from the second question on; null: the provider")
    num_conversations: int = setting(1000)
    revisions: int = setting(0, "rounds of critique and revision of each answer, a principle each")
    seed: int = setting(42, "what is asked follows from it")
    verify: bool = setting(False, "derive the prompts of the records again, compare, write nothing")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and five of the prompts, and ask nobody")

    def __post_init__(self) -> None:
        BudgetSettings.__post_init__(self)
        self.check()
        check_positive(self, "num_conversations")
        if self.revisions < 0:
            raise UserError(f"revisions must be at least 0, not {self.revisions}")


@dataclass(kw_only=True)
class PreferencesRecipe(BudgetSettings, QualitySettings):
    """`scripts/build_preferences.py`"""

    output_dir: str = setting(help="folder of the candidates, judgements, pairs and the report")
    constitution: dict[str, Any] | str = setting(help="the constitution, or the YAML file that holds it")
    prompts: str | None = setting(None, ".jsonl of prompts or conversations; null: drawn from the constitution")
    num_prompts: int = setting(1000)
    candidates: list[ProviderSettings] = setting(help="who answers: usually the SFT model, kind: local")
    num_candidates: int = setting(4, "answers of each of them to a prompt")
    judge: ProviderSettings | None = setting(None, "the model that judges; null: measured style alone")
    style: dict[str, float] = setting(
        {}, "weight by measure of genesis_hf.style, such as hedging_rate: -1; added to the judge's score, or the score"
    )
    rejected: Literal["worst", "bland"] = setting("worst", "the worst candidate, or the best one rewritten blandly")
    min_margin: float = setting(0.0, "pairs whose scores differ by no more are left out")
    length_tolerance: float = setting(0.05, "how far mean lengths of chosen and rejected may lie apart, relative")
    max_length_drop: float = setting(0.3, "share of the pairs that may be dropped so that they don't")
    held_out_share: float = setting(0.1, "of the prompts, whose pairs go to preferences_held_out.jsonl")
    batch_size: int = setting(64, "kind: local: answers written at once")
    seed: int = setting(42, "prompts, sampling and the order shown to the judge follow from it")
    verify: bool = setting(False, "derive the prompts of the pairs again, compare, write nothing")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and the plan, and ask nobody")

    def __post_init__(self) -> None:
        BudgetSettings.__post_init__(self)
        self.check()
        for name in ("num_prompts", "num_candidates"):
            check_positive(self, name)
        if not self.candidates:
            raise UserError("candidates is empty: name at least the SFT model")
        if self.judge is None and not self.style:
            raise UserError("nobody judges: give `judge`, or weights of `style` measures")
        for place, settings in enumerate(self.candidates):
            if settings.kind == "local" and not settings.temperature and self.num_candidates > 1:
                raise UserError(f"candidates: number {place} is greedy and answers alike each time: give a temperature")
        if self.rejected == "bland" and self.judge is None:
            raise UserError("rejected: bland needs `judge`, the model that writes the bland answers")
        if self.rejected == "worst" and self.num_candidates * len(self.candidates) < 2:
            raise UserError("one candidate has nothing to be compared with: raise num_candidates, or rejected: bland")
        for name in ("max_length_drop", "held_out_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.length_tolerance <= 0 or self.min_margin < 0:
            raise UserError("length_tolerance must be above 0, and min_margin not below it")
