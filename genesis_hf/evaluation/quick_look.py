"""A few continuations, each judged by rules that anybody can read: does this model write at all?

Nothing here replaces an evaluation. It finds in seconds what makes one a waste of time: an export that writes noise, a
model that repeats itself, a chat model that doesn't stop.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.chat import encode_prompts
from genesis_hf.chat_lint import trains
from genesis_hf.config import QuickLookRecipe
from genesis_hf.errors import UserError
from genesis_hf.generate import write_batch
from genesis_hf.style.repetition import longest_loop, repeated_share
from genesis_hf.style.text import words_of
from genesis_hf.tokenizer import encode_documents

Verdict = Literal["OK", "WEAK", "FAIL"]

FEW_WORDS = 3
"""Below it a continuation is as good as empty."""

REPEATED = {"WEAK": 0.2, "FAIL": 0.5}
"""Share of four-word sequences that stood before."""

LOOPED = {"WEAK": 0.25, "FAIL": 0.5}
"""Share of the words that stand in the longest loop."""

WORDLIKE = {"WEAK": 0.8, "FAIL": 0.6}
"""Share of the words that could be words; fewer is gibberish."""

LONGEST_WORD = 24
VOWEL = re.compile(r"[aeiouyà-ÿæœаеёиоуыэюя]", re.IGNORECASE)
LATIN_OR_CYRILLIC = re.compile(r"^[a-zà-ÿа-яё'’-]+$", re.IGNORECASE)
RUN = re.compile(r"[bcdfghjklmnpqrstvwxz]{6,}|(.)\1{3,}", re.IGNORECASE)
"""Six consonants, or four times the same letter."""

FOREIGN = re.compile(
    r"<\|?/?[a-z_]*(im_start|im_end|endoftext|user|assistant|system)[a-z_]*\|?>|\ufffd|###\s*\w+:?", re.I
)
"""What belongs to a template and not into an answer, and bytes that are no text."""

SPEAKER = re.compile(r"^(user|human|assistant|question|q|a):", re.IGNORECASE | re.MULTILINE)

COMMON = """
a an and are as at be but by for from had has have he her his i if in into is it its me my no not of on once one or our
out she so some than that the their them then there they this to too up was we were what when which who will with would
you your how do does did can
"""
STOP_WORDS = frozenset(COMMON.split())


@dataclass(frozen=True)
class Prompt:
    """Something to continue, or to answer."""

    text: str
    expected: tuple[str, ...] = ()
    """words of which a continuation on the subject has at least one; the prompt's own count, too"""
    pattern: str | None = None
    """a regular expression that the form asked for fits"""


CONTINUATIONS = (
    Prompt("The capital of France is", ("Paris", "city", "France", "French")),
    Prompt("Once upon a time, there was a little girl who", ("she", "her", "girl", "mother", "day", "wanted", "loved")),
    Prompt("Water boils at a temperature of", ("degrees", "Celsius", "°C", "100", "212", "heat", "water"), r"\d"),
    Prompt("def add(a, b):\n    ", ("return", "a", "b"), r"return|="),
    Prompt("Three kinds of fruit are apples,", ("bananas", "oranges", "pears", "and", "fruit", "grapes"), ","),
    Prompt("In 1969, the first people walked on the", ("moon", "Moon", "Apollo", "lunar", "space", "surface")),
)
"""For base models."""

QUESTIONS = (
    Prompt("What is the capital of France?", ("Paris",)),
    Prompt("Name three fruits, one a line.", ("apple", "banana", "orange", "pear", "grape", "cherry"), r"\n"),
    Prompt("Explain in two sentences why the sky is blue.", ("light", "scatter", "scattered", "blue", "sky")),
    Prompt("Write a Python function that adds two numbers.", ("return", "def"), r"def \w+\("),
    Prompt("What is 12 + 7?", ("19",), r"\d"),
    Prompt("Write a short greeting to a new neighbour.", ("hello", "hi", "welcome", "dear", "neighbour", "neighbor")),
)
"""For chat models."""


@dataclass
class Look:
    """One continuation and what is wrong with it."""

    prompt: str
    temperature: float
    text: str
    verdict: Verdict
    reasons: list[str] = field(default_factory=list)
    repetition: float = 0.0


def judge(prompt: Prompt, text: str, stopped: bool | None) -> tuple[Verdict, list[str]]:
    """The worst of what the rules find, and the reasons.

    Args:
        stopped: whether an answer ended by itself; None for a continuation, which needn't.
    """
    found: list[tuple[Verdict, str]] = []
    words = words_of(text)
    letters = [word for word in words if any(letter.isalpha() for letter in word)]
    if len(words) < FEW_WORDS and not (prompt.expected and mentions(text, prompt.expected)):
        found.append(("FAIL", "empty" if not words else f"empty: {len(words)} words"))
    else:
        found += looped(words)
        share = sum(map(wordlike, letters)) / len(letters) if letters else 0.0
        if letters or not any(letter.isdigit() for letter in text):
            found += below(share, WORDLIKE, f"gibberish: {share:.0%} of the words could be words")
    if mark := FOREIGN.search(text):
        found.append(("FAIL", f"format: {mark.group()!r} in the text"))
    if stopped is not None and (speaker := SPEAKER.search(text)):
        found.append(("WEAK", f"format: goes on as {speaker.group()!r}"))
    if stopped is False:
        found.append(("WEAK", "format: does not stop"))
    if prompt.pattern and not re.search(prompt.pattern, text):
        found.append(("WEAK", f"format: nothing like {prompt.pattern!r}"))
    if letters and not mentions(text, (*prompt.expected, *content_words(prompt.text))):
        found.append(("WEAK", "off-script: no word on the subject"))
    verdict = next((level for level in ("FAIL", "WEAK") if any(one == level for one, _ in found)), "OK")
    return verdict, [reason for _, reason in found]


