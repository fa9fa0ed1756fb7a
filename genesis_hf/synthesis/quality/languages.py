"""Which language a text is in: py3langid, a classifier of 140 languages that needs no download."""

import functools
from typing import Literal

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from genesis_hf.style.text import WITHOUT_SPACES, is_english, prose_of

MIN_LETTERS = 40
"""Letters below which nothing is said; one of a script without spaces counts for three."""

SURE = 0.9
"""Probability from which on the classifier is believed."""

Verdict = Literal["right", "other", "unsure", "unknown language"]
"""The last one: texts of the language asked for can't be told from others at all."""


@functools.cache
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's prose, code and quotations left out; None: too short, or not sure."""
    prose = prose_of(text)
    letters = sum(map(str.isalpha, prose)) + 2 * len(WITHOUT_SPACES.findall(prose))
    if letters < MIN_LETTERS:
        return None
    code, probability = identifier().classify(prose)
    return code if probability >= SURE else None


def compare_language(text: str, asked: str) -> tuple[Verdict, str | None]:
    """Whether a text is in the language asked for (`pt` is, for `pt-BR`), and the one that it is in."""
    asked = asked.replace("_", "-").partition("-")[0].lower()
    if asked not in identifier().labels:
        return "unknown language", None
    found = language_of(text)
    if found not in (None, "en") and asked == "en" and is_english(text):  # lists of names, say
        return "unsure", found
    return "unsure" if found is None else "right" if found == asked else "other", found
