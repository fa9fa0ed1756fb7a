"""Whether answers take back what they say. English."""

import re

from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.text import is_english, prose_of, visible, words_of

NOT_HEDGES = (
    r"(?:the|his|her|its|their|our|your|my|full|all|military|political) might",
    r"might(?: of|(?=[.,;:!?]))",
    r"(?:more|less|most|least|equally|as|so|how|very) likely",
    r"(?:an?|the|this|that|these|those|what|some|any|every|same|all|no|of|right|different|certain|many) "
    r"(?:sort|kind)s? of",
    r"if you(?:'re| are)(?: still| ever)? (?:unsure|not(?: \w+ly)? (?:sure|certain))",
    r"(?:do you|you don't|doesn't|don't) (?:think|believe)",
    r"you may(?! (?:also )?(?:be|have|need|find|feel|experience|notice|not|want)\b)(?: also)?",
    r"could be (?:used|seen|heard|found|done|made|given|taken|written|\w+ed)",
    r"more or less \w+ than",
)
"""What looks like a hedge and is none: nouns, comparisons, advice for a reader in doubt. Looked for first."""

HEDGES = (
    # Doubt of the speaker's own.
    r"(?:not|isn't|wasn't)(?: \w+ly)? (?:sure|certain|an expert)",
    r"can(?:'t|not) be(?: \w+ly)? (?:sure|certain)",
    r"i(?:'m| am)(?: \w+ly)? (?:unsure|uncertain)",
    r"hard to (?:say|tell)",
    r"i(?: do| would| might| may| personally|'d)? (?:think|believe|guess|suppose|assume|suspect)",
    r"i(?:'d| would) say",
    r"(?:as far as i|to the best of my|if i) (?:know|knowledge|remember|recall|understand)",
    r"don't quote me",
    r"(?:i'm|i am|i (?:could|might|may) be|(?:could|might|may) be) (?:wrong|mistaken)",
    r"(?:in my (?:opinion|view)|from my perspective)",
    r"someone else knows",
    # Advice to look elsewhere.
    r"you (?:may|might) want to",
    r"please (?:verify|double[- ]check|consult)",
    r"consult(?:ing)? (?:the documentation|(?:with )?(?:a|an|your) (?:\w+ ){0,2}(?:doctor|lawyer|professional|expert))",
    # Words that make a statement weaker.
    *("maybe", "perhaps", "possibly", "probably", "presumably", "apparently", "supposedly", "seemingly", "arguably"),
    *("might", "likely", "somewhat", "conceivably", "seems?", "seemed", r"appears? (?:to|that|as if)"),
    *("may", "potentially"),
    r"could(?: also| well)? (?:be|lead|result|cause|mean|involve|affect)",
    r"roughly (?=\d|half|one|two|three|four|five|ten|the same|equal)",
    r"(?:in some cases|to (?:some|a certain) extent|more or less|generally speaking|that said)",
    r"(?:sort|kind) of",
    r"it(?: really| probably| largely| all)? depends",
)
"""Phrases and words that take back what is said, in lower case; the longer of two before the shorter."""

HEDGING = re.compile(rf"\b(?:(?P<other>{'|'.join(NOT_HEDGES)})|(?P<hedge>{'|'.join(HEDGES)}))(?!\w)")

MAY = re.compile(r"\bMay\b")
"""The month, and questions that begin so; the verb has a small letter."""


class HedgingRate(StyleMetric):
    """Share of answers with a hedge, and hedges per 100 words."""

    description = (
        "Share of answers that hedge, and hedges per 100 words of an answer, by a list of English words and phrases: "
        "doubt of the speaker's own (Prince et al.'s plausibility shields), words that make a statement weaker, and "
        "advice to look elsewhere. Quotations and code are left out. Unknown for answers that are not English. Long "
        "answers rarely have none: with them, look at the second figure."
    )
    citation = (
        "E. F. Prince, J. Frader, C. Bosk: On Hedging in Physician-Physician Discourse. In: Linguistics and the "
        "Professions, 1982. K. Hyland: Hedging in Scientific Research Articles, 1998."
    )
    figures = (
        Figure("hedging_rate", "answers that hedge", "share"),
        Figure("hedges_per_100_words", "hedges per 100 words", "number"),
    )

    def measure(self, answer: str) -> dict[str, float | None]:
        """`hedging_rate`: 1 if there is a hedge; `hedges_per_100_words`."""
        if not is_english(answer):
            return {"hedging_rate": None, "hedges_per_100_words": None}
        hedges, words = len(hedges_of(answer)), len(words_of(visible(answer)))
        return {"hedging_rate": float(hedges > 0), "hedges_per_100_words": 100 * hedges / max(1, words)}


def hedges_of(answer: str) -> list[str]:
    """The hedges in an answer's prose, in order, in lower case, none counted twice."""
    prose = MAY.sub(" ", " ".join(prose_of(answer).split())).lower()
    return [match["hedge"].strip() for match in HEDGING.finditer(prose) if match["hedge"]]
