"""Answers as they are written, in the form in which the page shows them.

Each function is a generator that Gradio asks for more while somebody watches. A model computes only when it is asked:
Stop, or a browser that went away, ends it, for Gradio closes the generator, which puts the models back on the shelf.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from genesis_hf.chat import Message
from genesis_hf.errors import UserError
from genesis_hf.generate import Token, stream_tokens
from genesis_hf.playground.loading import Speaker
from genesis_hf.playground.prompts import conversation_prompt, text_prompt
from genesis_hf.playground.sampling import Sampling
from genesis_hf.playground.shelf import Shelf
from genesis_hf.playground.token_page import GOING, note, opened, text_markup, token_markup

PACE = 0.08
"""Seconds between two updates of the page: a message each costs more than the tokens of a small model."""

ALTERNATIVES = 5
"""Tokens named on hover."""

Mode = Literal["auto", "chat", "raw"]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Writing:
    """An answer as it grows.

    Attributes:
        text: so far, without the stop token.
        markup: the same as HTML, open at its end.
        finished, stopped: it has ended; the model ended it.
        count, seconds: tokens written, the stop token counted; what they took.
    """

    speaker: Speaker
    messages: Sequence[Message]
    sampling: Sampling
    chat: bool
    text: str = ""
    markup: str = field(default_factory=opened)
    finished: bool = False
    stopped: bool = False
    count: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Encode the prompt.

        Raises:
            UserError: it doesn't fit the context, or the model has no chat format.
        """
        make = conversation_prompt if self.chat else text_prompt
        given = self.messages if self.chat else self.messages[-1]["content"]
        self.prompt = make(self.speaker, given, self.sampling.max_new_tokens)
        settings = self.sampling.changed(max_new_tokens=self.prompt.max_new_tokens).settings(self.prompt.stop_ids)
        self._tokens = stream_tokens(
            self.speaker.model, self.speaker.tokenizer, self.prompt.ids, settings, self.sampling.seed, ALTERNATIVES
        )

    def advance(self, seconds: float = PACE) -> None:
        """Write for so long, at least one token; longer where much is written, all of which the page draws anew."""
        begun = time.monotonic()
        until = begun + seconds * (1 + self.count / 300)
        while not self.finished and (self.count == 0 or time.monotonic() < until):
            token: Token = next(self._tokens)
            self.count += 1
            self.text += token.text
            self.markup += token_markup(token)
            self.stopped = token.stops
            self.finished = token.stops or self.count == self.prompt.max_new_tokens
        self.seconds += time.monotonic() - begun

    def caption(self) -> str:
        """What there is to say of it: length, speed, seed, how it ended, what was left out."""
        parts = [f"{self.count:,} tokens", f"{self.count / max(self.seconds, 1e-6):,.0f} tokens/s"]
        parts.append("greedy" if self.sampling.temperature == 0 else f"seed {self.sampling.seed}")
        if self.finished:
            bound = "the context's end" if self.count < self.sampling.max_new_tokens else "max_new_tokens"
            parts.append("ended by itself" if self.stopped else f"cut at {bound}")
        return " · ".join(parts + ([self.prompt.left_out] if self.prompt.left_out else []))

    def note(self) -> str:
        """The caption as a line of the page."""
        return note(self.caption(), "note" if self.finished else GOING)


