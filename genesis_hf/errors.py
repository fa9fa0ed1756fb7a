"""A user's mistake: one clear line, exit code 2, no traceback."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell expects it (128 + SIGINT)."""


class UserError(Exception):
    """Something the user can mend; its text names the file, key or row and the mend, in one line."""


@contextlib.contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn `UserError` and a full disk into one line on stderr and exit code 2, Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: {error.strerror}: {error.filename or 'a file of this run'}; make room", file=sys.stderr, flush=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
