"""The terminal's conversation: what is typed, /commands, and answers as they are written."""

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from genesis_hf.chat import Message, read_template
from genesis_hf.chat_display import harmless
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.generate import stream_answer
from genesis_hf.playground.loading import Speaker, load_named
from genesis_hf.playground.prompts import Prompt, conversation_prompt, text_prompt
from genesis_hf.playground.sampling import BOUNDS, Sampling

HELP = '''/system TEXT      set the system prompt (none without TEXT) and start anew
/reset            forget the conversation
/undo             forget the last question and its answer
/retry            answer the last question again
/raw, /chat       continue texts, each by itself; hold a conversation
/model DIR        talk to another model; the conversation stays
/save FILE        write the conversation as JSON; only a saved conversation is replaced
/load FILE        go on with a saved one
/settings         show all settings
/temperature T    0 is greedy; likewise /top_p, /top_k, /repetition_penalty, /max_new_tokens, /seed
/quit             leave

A line that ends with \\ goes on in the next; between two lines of """ everything is one text.
Ctrl-C stops an answer or a command, or drops what is typed; Ctrl-D leaves.'''

FENCE = '"""'


@dataclass
class Terminal:
    """A conversation with a model.

    Attributes:
        chat_format: `template` (the tokenizer's own), `chatml`, `alpaca` or `raw`; None: as the tokenizer says.
        history: the conversation, its system prompt first where there is one; unused in `raw`.
    """

    speaker: Speaker
    sampling: Sampling
    chat_format: str | None = None
    system: str = ""
    history: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_text(self.system)
        self.last_text, self.answered = "", False
        self.put_on(self.speaker)
        self.reset()

    def put_on(self, speaker: Speaker) -> None:
        """Talk to a model in the format that is set."""
        if self.chat_format in ("chatml", "alpaca"):
            speaker.tokenizer.chat_template = read_template(self.chat_format)
        self.speaker, self.raw = speaker, self.chat_format == "raw" or not speaker.chat

    def run(self) -> bool:
        """Answer what is typed or piped in, to its end; False where of what was piped in all came to nothing."""
        typed, refused = sys.stdin.isatty(), False
        if typed:
            with contextlib.suppress(ImportError):  # line editing and history of what was typed
                import readline  # noqa: F401
            tell(f"{self.speaker.name}, {'raw text' if self.raw else 'chat'}. /help lists the commands.")
        if hasattr(sys.stdin, "reconfigure"):  # a line that is no text must not take those behind it along
            sys.stdin.reconfigure(errors="surrogateescape")
        for text in inputs():
            try:
                check_text(text)
                if not text.startswith("/"):
                    self.ask(text)
                elif not self.obey(text):
                    break
            except UserError as error:
                refused = True
                tell(f"({error})", sys.stdout if typed else sys.stderr)
            except KeyboardInterrupt:
                tell("(stopped)")
        return typed or self.answered or not refused

    def ask(self, text: str) -> None:
        """Answer a text and remember both."""
        if not text.strip():
            return
        messages = [*self.history, {"role": "user", "content": text}]
        answer = self.answer(text, messages)
        self.last_text = text
        if not self.raw:
            self.history = [*messages, {"role": "assistant", "content": answer}]

    def answer(self, text: str, messages: list[Message]) -> str:
        """Write an answer to the terminal."""
        speaker, limit = self.speaker, self.sampling.max_new_tokens
        prompt: Prompt = (
            text_prompt(speaker, text, limit) if self.raw else conversation_prompt(speaker, messages, limit)
        )
        if prompt.left_out:
            tell(f"({prompt.left_out})")
        settings = self.sampling.changed(max_new_tokens=prompt.max_new_tokens).settings(prompt.stop_ids)
        answer = say(stream_answer(speaker.model, speaker.tokenizer, prompt.ids, settings, self.sampling.seed))
        self.answered = True
        return answer

    # -----------------------------------------------------------------------------------------------------
    # Commands
    # -----------------------------------------------------------------------------------------------------

    def obey(self, line: str) -> bool:
        """Carry out a /command; False where it is to leave.

        Raises:
            UserError: an unknown one, or an argument that is wrong.
        """
        name, _, argument = line[1:].strip().partition(" ")
        argument = argument.strip()
        if name in ("quit", "exit"):
            return False
        if name in BOUNDS:
            self.set(name, argument)
        elif name in self.commands():
            self.commands()[name](argument)
        else:
            known = [*self.commands(), *BOUNDS, "quit"]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise UserError(f"no command /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists them"))
        return True

    def commands(self) -> dict[str, Callable[[str], None]]:
        """What each does with its argument."""
        return {
            "help": lambda _: print(HELP),
            "system": self.set_system,
            "reset": self.reset_aloud,
            "undo": self.undo,
            "retry": self.retry,
            "raw": lambda _: self.set_raw(True),
            "chat": lambda _: self.set_raw(False),
            "model": self.change_model,
            "save": self.save,
            "load": self.load,
            "settings": lambda _: self.show_settings(),
        }

    def set(self, name: str, value: str) -> None:
        """One of the sampling settings."""
        if name == "seed" and value in ("", "none"):
            self.sampling = self.sampling.changed(seed=None)
        else:
            try:
                number = float(value)
            except ValueError:
                raise UserError(f"/{name} takes a number, not {value!r}") from None
            self.sampling = self.sampling.changed(**{name: number})
        tell(f"({name} {getattr(self.sampling, name)})")

    def set_system(self, text: str) -> None:
        self.system = text
        self.reset_aloud()

    def reset(self) -> None:
        self.history = [{"role": "system", "content": self.system}] if self.system else []

    def reset_aloud(self, _: str = "") -> None:
        self.reset()
        print("(a new conversation)")

    def undo(self, _: str = "") -> None:
        """Forget the last question and its answer."""
        asked = [number for number, turn in enumerate(self.history) if turn["role"] == "user"]
        if not asked:
            raise UserError("nothing was asked yet")
        question = self.history[asked[-1]]["content"].strip().partition("\n")[0]
        self.history = self.history[: asked[-1]]
        tell(f"(forgotten: {question[:60]})")

    def retry(self, _: str = "") -> None:
        """Answer the last question again."""
        asked = [number for number, turn in enumerate(self.history) if turn["role"] == "user"]
        if not (self.last_text if self.raw else asked):
            raise UserError("nothing was asked yet")
        if self.raw:
            self.answer(self.last_text, [])
        else:
            messages = self.history[: asked[-1] + 1]
            answer = self.answer("", messages)
            self.history = [*messages, {"role": "assistant", "content": answer}]

    def set_raw(self, raw: bool) -> None:
        if not raw and not self.speaker.chat:
            raise UserError(f"{self.speaker.name} has no chat format; --format chatml gives it one")
        self.raw = raw
        tell(f"({'raw text' if raw else 'chat'})")

    def change_model(self, name: str) -> None:
        if not name:
            raise UserError("/model takes a folder, a run directory, a checkpoint or a Hub id")
        self.put_on(load_named(os.path.expanduser(name)))
        tell(f"({name}, {'raw text' if self.raw else 'chat'})")

    def save(self, file: str) -> None:
        if not file:
            raise UserError("/save takes a file")
        path = Path(os.path.expanduser(file))
        try:
            path = path.resolve()  # what a link points to is written, not the link
            if path.exists():
                try:
                    read_conversation(path)
                except UserError:
                    raise UserError(f"{file}: exists and is no saved conversation; choose another file") from None
            write_text(path, json.dumps(self.history, indent=2, ensure_ascii=False) + "\n")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
        tell(f"({len(self.history)} turns → {file})")

    def load(self, file: str) -> None:
        if not file:
            raise UserError("/load takes a file")
        self.history = read_conversation(Path(os.path.expanduser(file)))
        self.system = self.history[0]["content"] if self.history and self.history[0]["role"] == "system" else ""
        tell(f"({len(self.history)} turns ← {file})")

    def show_settings(self) -> None:
        values = {"model": self.speaker.name, "mode": "raw text" if self.raw else "chat"}
        values |= {"context": f"{self.speaker.context:,} tokens", "system": self.system or "none"}
        for name, value in {**values, **self.sampling.__dict__}.items():
            tell(f"{name:20} {'another one each time' if value is None else value}")


