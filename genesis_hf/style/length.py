"""How long answers are."""

from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.text import counts_words, visible, words_of


class Length(StyleMetric):
    """Words, characters and tokens of answers, and the share of empty ones."""

    description = (
        "Mean length of answers in words, characters and tokens, and the share of answers without a word. `<think>` "
        "blocks count as tokens only. Words are unknown in scripts that put no space between them. `tokens` (list of "
        "int): as the model wrote them, the stop token included."
    )
    figures = (
        Figure("words", "words", "number"),
        Figure("characters", "characters", "number"),
        Figure("tokens", "tokens", "number"),
        Figure("empty", "empty answers", "share"),
    )
    inputs = {"tokens": "int64"}

    def measure(self, answer: str, tokens: int | None = None) -> dict[str, float | None]:
        """`words`, `characters`, `tokens` (None where not known) and `empty`."""
        text = visible(answer)
        words = words_of(text)
        return {
            "words": len(words) if counts_words(text) else None,
            "characters": len(text),
            "tokens": tokens,
            "empty": float(not words),
        }
