"""A model repository of the Hub: revisions, one commit a change, tags; what goes wrong in words.

`create_commit` makes one commit of all files. The client's `upload_folder` makes several where hf_xet is installed, so
that a broken connection would leave a revision with half of a model.
"""

import hashlib
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, httpx
from tqdm.auto import tqdm

from genesis_hf.data.hub import HUB_TIMEOUT, is_network_error, pause, root
from genesis_hf.errors import INTERRUPTED, UserError
from genesis_hf.files import file_sha256, read_json
from genesis_hf.publishing.layout import Files

T = TypeVar("T")

WAITS = (2.0, 10.0, 30.0)
"""Seconds between tries. The client has tried a file's upload five times more by then."""

ANSWER_TIMEOUT = 300.0
"""Seconds for the Hub's answer to what was sent: a commit of many files takes it a while."""

CONFLICTS = (409, 412)
"""Somebody else's commit came in between."""


class Repository:
    """A model repository. The token is the client's own affair (`HF_TOKEN`, or `hf auth login`).

    Every method raises `UserError`, one line that names the mend, when the Hub refuses or doesn't answer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._hub = HfApi()

    # -----------------------------------------------------------------------------------------------------
    # Writing
    # -----------------------------------------------------------------------------------------------------

    def make(self, private: bool) -> None:
        """Create the repository if it isn't there; refuses to make public what is to be private."""
        if not get_token():
            raise UserError("no token for the Hub: set HF_TOKEN in the environment, or run `hf auth login`")
        self._try(lambda: self._hub.create_repo(self.name, private=private, exist_ok=True))
        if private and not self._try(lambda: self._hub.model_info(self.name)).private:
            raise UserError(
                f"{self.name} is public on the Hub and hub_private_repo is true: make it private there, or set "
                "hub_private_repo: false"
            )

    def make_branch(self, branch: str) -> None:
        """Create a branch if it isn't there; it begins where the repository began, without another one's files."""

        def make() -> None:
            refs = self._hub.list_repo_refs(self.name)
            if branch not in [ref.name for ref in refs.branches]:
                first = self._hub.list_repo_commits(self.name)[-1].commit_id
                self._hub.create_branch(self.name, branch=branch, revision=first, exist_ok=True)

        self._try(make)

    def commit(self, branch: str, files: Files, message: str, owned: Callable[[str], bool]) -> tuple[str, int]:
        """Make the part of a branch that is `owned` hold exactly these files, in one commit.

        What the Hub has already, of this commit or an interrupted one, is not sent again.

        Args:
            owned: whether a path that is on the branch and not in `files` goes.

        Returns:
            the commit that the branch is at, and how many files it changed; 0 where all was there.
        """
        changed = 0

        def commit() -> str:
            nonlocal changed
            present = {entry.path: entry for entry in self._tree(branch)}
            wanted = [
                CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
                for path, content in files.items()
                if not same(present.get(path), content)
            ]
            gone = [CommitOperationDelete(path) for path in present if owned(path) and path not in files]
            changed = changed or len(wanted) + len(gone)
            if not wanted and not gone:
                return self._hub.model_info(self.name, revision=branch).sha
            return self._hub.create_commit(
                self.name, [*gone, *wanted], commit_message=message, revision=branch, num_threads=2
            ).oid

        return self._try(commit), changed

    def tag(self, tag: str, commit: str) -> bool:
        """Name a commit; False where it bears that name already."""

        def make() -> bool:
            tags = {ref.name: ref.target_commit for ref in self._hub.list_repo_refs(self.name).tags}
            if tags.get(tag, commit) != commit:
                raise UserError(
                    f"tag {tag} of {self.name} names another commit ({tags[tag][:8]}); tags stay: choose another"
                )
            if tag not in tags:
                self._hub.create_tag(self.name, tag=tag, revision=commit)
            return tag not in tags

        return self._try(make)

    # -----------------------------------------------------------------------------------------------------
    # Reading
    # -----------------------------------------------------------------------------------------------------

    def branches(self) -> list[str]:
        """The names of its branches."""
        return [ref.name for ref in self._try(lambda: self._hub.list_repo_refs(self.name)).branches]

    def head(self, revision: str) -> str:
        """The commit that a branch or tag names."""
        return self._try(lambda: self._hub.model_info(self.name, revision=revision)).sha

    def sizes(self, revision: str) -> dict[str, int]:
        """The paths of a revision's files, and their bytes."""
        return {entry.path: entry.size for entry in self._try(lambda: self._tree(revision))}

    def read_json(self, path: str, revision: str) -> dict[str, Any]:
        """A JSON object in a revision; {} where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return read_json(Path(self._try(lambda: self._file(path, revision, folder))))
            except RemoteEntryNotFoundError:
                return {}

    def download(self, revision: str, patterns: list[str], folder: Path) -> None:
        """Download files; what is in the folder of an interrupted download isn't asked for again."""
        self._try(
            lambda: self._hub.snapshot_download(self.name, revision=revision, allow_patterns=patterns, local_dir=folder)
        )

    def _file(self, path: str, revision: str, folder: str) -> str:
        return self._hub.hf_hub_download(self.name, path, revision=revision, local_dir=folder)

    def _tree(self, revision: str) -> list[RepoFile]:
        entries = self._hub.list_repo_tree(self.name, revision=revision, recursive=True)
        return [entry for entry in entries if isinstance(entry, RepoFile)]

    # -----------------------------------------------------------------------------------------------------
    # Failing
    # -----------------------------------------------------------------------------------------------------

    def _try(self, action: Callable[[], T]) -> T:
        """Act, again after a while where that may help; raises `UserError` when it doesn't."""
        for wait in (*WAITS, None):
            end_silence()
            try:
                with leaving_at_once():
                    return action()
            except (UserError, RemoteEntryNotFoundError):
                raise
            except Exception as error:  # the client, its HTTP client and hf_xet raise many kinds
                words = refusal(error, self.name)
                if words is None and not may_pass(error):
                    raise
                if words is not None or wait is None:
                    raise UserError(words or f"the Hub can't be reached ({first_line(error)})") from None
                tqdm.write(f"{self.name}: no success with the Hub ({first_line(error)}); again in {wait:.0f} s")
                pause(wait)
        raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
    answer = next((link for link in chain(error) if isinstance(link, HfHubHTTPError)), None)
    conflict = answer is not None and answer.response.status_code in CONFLICTS
    # hf_xet tells of a lost connection by a plain RuntimeError. The client closes its session when a connection fails,
    # and another of its threads may then find it closed (RuntimeError) or gone (AttributeError).
    closed = type(root(error)) in (RuntimeError, AttributeError)
    return conflict or closed or is_network_error(error)


