"""An inspected conversation on the terminal, or one object a token for a program; text that a terminal may be given."""

import json
import re
from collections.abc import Sequence

from genesis_hf.chat_inspection import Inspected, Token

TRAINED, MASKED = ("\x1b[30;48;5;114m", "\x1b[30;48;5;78m"), ("\x1b[38;5;250;48;5;236m", "\x1b[38;5;250;48;5;239m")
"""Two shades each, which alternate from token to token."""
RESET = "\x1b[0m"
BOLD = "\x1b[1m"
LINE_BREAK, PART = "⏎", "◦"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What a terminal obeys, line breaks and tabs apart, and halves of characters, which can't be written."""


def as_jsonl(inspected: Inspected) -> str:
    """One object a token: id, text, trained."""
    objects = ({"id": token.id, "text": token.text, "trained": token.trained} for token in inspected.tokens)
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects)


def as_text(inspected: Inspected, color: bool) -> str:
    """The tokens with line breaks made visible, in colours or with marks, a legend above and counts below."""
    trained = sum(token.trained for token in inspected.tokens)
    legend = (
        f"{TRAINED[0]} trained {RESET} {MASKED[0]} masked {RESET}, a shade a token, special ones bold"
        if color
        else "[trained] … [masked] …, │ between tokens"
    )
    body = in_colors(inspected.tokens) if color else in_marks(inspected.tokens)
    return (
        f"━━━ {inspected.title}\n"
        f"{legend}; {LINE_BREAK} line break, {PART} part of the character that follows\n\n{body}\n\n"
        f"{len(inspected.tokens):,} tokens, {trained:,} trained ({trained / max(1, len(inspected.tokens)):.1%})\n"
    )


def in_colors(tokens: Sequence[Token]) -> str:
    parts = []
    for number, token in enumerate(tokens):
        shade = (TRAINED if token.trained else MASKED)[number % 2] + (BOLD if token.special else "")
        # A background that is open at a line's end would colour the rest of the line.
        shown = visible(token.text).replace("\n", f"{RESET}\n{shade}")
        parts.append(f"{shade}{shown}{RESET}")
    return "".join(parts)


def in_marks(tokens: Sequence[Token]) -> str:
    parts, before = [], None
    for token in tokens:
        if token.trained != before:
            parts.append(("\n" if parts else "") + ("[trained] " if token.trained else "[masked] "))
        else:
            parts.append("│")
        parts.append(visible(token.text))
        before = token.trained
    return "".join(parts)


def visible(text: str) -> str:
    """A token's text with what can't be seen made visible, and nothing in it that a terminal obeys."""
    shown = [c if c.isprintable() or c == "\n" else escaped(c) for c in text]
    return "".join(shown).replace("\n", f"{LINE_BREAK}\n") or PART


def harmless(text: str) -> str:
    """A text to read, with nothing in it that a terminal obeys: control characters are written as escapes."""
    return CONTROL.sub(lambda match: escaped(match[0]), text)


def escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
