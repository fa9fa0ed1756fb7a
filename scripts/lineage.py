"""The tree of checkpoints: what each came from, what it was trained on, how it scores.

    python scripts/lineage.py FOLDER [FOLDER …]
    python scripts/lineage.py diff A B [FOLDER …]
    python scripts/lineage.py fork RUN --at STEP [--set KEY=VALUE …] [--output_dir NEW]

FOLDER is a run, or holds several; default: runs. A and B are names in the tree, ends of them, or folders.
"""

import _env  # noqa: F401

import argparse
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from genesis_hf.errors import UserError, report_user_errors


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])

    # After the arguments: these bring torch, which takes seconds.
    from genesis_hf.lineage.display import diff_text, tree_text
    from genesis_hf.lineage.fork import fork
    from genesis_hf.lineage.tree import read_tree

    if arguments.command == "fork":
        run = fork(arguments.run, arguments.at, arguments.set, arguments.output_dir)
        print(
            f"{run} goes on from step {arguments.at:,} of {arguments.run}:\n"
            f"  accelerate launch --config_file accelerate_configs/… scripts/pretrain.py --config {run}/recipe.yaml"
        )
    elif arguments.command == "diff":
        a, b, *named = arguments.models
        tree = read_tree(named or ["runs", *(name for name in (a, b) if Path(name).is_dir())])
        print(diff_text(tree.find(a), tree.find(b)))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print(tree_text(read_tree(arguments.folders or ["runs"]), width) or "no model there")


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python scripts/lineage.py --help")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The command line; a first word that is no command is a folder.

    Raises:
        UserError: words that make no command.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="the tree (also without this word)")
    show.add_argument("folders", nargs="*", metavar="FOLDER")
    diff = commands.add_parser("diff", help="two models compared")
    diff.add_argument("models", nargs="*", metavar="A B [FOLDER …]")
    fork = commands.add_parser("fork", help="a new run that goes on from a checkpoint of another")
    fork.add_argument("run", metavar="RUN")
    fork.add_argument("--at", type=int, required=True, metavar="STEP")
    fork.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    fork.add_argument("--output_dir", metavar="NEW", help="default: RUN-from-STEP")
    if not words or words[0] not in ("show", "diff", "fork", "-h", "--help"):
        words = ["show", *words]
    arguments = parser.parse_args(words)
    if arguments.command == "diff" and len(arguments.models) < 2:
        raise UserError("diff compares two models: python scripts/lineage.py diff A B [FOLDER …]")
    return arguments


if __name__ == "__main__":
    with report_user_errors():
        main()
