"""What makes a record's text: columns, templates and filters; and what is wrong with a record that has none."""

import contextlib
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genesis_hf.config import Source
from genesis_hf.errors import UserError

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
"""ShareGPT's `from` → role; names that are roles already stand for themselves."""


@dataclass(frozen=True)
class BadRecord:
    """What could not be read.

    Attributes:
        where: file and line or row (both count from 1), or dataset and row.
        reason: what is wrong with it.
        count: records it stands for.
    """

    where: str
    reason: str
    count: int = 1


Item = str | BadRecord | None
"""A record's text, what is wrong with it, or None where the filters leave it out."""


class Unusable(Exception):
    """A record that can't be used; its text is the reason."""


class Extractor:
    """Takes a record's text, its `text_column` or rendered `text_template`, if the `filters` let it through.

    Attributes:
        columns: what it looks at in a record.
    """

    def __init__(self, source: Source) -> None:
        self.filters = {column: check_filter(source, column, rule) for column, rule in source.filters.items()}
        self.template = parse_template(source) if source.text_template is not None else None
        self.text_column = source.text_column
        columns = [column for _, column in self.template if column] if self.template else [self.text_column]
        self.columns = list(dict.fromkeys([*self.filters, *columns]))
        self.fingerprint = [source.text_column, source.text_template, source.filters]

    def item(self, record: Any, where: str) -> Item:
        """What a block takes of a record."""
        try:
            return self.text(record)
        except Unusable as error:
            return BadRecord(where, str(error))

    def text(self, record: Any) -> str | None:
        """The text; None where the filters leave it out.

        Raises:
            Unusable: no such key, a value that isn't text, a lone surrogate (no UTF-8 can hold it).
        """
        if not isinstance(record, dict):
            raise Unusable(f"a record is a JSON object, not {type_name(record)}")
        missing = self.missing(record, "key")
        if missing:
            raise Unusable(missing)
        if not all(fits(rule, column, record[column]) for column, rule in self.filters.items()):
            return None
        if self.template is None:
            text, what = record[self.text_column], repr(self.text_column)
        else:
            text, what = self._render(record), "the rendered text"
        if not isinstance(text, str):
            raise Unusable(f"{what} is {type_name(text)}, not text")
        if not encodable(text):
            raise Unusable(f"{what} holds a lone surrogate, which is not text")
        return text

    def missing(self, names: Iterable[str], noun: str) -> str | None:
        """What to say when not all of `columns` are among the names."""
        for column in self.columns:
            if column not in names:
                found = shorten(", ".join(names))
                if column in self.filters:
                    return f"no {noun} {column!r} to filter by (found {found})"
                mend = "text_template" if self.template else "text_column"
                return f"no {noun} {column!r} (found {found}); set {mend}"
        return None

    def _render(self, record: dict[str, Any]) -> str:
        parts = []
        for literal, column in self.template:
            parts.append(literal)
            if column is not None:
                if record[column] is None:
                    raise Unusable(f"{column!r} is null, not text")
                parts.append(as_text(record[column]))
        return "".join(parts)


def check_filter(source: Source, column: str, rule: Any) -> Any:
    """The rule itself: a value, a list of values, or {min, max}; `UserError` for anything else."""
    where = f"source {source.name!r}: filters.{column}"
    if isinstance(rule, dict):
        if not rule or not set(rule) <= {"min", "max"} or not all(map(is_number, rule.values())):
            raise UserError(f"{where} must be a value, a list of values or {{min: number, max: number}}, not {rule}")
    elif isinstance(rule, list) and (not rule or any(isinstance(value, (list, dict)) for value in rule)):
        raise UserError(f"{where} must list plain values, not {rule}")
    return rule


def fits(rule: Any, column: str, value: Any) -> bool:
    """Whether a record's value passes a filter.

    Raises:
        Unusable: no number where the filter is a range.
    """
    if isinstance(rule, dict):
        if not is_number(value):
            raise Unusable(f"{column!r} is {type_name(value)}, not a number to filter by")
        return rule.get("min", value) <= value <= rule.get("max", value)
    return value in rule if isinstance(rule, list) else value == rule


def parse_template(source: Source) -> list[tuple[str, str | None]]:
    """`"a {b} c"` → `[("a ", "b"), (" c", None)]`; `UserError` where braces hold anything but a column's name."""
    where = f"source {source.name!r}: text_template"
    try:
        parts = list(string.Formatter().parse(source.text_template))
    except ValueError as error:
        raise UserError(f"{where}: {error}; a brace that is text is written twice") from None
    for _, column, spec, conversion in parts:
        if column is not None and (not column or set(column) & set(".[") or spec or conversion):
            raise UserError(f"{where}: braces hold a column's name and nothing else; a brace that is text is doubled")
    if all(column is None for _, column, _, _ in parts):
        raise UserError(f"{where} names no {{column}}")
    return [(literal, column) for literal, column, _, _ in parts]


def as_text(value: Any) -> str:
    """A column's value inside a template: messages as a paragraph a turn, other text as it is, the rest as JSON."""
    messages = value
    if isinstance(value, str):
        messages = None
        if value.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                messages = json.loads(value)
    turns = read_turns(messages)
    if turns:
        return "\n\n".join(f"{role.replace('_', ' ').capitalize()}: {content}" for role, content in turns if content)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def read_turns(messages: Any) -> list[tuple[str, str]]:
    """(role, content) of each of a list of messages; nothing where it isn't one."""
    turns = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            return []
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        turns.append((SHAREGPT_ROLES.get(role, role), content))
    return turns


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    return " ".join(text.split())[:200]


def reason_of(error: BaseException) -> str:
    return shorten(getattr(error, "strerror", None) or str(error) or type(error).__name__)
