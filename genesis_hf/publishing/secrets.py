"""What looks like a secret in files that are to go up."""

import os
import re
from pathlib import Path

from genesis_hf.config import SECRET
from genesis_hf.errors import UserError
from genesis_hf.publishing.layout import Files

KINDS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])(hf|api_org)_[A-Za-z0-9]{16,}",
    "a key of a chat API": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}",
    "an AWS key": r"(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "an AWS secret": r"(?i:aws_secret_access_key)\W{1,5}[A-Za-z0-9/+]{30,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a Google API key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
PATTERN = re.compile("|".join(f"(?P<kind{i}>{pattern})" for i, pattern in enumerate(KINDS.values())))

SHORTEST = 12
"""Characters from which on the value of an environment variable is looked for; shorter ones stand anywhere."""

LARGEST_LOOKED_AT = 64 << 20
"""Bytes of a file; a larger one is data."""


def refuse_secrets(files: Files) -> None:
    """Raise `UserError` that names the first file and line that holds what looks like a secret, never its value.

    Looked for are the forms of common tokens, and the values of this process's own variables that are secrets by name.
    """
    own = {value: name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST}
    for name, content in files.items():
        for number, line in enumerate(text_of(content).splitlines(), 1):
            kind = kind_of_secret(line, own)
            if kind:
                raise UserError(
                    f"{name}, line {number} holds what looks like {kind}: nothing was uploaded; take it out of "
                    f"{content if isinstance(content, Path) else 'the file of that name in the run'}, and out of use"
                )


def kind_of_secret(line: str, own: dict[str, str]) -> str | None:
    """What a line of text gives away, in a few words.

    Args:
        own: values of environment variables, and their names.
    """
    match = PATTERN.search(line)
    if match:
        return list(KINDS)[int(match.lastgroup.removeprefix("kind"))]
    return next((f"the value of {name}" for value, name in own.items() if value in line), None)


def text_of(content: Path | bytes) -> str:
    """A file's text; empty where it isn't text, or too large to have been written by a person or a recipe."""
    if isinstance(content, Path):
        if content.stat().st_size > LARGEST_LOOKED_AT:
            return ""
        content = content.read_bytes()
    try:
        return "" if b"\0" in content[:8192] else content.decode()
    except UnicodeDecodeError:
        return ""
