"""How much of an answer is particular: names, numbers, code. English."""

import re

from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.text import CODE, QUOTATION, WORD, is_english, listed, visible, words_of

FUNCTION_WORDS = listed(
    """
    a about above after again against all also although am among an and any are as at be because been before
    being below between both but by can cannot could did do does doing down during each either else even ever
    every few for from further had has have having he her here hers herself him himself his how however i if in
    into is it its itself just many may me might more most much must my myself neither no nor not now of off on
    once one only or other our ours ourselves out over own per same shall she should since so some such than
    that the their theirs them themselves then there these they this those though through thus to too under
    until up upon us very was we well were what when where whether which while who whom whose why will with
    within without would yes yet you your yours yourself yourselves it's i'm you're don't can't isn't that's
    doesn't i've we're they're let's
    """
)
"""English words that say how others hang together."""

ITEM_WORDS = 5
"""A quotation of up to so many words is an item (a title, a term); a longer one is text like any other."""

SENTENCE_BEGINS = re.compile(r"(?:^|[.!?:;…\n]|\n\s*(?:[-*+•]|\d+[.)]))[\s\"'“‘(\[*_#>|-]*$")
IDENTIFIER = re.compile(r"\w+(?:_\w+|\(\)|\.\w+\()|[a-z]+[A-Z]\w*|\w+/\w+\.\w+")
TITLE_SHARE = 0.8
"""A line with so many of its content words capitalised is a heading or shouting: no word of it counts as a name."""


class Specificity(StyleMetric):
    """Share of content words that are particular."""

    description = (
        "Share of an answer's content words (all but a list of English function words) that are particular: they hold "
        "a digit, are written with a capital inside a sentence, stand in code, or in a quotation of up to five words. "
        "Names and numbers are what tells specific sentences from general ones in Li and Nenkova; this is a count of "
        "them and no more: it doesn't know whether they are right or to the point, and an answer that is code is all "
        "particular. Unknown for answers without a content word or not in English."
    )
    citation = "J. J. Li, A. Nenkova: Fast and Accurate Prediction of Sentence Specificity. AAAI 2015."
    figures = (Figure("specificity", "content words that are names, numbers or code", "ratio"),)

    def measure(self, answer: str) -> dict[str, float | None]:
        """`specificity`, between 0 and 1."""
        text = visible(answer)
        if not is_english(answer):
            return {"specificity": None}
        particular, content = count_particular(text)
        return {"specificity": particular / content if content else None}


def count_particular(text: str) -> tuple[int, int]:
    """Particular words and all content words of a text."""
    particular = content = 0
    for pattern, limit in ((CODE, None), (QUOTATION, ITEM_WORDS)):
        for match in pattern.finditer(text):
            words = content_words(match[0])
            if limit is None or len(words_of(match[0])) <= limit:
                particular, content = particular + len(words), content + len(words)
                text = text.replace(match[0], " ", 1)
    for line in text.splitlines():
        words = content_words(line)
        names = [word for word, start in words if is_particular(word, line[:start])]
        capitals = sum(word[0].isupper() for word, _ in words)
        if len(words) > 1 and capitals >= TITLE_SHARE * len(words):
            names = [word for word in names if any(map(str.isdigit, word))]
        particular, content = particular + len(names), content + len(words)
    return particular, content


def content_words(text: str) -> list[tuple[str, int]]:
    """The words that are no function words, as written, with the place where each begins."""
    found = ((match[0], match.start()) for match in WORD.finditer(text))
    return [(word, start) for word, start in found if word.lower().replace("’", "'") not in FUNCTION_WORDS]


def is_particular(word: str, before: str) -> bool:
    """Whether a word holds a digit, is an identifier, or has a capital that no sentence's beginning explains."""
    if any(map(str.isdigit, word)) or IDENTIFIER.fullmatch(word):
        return True
    if word.isupper() and len(word) > 1:
        return True
    return word[0].isupper() and not SENTENCE_BEGINS.search(before)
