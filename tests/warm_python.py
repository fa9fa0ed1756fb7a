"""A Python that has imported the libraries, and runs each script in a fork of itself: saves five seconds a script.

A command is a JSON object a line on stdin: `arguments`, `environment`, and the files `stdout` and `stderr` to write;
its exit code is a line on stdout. What libraries read from the environment while being imported can't be changed here:
`conftest.run_script` starts a Python of its own for that.
"""

import atexit
import gc
import json
import os
import runpy
import sys


def main() -> None:
    """Answer until stdin ends."""
    import lm_eval.evaluator  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import trl  # noqa: F401

    import genesis_hf  # noqa: F401

    gc.freeze()  # so that a fork's collections leave alone, and needn't copy, what is here
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(become(asked))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(asked: dict) -> int:
    """Be `python ARGUMENTS` to its end, but for tidying memory, and give its exit code."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = [os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
    for number, file in enumerate([nothing, *written]):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["arguments"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    code: object = None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
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
    return int(code or 0)


if __name__ == "__main__":
    main()
