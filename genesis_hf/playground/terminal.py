"""The terminal's conversation: what is typed, /commands, and answers as they are written."""

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from genesis_hf.chat import Message, read_template
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
/save FILE        write the conversation as JSON
/load FILE        go on with a saved one
/settings         show all settings
/temperature T    0 is greedy; likewise /top_p, /top_k, /repetition_penalty, /max_new_tokens, /seed
/quit             leave

A line that ends with \\ goes on in the next; between two lines of """ everything is one text.
Ctrl-C stops an answer, Ctrl-D leaves.'''

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
        self.last_text = ""
        self.put_on(self.speaker)
        self.reset()

    def put_on(self, speaker: Speaker) -> None:
        """Talk to a model in the format that is set."""
        if self.chat_format in ("chatml", "alpaca"):
            speaker.tokenizer.chat_template = read_template(self.chat_format)
        self.speaker, self.raw = speaker, self.chat_format == "raw" or not speaker.chat

    def run(self) -> None:
        """Answer what is typed or piped in, to its end."""
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):  # line editing and history of what was typed
                import readline  # noqa: F401
            print(f"{self.speaker.name}, {'raw text' if self.raw else 'chat'}. /help lists the commands.")
        for text in inputs():
            try:
                if not text.startswith("/"):
                    self.ask(text)
                elif not self.obey(text):
                    return
            except UserError as error:
                print(f"({error})")

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
            print(f"({prompt.left_out})")
        settings = self.sampling.changed(max_new_tokens=prompt.max_new_tokens).settings(prompt.stop_ids)
        return say(stream_answer(speaker.model, speaker.tokenizer, prompt.ids, settings, self.sampling.seed))

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
        print(f"({name} {getattr(self.sampling, name)})")

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
        question = self.history[asked[-1]]["content"]
        self.history = self.history[: asked[-1]]
        print(f"(forgotten: {question.splitlines()[0][:60]})")

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
        print(f"({'raw text' if raw else 'chat'})")

    def change_model(self, name: str) -> None:
        if not name:
            raise UserError("/model takes a folder, a run directory, a checkpoint or a Hub id")
        self.put_on(load_named(name))
        print(f"({name}, {'raw text' if self.raw else 'chat'})")

    def save(self, file: str) -> None:
        if not file:
            raise UserError("/save takes a file")
        try:
            write_text(file, json.dumps(self.history, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        print(f"({len(self.history)} turns → {file})")

    def load(self, file: str) -> None:
        try:
            turns = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file or '/load'}: can't be read ({error})") from None
        roles = ("system", "user", "assistant")
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and turn.get("role") in roles and isinstance(turn.get("content"), str)
            for turn in turns
        ):
            raise UserError(f"{file}: no conversation; it needs a list of role and content, as /save writes it")
        self.history = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        self.system = self.history[0]["content"] if turns and turns[0]["role"] == "system" else ""
        print(f"({len(turns)} turns ← {file})")

    def show_settings(self) -> None:
        values = {"model": self.speaker.name, "mode": "raw text" if self.raw else "chat"}
        values |= {"context": f"{self.speaker.context:,} tokens", "system": self.system or "none"}
        for name, value in {**values, **self.sampling.__dict__}.items():
            print(f"{name:20} {'another one each time' if value is None else value}")


# ---------------------------------------------------------------------------------------------------------
# In and out
# ---------------------------------------------------------------------------------------------------------


def inputs() -> Iterator[str]:
    """Texts from the user: lines, lines joined by a backslash, and blocks between two lines of three quotes."""
    while (line := read_line("> ")) is not None:
        lines = [line]
        if line.strip() == FENCE:
            lines = []
            while (line := read_line("… ")) is not None and line.strip() != FENCE:
                lines.append(line)
        else:
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(read_line("… ") or "")
        yield "\n".join(lines)


def read_line(sign: str) -> str | None:
    """A line from the user, None at the end of input. Ctrl-C only clears the line."""
    while True:
        try:
            return input(sign if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print()
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise UserError("the input is not UTF-8 text") from None


def say(pieces: Iterator[str]) -> str:
    """Print an answer as it comes; Ctrl-C ends it where it is."""
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    print()
    return answer
