"""Files of answers: written as they come, whole when finished, and read back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.config import ConversationSource, write_text
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.rows import read_rows
from genesis_hf.errors import UserError
from genesis_hf.files import read_json


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    prompt: list[Message]
    answer: str
    stopped: bool | None
    """It ended with the stop token by itself, before `max_new_tokens`; None where a file doesn't say."""
    tokens: int | None
    """Written, the stop token counted; None where a file doesn't say."""


def write_answers(path: str | Path, answers: Sequence[Answer]) -> None:
    """One JSON object a line: prompt, answer, stopped, tokens."""
    write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def read_answers(path: str | Path) -> list[Answer]:
    """The answers of such a file; `stopped` and `tokens` may be missing, and `prompt` may be a text.

    Raises:
        UserError: an unreadable file, a row without prompt or answer.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; make one with scripts/sample_answers.py")
    rows = read_rows(ConversationSource(name="answers", paths=[str(path)]))
    answers = []
    for number in range(len(rows)):
        try:
            _, row = rows[number]
            prompt = row["prompt"]
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not all(isinstance(text, str) for text in (row["answer"], *(m["content"] for m in messages))):
                raise Fault("a text is missing")
        except (Fault, KeyError, TypeError) as fault:
            raise UserError(
                f"{rows.where(number)}: an answer needs `prompt` (text or messages) and `answer` (text): {fault}"
            ) from None
        answers.append(Answer(messages, row["answer"], row.get("stopped"), row.get("tokens")))
    return answers


def summary_path(path: str | Path) -> Path:
    """Where the figures and settings of a file of answers stand."""
    return Path(path).with_suffix(".summary.json")


class UnfinishedAnswers:
    """Answers so far, appended to `NAME.partial.jsonl` as they come, so that an interrupted run goes on.

    Attributes:
        done: answers by the number of their prompt.
    """

    def __init__(self, path: str | Path, made_from: Mapping[str, Any]) -> None:
        """Read what an earlier run left.

        Raises:
            UserError: it was made from something else; says which keys differ.
        """
        self.final = Path(path)
        self.path = self.final.with_suffix(".partial.jsonl")
        self.done: dict[int, Answer] = {}
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        # What follows the last line end was being written when the run was killed.
        records = [json.loads(line) for line in lines[:-1]]
        if records and (other := differing(records[0]["made_from"], made_from)):
            raise UserError(
                f"{self.path}: an unfinished run with another {', '.join(other)}; give the same settings to go on, "
                "remove the file to start afresh, or choose another output_file"
            )
        self.done = {record.pop("number"): Answer(**record) for record in records[1:]}
        write_text(self.path, "".join(f"{line}\n" for line in lines[:-1] or [json.dumps({"made_from": made_from})]))

    def add(self, answers: Mapping[int, Answer]) -> None:
        """Append answers, by the number of their prompt."""
        with open(self.path, "a", encoding="utf-8") as file:
            for number, answer in answers.items():
                file.write(json.dumps({"number": number, **asdict(answer)}, ensure_ascii=False) + "\n")
        self.done.update(answers)

    def finish(self) -> list[Answer]:
        """Write the answers in the prompts' order under their final name, and return them."""
        answers = [self.done[number] for number in sorted(self.done)]
        write_answers(self.final, answers)
        self.path.unlink()
        return answers


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys under which two settings differ, nested ones by their own name."""
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing(a, b)
        elif a != b:
            found.append(key)
    return found


def read_settings(path: str | Path) -> dict[str, Any]:
    """What a file of answers was made from, as its summary says; {} where there is none."""
    return read_json(summary_path(path)).get("made_from", {})