# ---------------------------------------------------------------------------------------------------------
# In and out
# ---------------------------------------------------------------------------------------------------------


def inputs() -> Iterator[str]:
    """Texts from the user to the end of input; Ctrl-C drops what was typed of one."""
    while True:
        try:
            text = read_text()
        except KeyboardInterrupt:
            print()
            continue
        if text is None:
            return
        yield text


def read_text() -> str | None:
    """A line, lines joined by a backslash, or a block between two lines of three quotes; None at the end of input."""
    line = read_line("> ")
    if line is None:
        return None
    lines = [line]
    if line.strip() == FENCE:
        lines = []
        while (line := read_line("… ")) is not None and line.strip() != FENCE:
            lines.append(line)
    else:
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read_line("… ") or "")
    return "\n".join(lines)


def read_line(sign: str) -> str | None:
    """A line from the user, None at the end of input."""
    try:
        return input(sign if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None


def read_conversation(path: Path) -> list[Message]:
    """What `/save` wrote.

    Raises:
        UserError: it can't be read, or is no conversation.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file")
        turns = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(turns, ensure_ascii=False).encode()  # JSON may hold halves of characters, which are no text
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: can't be read ({error})") from None
    roles = ("system", "user", "assistant")
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and turn.get("role") in roles and isinstance(turn.get("content"), str) for turn in turns
    ):
        raise UserError(f"{path}: no conversation; it needs a list of role and content, as /save writes it")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def check_text(text: str) -> None:
    """Raise `UserError` where a text holds halves of characters, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"not UTF-8 text: {text[:60]}") from None


def tell(text: str, file: TextIO | None = None) -> None:
    """Print a line of our own, which may hold what others wrote."""
    print(harmless(text), file=file, flush=True)


def say(pieces: Iterator[str]) -> str:
    """Print an answer as it comes; Ctrl-C ends it where it is."""
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            print(harmless(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    except UserError:
        if answer:
            print()
        raise
    print()
    return answer
