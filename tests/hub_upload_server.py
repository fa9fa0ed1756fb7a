"""A Hub on 127.0.0.1 that speaks as much of the protocol as uploading a folder to a branch takes."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubUploadServer:
    """Takes uploads to model repositories into memory.

    with HubUploadServer() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(home)})
    hub.branches["someone/model"]["main"]["config.json"]
    """

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        """By repository, branch and path: the file's content."""
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()
        """What requests for the Hub's API were authorised with."""
        self.objects: dict[str, bytes] = {}
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
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubUploadServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer(404, {})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.body()
        if parts[:2] == ["api", "repos"]:
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            self.hub.tokens.add(self.headers.get("Authorization"))
            self.hub.private[name] = bool(values.get("private")) or values.get("visibility") == "private"
            self.hub.branches.setdefault(name, {"main": {}})
            self.answer(200, {"url": f"{self.hub.url}/{name}"})
        elif parts[-1] == "batch":
            self.answer(200, {"transfer": "basic", "objects": [self.place(o) for o in json.loads(body)["objects"]]})
        else:
            self.answer_repository("/".join(parts[2:4]), parts[4], parts[5], body)

    def answer_repository(self, name: str, action: str, branch: str, body: bytes) -> None:
        branches = self.hub.branches[name]
        if action == "branch":
            branches.setdefault(branch, {})
            self.answer(200, {})
        elif action == "preupload":
            names = [(file["path"], file["size"]) for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if size > 10_000 else "regular", "shouldIgnore": False}
                for path, size in names
            ]
            self.answer(200, {"files": modes})
        elif action == "commit":
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    branches[branch][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    branches[branch][value["path"]] = self.hub.objects[value["oid"]]
            self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/0", "commitOid": "0" * 40})
        else:
            self.answer(404, {})

    def place(self, wanted: dict) -> dict:
        """Where to put a large file."""
        upload = {"href": f"{self.hub.url}/objects/{wanted['oid']}", "header": {}}
        return {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True, "actions": {"upload": upload}}

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
