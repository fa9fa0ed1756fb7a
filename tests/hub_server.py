"""A Hub on 127.0.0.1 that speaks as much of the protocol as streaming a dataset takes, and fails when told to."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Failure = Literal["503", "drop", "cut", "hang"]
"""Answered 503, not at all, with half of the body, or never."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "someone/gated"


class HubServer:
    """Serves a folder as the dataset `name`; every other name is unknown and `GATED` is closed.

    with HubServer(folder) as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(home)})
    """

    def __init__(self, folder: Path, name: str = "someone/documents") -> None:
        self.folder = folder
        self.name = name
        self.head = COMMIT
        """The commit that `main` names; files are served of `COMMIT` alone."""
        self.closed = threading.Event()
        self._failing = ""
        self._failures: list[Failure] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this server for the Hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
        }

    def fail(self, path: str, failures: list[Failure]) -> None:
        """What the next requests whose path holds `path` come to, one failure each."""
        self._failing, self._failures = path, list(failures)

    def next_failure(self, path: str) -> Failure | None:
        return self._failures.pop(0) if self._failures and self._failing in path else None

    def entry(self, path: Path) -> dict[str, Any]:
        """A file or folder as the tree's and paths-info's routes name it."""
        content = path.read_bytes() if path.is_file() else b""
        return {
            "type": "file" if path.is_file() else "directory",
            "path": str(path.relative_to(self.folder)),
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        failure = self.hub.next_failure(path)
        if failure in ("drop", "hang"):
            self.close_connection = True
            if failure == "hang":
                self.hub.closed.wait()
        elif failure == "503":
            self.answer(503, b"busy")
        elif path.startswith(f"/api/datasets/{self.hub.name}"):
            self.answer_api(path.removeprefix(f"/api/datasets/{self.hub.name}"), body)
        elif path.startswith(f"/datasets/{self.hub.name}/resolve/"):
            *_, commit, name = path.split("/", 6)
            self.answer_file(commit, name, cut=failure == "cut")
        elif GATED in path:
            self.answer(403, b"closed", {"X-Error-Code": "GatedRepo"})
        else:
            self.answer(404, b"unknown", {"X-Error-Code": "RepoNotFound"})

    def answer_api(self, route: str, body: bytes) -> None:
        folder = self.hub.folder
        if re.fullmatch(r"(/revision/[^/]+)?", route):
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in folder.rglob("*") if path.is_file()]
            commit = self.hub.head if route in ("", "/revision/main") else route.removeprefix("/revision/")
            if commit not in (COMMIT, self.hub.head):
                self.answer(404, b"unknown", {"X-Error-Code": "RevisionNotFound"})
                return
            self.answer_json({"id": self.hub.name, "sha": commit, "siblings": siblings, "private": False})
        elif route.startswith("/tree/"):
            inside = folder.joinpath(*route.split("/")[3:])
            if inside.is_dir():
                found = inside.rglob("*") if "recursive=true" in self.path else inside.iterdir()
                self.answer_json([self.hub.entry(path) for path in sorted(found)])
            else:
                self.answer(404, b"unknown", {"X-Error-Code": "EntryNotFound"})
        elif route.startswith("/paths-info/"):
            paths = [folder / name for name in parse_qs(body.decode())["paths"]]
            self.answer_json([self.hub.entry(path) for path in paths if path.exists()])
        else:
            self.answer(404, b"unknown")

    def answer_file(self, commit: str, name: str, cut: bool) -> None:
        path = self.hub.folder / name
        if commit != COMMIT or not path.is_file():
            self.answer(404, b"unknown", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, content, headers, cut)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first : last + 1], headers, cut)

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
