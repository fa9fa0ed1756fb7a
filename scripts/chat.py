"""Talk to a model in the terminal.

    python scripts/chat.py MODEL [--format chatml|alpaca|raw] [--system TEXT] [--temperature 0.7] …

MODEL is an exported folder, a run directory, a checkpoint or a Hub id; nothing is written into a run. `raw` continues
text, as a base model does. /help lists what can be done in between; Ctrl-C stops an answer, Ctrl-D leaves. Questions
may also be piped in: what is refused is said on stderr, and the exit code is 2 where nothing else came of them.
"""

import _env  # noqa: F401

import argparse
import sys
from dataclasses import fields

from genesis_hf.errors import report_user_errors

HELP = {
    "temperature": "0: always the likeliest token",
    "top_p": "smallest set of tokens of this probability",
    "top_k": "only so many of the likeliest tokens; 0: all",
    "repetition_penalty": "above 1: tokens that occurred become less likely",
    "max_new_tokens": "an answer that has not stopped by then is cut",
    "seed": "of the draws; default: another one each time",
}


def main() -> None:
    options = vars(parse_options())

    # After the options: these bring torch and TRL, which take seconds.
    from genesis_hf.playground.loading import load_named
    from genesis_hf.playground.sampling import Sampling
    from genesis_hf.playground.terminal import Terminal

    given = {field.name: options[field.name] for field in fields(Sampling) if options[field.name] is not None}
    sampling = Sampling(**given)
    if not Terminal(load_named(options["model"]), sampling, options["format"], options["system"]).run():
        sys.exit(2)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, a run directory, a checkpoint or a Hub id")
    parser.add_argument("--format", choices=("chatml", "alpaca", "raw"), help="default: the tokenizer's chat template")
    parser.add_argument("--system", default="", help="system prompt")
    for name, text in HELP.items():
        parser.add_argument(f"--{name}", type=float, help=text)
    return parser.parse_args()


if __name__ == "__main__":
    with report_user_errors():
        main()
