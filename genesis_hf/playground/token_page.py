"""Tokens as HTML: each coloured by how unlikely it was, with its probability and the likeliest ones on hover.

What is shown on hover stands in an attribute, from which the page's script (`assets/playground.html`) makes a list. A
list of its own for each token would be twenty elements of the page, and a thousand tokens then stop a browser.

Everything a model writes is escaped. The markup of an answer that grows is a prefix of what it becomes, and the browser
closes what is open, so that only what is new goes over the wire.
"""

import html
import math
from collections.abc import Sequence

from genesis_hf.chat import Message
from genesis_hf.generate import Token

RAREST = 1e-4
"""Probability from which on a token has the full colour."""

TEMPLATES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})

GOING = "note going"
"""Kind of a line about an answer that is being written; the page's script puts "stopped" there when it is not."""

SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
"""For what can't be seen, in a list of tokens."""


def text_markup(text: str) -> str:
    """Text as HTML; what Gradio's templates would take for their own is escaped, too."""
    return html.escape(text).translate(TEMPLATES)


def conversation_markup(turns: Sequence[Message]) -> str:
    """A conversation as it stands, its answers as plain text; the beginning of one that goes on."""
    bubbles = "".join(f'<div class="turn {turn["role"]}">{text_markup(turn["content"])}</div>' for turn in turns)
    return f'<div class="conversation" tabindex="0" aria-label="Conversation" aria-live="polite">{bubbles}'


def answer_begun() -> str:
    """What the tokens of the answer to a conversation stand behind."""
    return '<div class="turn assistant">'


def opened() -> str:
    """What the tokens of an answer stand behind."""
    return '<div class="tokens" tabindex="0" aria-label="Answer">'


def token_markup(token: Token) -> str:
    """One token."""
    shown = text_markup(token.text)
    if token.stops:
        shown += '<i class="end">end</i>'
    lines = [percent(token.probability), *(f"{visible(text)}\t{percent(p)}" for text, p in token.alternatives)]
    why, colour = text_markup("\n".join(lines)), f"--s:{surprise(token.probability):.2f}"
    return f'<span class="token" tabindex="-1" style="{colour}" data-why="{why}">{shown}</span>'


def surprise(probability: float) -> float:
    """0 for a certain token, 1 for one of `RAREST` or less, by the logarithm between."""
    return min(1.0, math.log(max(probability, RAREST)) / math.log(RAREST))


def percent(probability: float) -> str:
    """`83.1 %`"""
    return "< 0.1 %" if probability < 0.0005 else f"{probability:.1%}".replace("%", " %")


def visible(text: str) -> str:
    """A token's text with signs for blanks; of one that is no character by itself, so much."""
    return "".join(SIGNS.get(letter, letter) for letter in text) or "∅"


def note(text: str, kind: str = "note") -> str:
    """A line of ours beneath an answer or in its place; `kind` is `note`, `GOING` or `refused`."""
    role = ' role="alert"' if kind == "refused" else ""
    return f'<p class="{kind}"{role}>{text_markup(text)}</p>' if text else ""
