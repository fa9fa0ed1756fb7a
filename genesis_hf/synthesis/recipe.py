"""Recipes of `scripts/synthesize.py` and `scripts/build_preferences.py`."""

from dataclasses import dataclass
from typing import Any, Literal

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
    temperature: float = setting(0.8)
    top_p: float = setting(0.95)
    timeout: float = setting(120.0, "seconds that a call may take")
    max_retries: int = setting(6, "of a call that failed for a passing reason, with back-off")
    concurrency: int = setting(16, "calls at once")
    requests_per_minute: float | None = setting(None, "null: no limit")
    tokens_per_minute: float | None = setting(None, "prompt and answer together; null: no limit")
    prompt_price: float | None = setting(None, "US dollars a million prompt tokens; null: unknown")
    completion_price: float | None = setting(None, "US dollars a million tokens of answers; null: unknown")
    extra_body: dict[str, Any] = setting({}, "further fields of an OpenAI-compatible request")

    def __post_init__(self) -> None:
        for name in ("max_tokens", "timeout", "concurrency", "top_p"):
            check_positive(self, name)
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.max_retries < 0:
            raise UserError(f"max_retries must be at least 0, not {self.max_retries}")
        if self.temperature < 0 or self.top_p > 1:
            raise UserError("temperature must be at least 0 and top_p at most 1")


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
    drop_refusals: bool = setting(True, "drop conversations whose answers refuse or speak of being an AI model")
    check_language: bool = setting(True, "drop conversations in another language than was asked for")
    evaluation_sets: list[str] = setting([], "files whose items must not occur, as scripts/decontaminate.py takes them")

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
        {}, "weight by measure of genesis_hf.style: hedging: -1 punishes it; without a judge they are the score"
    )
    rejected: Literal["worst", "bland"] = setting("worst", "the worst candidate, or the best one rewritten blandly")
    min_margin: float = setting(0.0, "pairs whose scores differ by no more are left out")
    length_tolerance: float = setting(0.05, "how far mean lengths of chosen and rejected may lie apart, relative")
    seed: int = setting(42, "prompts, sampling and the order shown to the judge follow from it")
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
