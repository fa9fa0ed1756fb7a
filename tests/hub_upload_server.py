"""A Hub on 127.0.0.1 that speaks as much of the protocol as publishing and pulling take, and fails when told to."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

Tree = dict[str, bytes]

Fault = int | Literal["drop", "lost", "cut", "damage"]
"""A status; the connection closed in the middle of the request, or instead of the answer to what was done; half of an
answer; an answer with a flipped bit."""

LARGE = 10_000
"""Bytes from which on a file is a large one, which goes to a place of its own."""


@dataclass
class Repository:
    """Commits by their ids, each a whole tree; branches and tags are names of them."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree) -> str:
        content = json.dumps([len(self.commits), sorted(tree)]).encode()
        name = hashlib.sha1(content).hexdigest()
        self.commits[name] = tree
        self.branches[branch] = name
        self.history.append(f"{branch} {name}")
        return name

    def find(self, revision: str) -> str | None:
        name = self.branches.get(revision) or self.tags.get(revision) or revision
        return name if name in self.commits else None


class HubUploadServer:
    """Holds model repositories in memory.

    with HubUploadServer() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(home)})
    hub.files("someone/model", "main")["config.json"]
    """

    def __init__(self, token: str = "hf_secret") -> None:
        self.token = token
        """The only one that is accepted."""
        self.read_only = False
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Method and path of each."""
        self.received: dict[str, int] = {}
        """By object: how often its content came whole."""
        self.dropped = threading.Event()
        """Set when a connection has been closed in the middle of a request."""
        self._faults: list[tuple[str, str, Fault]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubUploadServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: object) -> dict[str, str]:
        """What a process needs to take this server for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": self.token,
        }

    def stand_in(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make this process take this server for the Hub, and wait for nothing."""
        addresses = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
        }
        switches = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(home)}
        for name, value in {**addresses, **switches}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", self.token)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setattr("genesis_hf.publishing.repository.pause", lambda _: None)

    def files(self, name: str, revision: str = "main") -> Tree:
        """The files of a revision by their paths."""
        repository = self.repositories[name]
        return repository.commits[repository.find(revision)]

    def fail(self, method: str, path: str, *faults: Fault, after: int = 0) -> None:
        """What requests of a method, whose path holds `path`, come to; the first `after` of them go well."""
        self._faults = [(method, path, 0)] * after + [(method, path, fault) for fault in faults]

    def next_fault(self, method: str, path: str) -> Fault | None:
        if self._faults and self._faults[0][0] == method and self._faults[0][1] in path:
            return self._faults.pop(0)[2] or None
        return None

    def count(self, method: str, path: str = "") -> int:
        """Requests of a method whose path holds `path`."""
        return sum(request.startswith(method) and path in request for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubUploadServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.handle_request()

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        self.fault = self.hub.next_fault(self.command, path)
        if self.fault == "drop":
            self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 512) // 2)
            self.close_connection = True
            self.hub.dropped.set()
            return
        body = self.body()
        if isinstance(self.fault, int):
            self.answer(self.fault, {"error": "told to fail"})
            return
        parts = path.split("/")
        if parts[0] == "objects":
            self.hub.objects[parts[1]] = body
            self.hub.received[parts[1]] = self.hub.received.get(parts[1], 0) + 1
            self.answer(200, {})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "api/validate-yaml":
            self.answer(200, {})
        elif self.hub.read_only and self.command == "POST":
            self.answer(403, {"error": "no write access"})
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif parts[-1] == "batch":
            self.answer(200, {"transfer": "basic", "objects": [self.place(o) for o in json.loads(body)["objects"]]})
        elif parts[0] == "api":
            self.answer_api("/".join(parts[2:4]), parts[4:], body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})

    def create(self, values: dict) -> None:
        name = f"{values['organization']}/{values['name']}"
        if name in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        repository = Repository(bool(values.get("private")) or values.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b""})
        self.hub.repositories[name] = repository
        self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def answer_api(self, name: str, route: list[str], body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        action, *rest = route or ["revision", "main"]
        if repository is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif action == "refs":
            named = {"branches": repository.branches, "tags": repository.tags}
            refs = {
                kind: [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]
                for kind, names in named.items()
            }
            self.answer(200, {**refs, "converts": []})
        elif action == "branch":
            start = repository.find(json.loads(body or b"{}").get("startingPoint") or "main")
            known = rest[0] in repository.branches
            repository.branches.setdefault(rest[0], start)
            self.answer(409 if known else 200, {})
        elif repository.find(rest[0]) is None:
            self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer_revision(name, repository, action, rest[0], body)

    def answer_revision(self, name: str, repository: Repository, action: str, revision: str, body: bytes) -> None:
        oid = repository.find(revision)
        tree = repository.commits[oid]
        if action == "revision":
            siblings = [{"rfilename": path} for path in tree]
            self.answer(200, {"id": name, "sha": oid, "private": repository.private, "siblings": siblings})
        elif action == "commits":
            commits = [{"id": c, "authors": [], "date": "2026-01-01T00:00:00.000Z"} for c in [oid, first(repository)]]
            self.answer(200, [{**commit, "title": "", "message": ""} for commit in commits])
        elif action == "tree":
            self.answer(200, [entry(path, content) for path, content in sorted(tree.items())])
        elif action == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            self.answer(200, [entry(path, tree[path]) for path in wanted if path in tree])
        elif action == "tag":
            values = json.loads(body)
            known = values["tag"] in repository.tags
            repository.tags.setdefault(values["tag"], oid)
            self.answer(409 if known else 200, {})
        elif action == "preupload":
            self.answer(200, {"files": [upload_mode(file, tree) for file in json.loads(body)["files"]]})
        elif action == "commit":
            self.commit(name, repository, revision, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {})

    def commit(self, name: str, repository: Repository, branch: str, lines: list[dict]) -> None:
        tree = dict(repository.commits[repository.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repository.commit(branch, tree)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def place(self, wanted: dict) -> dict:
        """Where to put a large file; nothing for one that is there."""
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.objects:
            return known
        upload = {"href": f"{self.hub.url}/objects/{wanted['oid']}", "header": {}}
        return {**known, "authenticated": True, "actions": {"upload": upload}}

    def answer_file(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        oid = repository.find(revision) if repository else None
        content = repository.commits[oid].get(path) if oid else None
        if content is None:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound" if oid else "RevisionNotFound"})
            return
        tag = entry(path, content).get("lfs", {}).get("oid") or entry(path, content)["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.send(status, content, headers)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, value: dict | list, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.fault == "lost":
            self.close_connection = True
            return
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.fault == "cut":
            content, self.close_connection = content[: len(content) // 2], True
        if self.fault == "damage":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command != "HEAD":
            self.wfile.write(content)


def first(repository: Repository) -> str:
    """The commit that a repository began with."""
    return next(iter(repository.commits))


def entry(path: str, content: bytes) -> dict:
    """A file as the tree's and paths-info's routes name it."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    named = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) <= LARGE:
        return named
    return {**named, "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}


def upload_mode(file: dict, tree: Tree) -> dict:
    """How a file is to be sent, and what stands in its place."""
    mode = "lfs" if file["size"] > LARGE else "regular"
    standing = entry(file["path"], tree[file["path"]]) if file["path"] in tree else {}
    oid = standing.get("lfs", {}).get("oid") or standing.get("oid")
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
