"""Show a conversation as it is trained on, token by token: what is trained and what is masked.

    python scripts/inspect_chat.py --config recipes/demo/sft.yaml --row 0 [--format jsonl]     # also of dpo and kto
    python scripts/inspect_chat.py --messages FILE.json --model DIR [--chat_format alpaca]

--model DIR and --tokenizer DIR stand in for the recipe's. Colours go to a terminal only, and not with NO_COLOR set.
"""

import _env  # noqa: F401

import os
import sys

from genesis_hf.chat_display import as_jsonl, as_text
from genesis_hf.chat_inspection import (
    inspect_example,
    inspect_messages,
    load_chat_tokenizer,
    parse_inspection,
    read_messages,
)
from genesis_hf.chat_lint import chat_faults
from genesis_hf.config import recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    wanted, recipe, settings = parse_inspection()
    if wanted.dry_run:
        print(recipe_yaml(wanted), end="")
        return

    messages = read_messages(wanted.messages) if wanted.messages is not None else None
    tokenizer = load_chat_tokenizer(wanted)
    for fault in chat_faults(tokenizer):
        print(f"warning: chat format: {fault}", file=sys.stderr)

    if messages is not None:
        shown = [inspect_messages(tokenizer, messages, settings, wanted.messages)]
    else:
        shown = inspect_example(tokenizer, recipe, settings, wanted.row)
    if wanted.format == "jsonl":
        shown = [shown[-1 if wanted.answer == "rejected" else 0]]
    for inspected in shown:
        if inspected.cut:
            kept = len(inspected.tokens)
            print(
                f"longer than max_length {settings.max_length:,}: training cuts the last {inspected.cut:,} of "
                f"{kept + inspected.cut:,} tokens",
                file=sys.stderr,
            )
        print(as_jsonl(inspected) if wanted.format == "jsonl" else as_text(inspected, in_color()), end="", flush=True)


def in_color() -> bool:
    """As https://no-color.org asks; FORCE_COLOR is for a pager."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


if __name__ == "__main__":
    with report_user_errors():
        main()