def refusal(error: BaseException, name: str) -> str | None:
    """What a final answer of the Hub means and how to mend it, in one line; None for an error of another kind."""
    for link in chain(error):
        if isinstance(link, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset it to reach the Hub"
        if isinstance(link, HFValidationError):
            return f"{first_line(link)} (hub_model_id {name})"
        if isinstance(link, HfHubHTTPError) and not may_pass(link):
            status = link.response.status_code
            meanings = {
                401: f"the Hub does not accept this token for {name}: renew HF_TOKEN, or `hf auth login`",
                403: f"this token may not do that with {name}: it needs write access to it (hf.co/settings/tokens)",
                404: f"{name}, or that revision of it, is not on the Hub, or this token may not see it",
            }
            return meanings.get(status, f"the Hub refuses ({link.server_message or first_line(link)})")
        if isinstance(link, FileNotFoundError) and link.filename:
            return f"{link.filename} went while it was being uploaded (save_total_limit?)"
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error, without the signatures in addresses."""
    bottom = root(error)
    line = str(bottom).strip().split("\n")[0] or type(bottom).__name__
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", line)[:200]


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process while the client works: its threads would send what they have begun, or go on trying.

    Nothing is left half-written: a revision changes in one commit, and a download gets its name when it is whole.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def leave(*_: object) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_silence() -> None:
    """Bound how long the client's session waits: without it a connection that died is waited for, for ever."""
    session = get_session()
    if session.timeout.read is None:
        session.timeout = httpx.Timeout(HUB_TIMEOUT, read=ANSWER_TIMEOUT)


def same(entry: RepoFile | None, content: Path | bytes) -> bool:
    """Whether a file of the Hub has this content."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if entry is None or entry.size != size:
        return False
    if entry.lfs is not None:
        found = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)
        return found == entry.lfs.sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % size + data).hexdigest()  # as git names a file
