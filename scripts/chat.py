"""Talk to a model in the terminal.

    python scripts/chat.py DIR [--format chatml|alpaca|raw] [--system TEXT] [--temperature 0.7] …

`raw` continues text, as a base model does. Ctrl-C stops an answer, Ctrl-D leaves; questions may also be piped in.
"""

import _env  # noqa: F401

import argparse
import contextlib
import json
import sys

from genesis_hf.config import SampleRecipe, write_text
from genesis_hf.errors import report_user_errors

HELP = """/help            this
/reset           forget the conversation
/system TEXT     set the system prompt (none without TEXT) and forget the conversation
/save FILE       write the conversation as JSON
/temperature T   0 is greedy
/quit            leave"""


def main() -> None:
    options = parse_options()

    # After the options: these bring torch and TRL, which take seconds.
    from genesis_hf.chat import encode_prompt, read_template
    from genesis_hf.generate import load_chat, sampling, stream_answer
    from genesis_hf.tokenizer import encode_documents

    model, tokenizer = load_chat(options.model)
    if options.format is None:
        options.format = "template" if tokenizer.chat_template else "raw"
    if options.format in ("chatml", "alpaca"):
        tokenizer.chat_template = read_template(options.format)
    history = new_history(options)
    if sys.stdin.isatty():
        print(f"{options.model}, {options.format}. /help lists the commands.")
    while (line := read_line()) is not None:
        if line.startswith("/"):
            if not obey(line, options, history):
                break
            continue
        if not line.strip():
            continue
        if options.format == "raw":
            ids = encode_documents(tokenizer, [line])[0]
        else:
            history.append({"role": "user", "content": line})
            ids = encode_prompt(tokenizer, history)
        answer = say(stream_answer(model, tokenizer, ids, sampling(tokenizer, settings(options))))
        if options.format != "raw":
            history.append({"role": "assistant", "content": answer})


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model's folder or Hub id")
    parser.add_argument("--format", choices=("chatml", "alpaca", "raw"), help="default: the tokenizer's chat template")
    parser.add_argument("--system", default="", help="system prompt")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--repetition_penalty", type=float, default=1.0)
    return parser.parse_args()


def settings(options: argparse.Namespace) -> SampleRecipe:
    return SampleRecipe(
        model=options.model,
        prompts="",
        output_file="",
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )


def new_history(options: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": options.system}] if options.system else []


def read_line() -> str | None:
    """A line from the user, None at the end of input. Ctrl-C only clears the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print()
        except EOFError:
            return None


def obey(line: str, options: argparse.Namespace, history: list[dict[str, str]]) -> bool:
    """Carry out a /command; False where it is to leave."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command in ("/quit", "/exit"):
        return False
    if command == "/system":
        options.system = argument
    if command in ("/reset", "/system"):
        history[:] = new_history(options)
        print("(a new conversation)")
    elif command == "/save" and argument:
        try:
            write_text(argument, json.dumps(history, indent=2, ensure_ascii=False) + "\n")
            print(f"({len(history)} turns → {argument})")
        except OSError as error:
            print(f"({argument}: {error.strerror})")
    elif command == "/temperature":
        with contextlib.suppress(ValueError):
            options.temperature = max(0.0, float(argument))
        print(f"(temperature {options.temperature})")
    else:
        print(HELP)
    return True


def say(pieces: object) -> str:
    """Print an answer as it comes; Ctrl-C ends it where it is."""
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(" …", end="")
    print()
    return answer


if __name__ == "__main__":
    with report_user_errors():
        main()
