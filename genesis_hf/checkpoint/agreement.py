"""What several processes do together: one that fails makes all of them fail, with the same words."""

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

T = TypeVar("T")


class SaveFailed(Exception):
    """Why a checkpoint could not be written, in one line; the same on every process."""


def together(function: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Call a function on every process of a group, and return its result.

    Raises:
        SaveFailed: it raised on one of them at least; on all of them, once all of them have come back.
    """
    result, problem = None, None
    try:
        result = function()
    except (Exception, CheckpointException) as error:
        problem = describe(error)
    problems = [found for found in gather(problem, group) if found]
    if problems:
        raise SaveFailed(problems[0])
    return result


def gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every process's value, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def describe(error: BaseException) -> str:
    """An error in one line; what is not the machine's fault also goes to stderr as it came."""
    if isinstance(error, CheckpointException):
        return describe(next(iter(error.failures.values()))[0])
    if isinstance(error, SaveFailed):
        return str(error)
    error = cause(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    with contextlib.suppress(Exception):
        traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no words'}"


def cause(error: BaseException) -> BaseException:
    """The OSError behind an error, or the error itself: torch's writer raises one of its own over a full disk's."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__context__
    return link or error