def looped(words: list[str]) -> list[tuple[Verdict, str]]:
    """Loops and repeated sequences."""
    loop, repeated = longest_loop(words) / max(1, len(words)), repeated_share(words)
    for level in ("FAIL", "WEAK"):
        if loop >= LOOPED[level]:
            return [(level, f"loop: {loop:.0%} of the words in one")]
        if repeated >= REPEATED[level]:
            return [(level, f"loop: {repeated:.0%} of the four-word sequences stood before")]
    return []


def below(value: float, bounds: dict[str, float], words: str) -> list[tuple[Verdict, str]]:
    return next(([(level, words)] for level in ("FAIL", "WEAK") if value < bounds[level]), [])


def wordlike(word: str) -> bool:
    """Whether it could be a word: of a script without vowels of its own, anything; else a vowel and no long run."""
    if len(word) > LONGEST_WORD:
        return False
    if not LATIN_OR_CYRILLIC.match(word):
        return word.isalnum()
    return RUN.search(word) is None and (VOWEL.search(word) is not None or len(word) < 4)


def content_words(text: str) -> list[str]:
    return [word for word in words_of(text) if word.lower() not in STOP_WORDS and (len(word) > 2 or not word.isascii())]


def mentions(text: str, expected: Sequence[str]) -> bool:
    """Whether one of the words, or one that begins so, stands in the text."""
    found = {word.lower() for word in words_of(text)}
    return any(
        word.lower() in text.lower() if not word.isalnum() else any(w.startswith(word.lower()) for w in found)
        for word in expected
    )


def read_prompts(path: Path) -> list[Prompt]:
    """A JSON object a line: `prompt`, and optionally `expected` (words) and `pattern`.

    Raises:
        UserError: an unreadable file or line.
    """
    prompts, number = [], 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            number += 1
            if line.strip():
                row = json.loads(line)
                re.compile(row.get("pattern") or "")
                prompts.append(Prompt(str(row["prompt"]), tuple(row.get("expected") or ()), row.get("pattern")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path}: cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError, re.error) as error:
        raise UserError(
            f"{path}, line {number}: needs `prompt`, and may have `expected` and `pattern` ({error})"
        ) from None
    if not prompts:
        raise UserError(f"prompts {path}: no prompts")
    return prompts


def look(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: QuickLookRecipe, chat: bool | None = None
) -> list[Look]:
    """Continue each prompt at each temperature and judge what comes.

    Args:
        chat: prompts are questions, put with the chat template; None: as the tokenizer's template and stop token say.
    """
    chat = trains(tokenizer) if chat is None else chat
    prompts = read_prompts(Path(recipe.prompts)) if recipe.prompts else list(QUESTIONS if chat else CONTINUATIONS)
    if chat:
        rows = encode_prompts(tokenizer, [[{"role": "user", "content": prompt.text}] for prompt in prompts])
    else:
        rows = [[tokenizer.eos_token_id, *ids] for ids in encode_documents(tokenizer, [p.text for p in prompts])]
    room = model.config.max_position_embeddings - recipe.max_new_tokens
    if room < max(map(len, rows)):
        raise UserError(
            f"max_new_tokens {recipe.max_new_tokens} leaves no room for the prompts in the model's context of "
            f"{model.config.max_position_embeddings}"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    looks = []
    for temperature in recipe.temperatures:
        settings = generation(tokenizer, temperature, recipe.max_new_tokens)
        written = write_batch(model, tokenizer, rows, list(range(len(rows))), settings, recipe.seed)
        for prompt, ids in zip(prompts, written, strict=True):
            stopped = tokenizer.eos_token_id in ids
            kept = ids[: ids.index(tokenizer.eos_token_id)] if stopped else ids
            text = tokenizer.decode(kept)
            verdict, reasons = judge(prompt, text, stopped if chat else None)
            looks.append(Look(prompt.text, temperature, text, verdict, reasons, repeated_share(words_of(text))))
    return looks


def generation(tokenizer: PreTrainedTokenizerFast, temperature: float, max_new_tokens: int) -> GenerationConfig:
    """transformers' settings; temperature 0 is greedy."""
    sampled: dict[str, Any] = {"temperature": temperature, "top_p": 0.95, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampled,
    )


def summary(looks: Sequence[Look]) -> str:
    """`9 OK, 2 WEAK, 1 FAIL of 12; repetition 0.41 greedy, 0.02 at 0.8`"""
    counts = ", ".join(f"{sum(look.verdict == name for look in looks)} {name}" for name in ("OK", "WEAK", "FAIL"))
    by_temperature: dict[float, list[float]] = {}
    for one in looks:
        by_temperature.setdefault(one.temperature, []).append(one.repetition)
    rates = ", ".join(
        f"{sum(rates) / len(rates):.2f} {'greedy' if temperature == 0 else f'at {temperature:g}'}"
        for temperature, rates in by_temperature.items()
    )
    return f"{counts} of {len(looks)}; repetition {rates}"


def as_values(looks: Sequence[Look]) -> dict[str, Any]:
    return {"summary": summary(looks), "looks": [asdict(one) for one in looks]}