@dataclass(frozen=True)
class Desk:
    """Where answers are asked for.

    Attributes:
        max_new_tokens, max_prompt_chars: bounds of a playground.
    """

    shelf: Shelf
    max_new_tokens: int
    max_prompt_chars: int

    def converse(
        self, key: str, messages: Sequence[Message], mode: Mode, values: Sequence[Any]
    ) -> Iterator[tuple[str, str, str]]:
        """Text, markup and a line about it, for a conversation that ends with the user's turn."""
        sampling = self.sampling(values)
        yield "", "", note(self.waiting(key), GOING)
        with self.shelf.borrow(key) as fetch:
            writing = self.begin(fetch(key), messages, mode, sampling)
            while not writing.finished:
                writing.advance()
                yield writing.text, writing.markup, writing.note()

    def beside(
        self, keys: Sequence[str], messages: Sequence[Message], mode: Mode, values: Sequence[Any]
    ) -> Iterator[list[tuple[str, str]]]:
        """Markup and a line about it of each of several models, which answer at the same time from the same draws."""
        sampling = self.sampling(values)
        yield [("", note(self.waiting(key), GOING)) for key in keys]
        with self.shelf.borrow(*keys) as fetch:
            writings: list[Writing | UserError] = []
            for key in keys:
                try:
                    writings.append(self.begin(fetch(key), messages, mode, sampling))
                except UserError as error:  # of one of them; the others go on
                    writings.append(error)
            while True:
                going = [n for n, writing in enumerate(writings) if isinstance(writing, Writing)]
                for n in going:
                    try:
                        writings[n].advance(PACE / len(going))
                    except UserError as error:
                        writings[n] = error
                yield [
                    (w.markup, w.note()) if isinstance(w, Writing) else ("", note(str(w), "refused")) for w in writings
                ]
                if all(isinstance(writing, UserError) or writing.finished for writing in writings):
                    return

    def evolve(self, keys: Sequence[str], messages: Sequence[Message], values: Sequence[Any]) -> Iterator[str]:
        """One prompt through several models, one after another, as rows of HTML that grow."""
        sampling, rows = self.sampling(values), ""
        for key in keys:
            entry = self.shelf.entry(key)
            title = f"step {entry.step:,}" if entry.step is not None else text_markup(key)
            head = f'<section class="milestone"><h4>{title}</h4>'
            yield rows + head + note(self.waiting(key), GOING)
            try:
                with self.shelf.borrow(key) as fetch:
                    writing = self.begin(fetch(key), messages, "raw", sampling)
                    while not writing.finished:
                        writing.advance()
                        yield rows + head + writing.markup
                    rows += f"{head}{writing.markup}</div>{writing.note()}</section>"
            except UserError as error:  # a broken one; the others go on
                rows += f"{head}{note(str(error), 'refused')}</section>"
        yield rows

    def begin(self, speaker: Speaker, messages: Sequence[Message], mode: Mode, sampling: Sampling) -> Writing:
        """An answer, not yet begun.

        Raises:
            UserError: it can't be answered.
        """
        return Writing(speaker, messages, sampling, self.as_chat(speaker.name, mode, speaker.chat))

    def as_chat(self, key: str, mode: Mode, has_template: bool = True) -> bool:
        """Whether a model is given conversations; `has_template` says it of one whose catalogue doesn't."""
        if mode != "auto":
            return mode == "chat"
        chat = self.shelf.entry(key).chat
        return has_template if chat is None else chat

    def sampling(self, values: Sequence[Any]) -> Sampling:
        """Settings from the page's values, in the order of `Sampling`'s fields.

        Raises:
            UserError: out of bounds.
        """
        *others, seed = values
        sampling = Sampling(*others, seed=number_in(seed))
        if sampling.max_new_tokens > self.max_new_tokens:
            raise UserError(f"max_new_tokens must be at most {self.max_new_tokens}, not {sampling.max_new_tokens}")
        return sampling.with_seed()

    def conversation(self, system: Any, turns: Sequence[Message], text: Any) -> list[Message]:
        """Messages from what the page sent.

        Raises:
            UserError: an empty prompt, or more characters than are allowed.
        """
        if not isinstance(text, str) or not isinstance(system or "", str):
            raise UserError("a prompt is a text")
        if not text.strip():
            raise UserError("write something first")
        first = [{"role": "system", "content": system.strip()}] if (system or "").strip() else []
        messages = [*first, *turns, {"role": "user", "content": text}]
        if any(LONE_SURROGATE.search(message["content"]) for message in messages):
            raise UserError("the prompt holds half a character, which no tokenizer knows: delete it")
        length = sum(len(message["content"]) for message in messages)
        if length > self.max_prompt_chars:
            raise UserError(f"the prompt has {length:,} characters and may have {self.max_prompt_chars:,}: shorten it")
        return messages

    def waiting(self, key: str) -> str:
        """What is said before the first token."""
        self.shelf.entry(key)
        return "writing …" if self.shelf.holds(key) else f"loading {key} …"


def number_in(text: Any) -> Any:
    """The whole number in a field, None where it is empty; anything else as it is, to be refused by name."""
    try:
        return None if text is None or not str(text).strip() else int(str(text))
    except ValueError:
        return text
