"""A Python that has imported libraries, and runs each program in a fork of itself: saves five seconds a program.

    python tests/warm_python.py MODULE …

imports these and reads commands: a JSON object a line on stdin, with the `arguments` of python (`SCRIPT …`,
`-m MODULE …` or `-c PROGRAM …`), its `environment`, and the files `stdout` and `stderr` to write. The exit code is a
line on stdout. Where the program is `accelerate launch`, the processes that it starts are forks, too, with the
environment that it makes for them: its own children, each in a session of its own, to be killed like any others.

What the modules read from the environment when they are imported can't be changed here, and all programs have the same
seed of `hash`: `conftest.run_script` and `launch` start a Python of its own where that matters.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import types
from multiprocessing.popen_fork import Popen


def main() -> None:
    """Answer until stdin ends."""
    del sys.path[0]  # this folder
    for module in sys.argv[1:]:
        importlib.import_module(module)

    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda handler, words, environment: Popen(Rank(list(words), environment))
    gc.freeze()  # so that a fork's collections leave alone, and needn't copy, what is here
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            nothing = os.open(os.devnull, os.O_RDONLY)
            written = [os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
            for number, file in enumerate([nothing, *written]):
                os.dup2(file, number)
            become(asked["arguments"], asked["environment"])
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Rank:
    """`python -u SCRIPT …` as torchrun starts it, for `multiprocessing` to fork."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        if words[:2] != [sys.executable, "-u"]:
            raise ValueError(f"not the way in which torchrun starts Python: {words}")
        self.arguments, self.environment = words[2:], environment

    def _bootstrap(self, parent_sentinel: int) -> None:
        os.setsid()
        become(self.arguments, self.environment)


def become(arguments: list[str], environment: dict[str, str]) -> None:
    """Be `python ARGUMENTS` to its end, but for tidying memory."""
    gc.freeze()  # what is here is the parent's
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    code: object = None
    try:
        run(arguments)
    except SystemExit as exit:
        code = exit.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


def run(arguments: list[str]) -> None:
    """What `python ARGUMENTS` runs, as `__main__`."""
    option, *others = arguments
    if option == "-m":
        sys.argv = others
        sys.path.insert(0, os.getcwd())
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *others[1:]]
        sys.path.insert(0, "")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(others[0], vars(module))
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(option))
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    main()
