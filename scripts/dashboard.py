"""A live page about one or several runs, from their files: curves, held-out text, mixture, events, samples, time left.

    python scripts/dashboard.py RUN [RUN …]                     # a page at http://127.0.0.1:8050/, for this machine
    python scripts/dashboard.py RUN --static                    # RUN/dashboard.html, one file with all it needs
    python scripts/dashboard.py RUN --static --watch 30         # … kept up to date while the run goes on

RUN is a run directory, running or finished, or a folder that holds several, as the demo's.
"""

import _env  # noqa: F401

import argparse
import contextlib
import signal
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from genesis_hf.errors import UserError, report_user_errors

if TYPE_CHECKING:
    from genesis_hf.dashboard.board import Board


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--port", type=int, default=8050, help="default 8050, or the next one that is free; 0: any")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: the whole network's")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--static", nargs="?", const="", metavar="FILE", help="write a page instead of serving one")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="with --static: keep rewriting its data")
    arguments = parser.parse_args()
    check(arguments)

    from genesis_hf.dashboard.board import Board

    board = Board(arguments.runs)
    if arguments.static is None:
        serve(board, arguments)
    else:
        write(board, arguments)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options that don't fit."""
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port {arguments.port}: must be from 0 to 65535")
    if arguments.watch is not None and arguments.static is None:
        raise UserError("--watch goes with --static; the page of a server is live anyway")
    if arguments.watch is not None and not 1 <= arguments.watch < float("inf"):
        raise UserError(f"--watch {arguments.watch:g}: must be at least 1 second")
    if arguments.static and not arguments.static.endswith(".html"):
        raise UserError(f"--static {arguments.static}: its name must end with .html; write RUN before --static")


def serve(board: "Board", arguments: argparse.Namespace) -> None:
    """Until Ctrl-C."""
    from genesis_hf.dashboard.server import DashboardServer

    server = DashboardServer(board, arguments.host, arguments.port)
    board.start()
    if arguments.port not in (0, server.server_address[1]):
        print(f"port {arguments.port} is taken")
    if not board.runs:
        print(f"no metrics.jsonl below {', '.join(arguments.runs)} yet; the page shows runs as they appear")
    count = len(board.runs)
    print(f"{count} {'run' if count == 1 else 'runs'} at {server.url} (Ctrl-C ends it)", flush=True)
    if server.open_to_the_network:
        print("anybody who reaches this machine can read it; there is no password")
    if arguments.open:
        webbrowser.open(server.url)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    board.close()


def write(board: "Board", arguments: argparse.Namespace) -> None:
    """The page as a file, once or again and again."""
    from genesis_hf.dashboard.page import watch_static, write_static

    if not board.runs and arguments.watch is None:
        raise UserError(f"{', '.join(arguments.runs)}: no metrics.jsonl below; nothing to show")
    path = Path(arguments.static or Path(arguments.runs[0]) / "dashboard.html")
    try:
        if arguments.watch is None:
            print(path, flush=True)
            write_static(board, path)
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job's end, too, leaves a whole page behind
        with contextlib.suppress(KeyboardInterrupt):
            print(f"{path}, rewritten every {arguments.watch:g} s (Ctrl-C ends it)", flush=True)
            watch_static(board, path, arguments.watch)
    except OSError as error:
        raise UserError(f"--static {path}: {error.strerror}; name another file") from None


if __name__ == "__main__":
    with report_user_errors():
        main()
