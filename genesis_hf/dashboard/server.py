"""The live page's server, for this machine.

It answers a handful of known addresses and never reads a path out of a request, so no file can be asked for. The Host
header is checked, or any web page could read the figures through a name that it points at 127.0.0.1 (DNS rebinding).
"""

import errno
import gzip
import ipaddress
import json
import math
import socket
import sys
from collections.abc import Callable
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from genesis_hf.dashboard.board import Board
from genesis_hf.dashboard.page import SCRIPTS, asset, live_page, plotly_script
from genesis_hf.errors import UserError
from genesis_hf.hostnames import names_this_machine

PORTS = 20
"""Ports that are tried, from the wanted one on."""

SECURITY = {
    # Plotly sets styles on elements; nothing comes from, or goes to, anywhere else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Reply = tuple[str, bytes]
"""Content type and body."""


class DashboardServer(ThreadingHTTPServer):
    """Serves a board's page on the first free port from `port` on.

    Raises:
        UserError: no port is free, or there is no such address here.
    """

    daemon_threads = True

    def __init__(self, board: Board, host: str = "127.0.0.1", port: int = 8050) -> None:
        self.board = board
        self.host = host
        if ":" in host:
            self.address_family = socket.AF_INET6
        last = min(65535, port + PORTS - 1) if port else 0
        for wanted in range(port, last + 1):
            try:
                super().__init__((host, wanted), Handler)
                return
            except OSError as error:
                if error.errno == errno.EACCES:
                    raise UserError(
                        f"--port {wanted}: only an administrator may take it; name one above 1023"
                    ) from None
                if error.errno != errno.EADDRINUSE:
                    raise UserError(f"--host {host}: {error.strerror or error}") from None
        raise UserError(f"--port {port}: that and all up to {last} are taken; name another, or 0 for any")

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self.server_address[1]}/"

    @property
    def open_to_the_network(self) -> bool:
        """Whether others than this machine reach it."""
        return not ipaddress.ip_address(self.server_address[0]).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: DashboardServer
    server_version, sys_version = "genesis_hf", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """The page, what it is made of, and its data."""
        if not names_this_machine(self.headers.get("Host", ""), self.server.host):
            self.reply(403, ("text/plain", b"this name is not known here; use the address\n"))
            return
        try:
            address = urlsplit(self.path)
            make = ROUTES.get(address.path)
            content = make(self.server, parse_qs(address.query)) if make else None
        except ValueError as error:
            self.reply(400, ("text/plain", f"{error}\n".encode()))
            return
        if content is None:
            self.reply(404, ("text/plain", b"no such page\n"))
            return
        self.reply(200, content, forever=address.path == "/plotly.js")

    do_HEAD = do_GET

    def reply(self, code: int, content: Reply, forever: bool = False) -> None:
        """Send an answer, compressed where the browser takes that and it pays."""
        kind, body = content
        zipped = len(body) > 2048 and "gzip" in self.headers.get("Accept-Encoding", "")
        if zipped:
            body = packed(body) if forever else gzip.compress(body, compresslevel=1)
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=86400" if forever else "no-store")
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        for name, value in SECURITY.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A line every few seconds would drown what the terminal has to say."""


@cache
def packed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1)


# ---------------------------------------------------------------------------------------------------------
# What is asked for
# ---------------------------------------------------------------------------------------------------------

Query = dict[str, list[str]]


def data(server: DashboardServer, query: Query) -> Reply:
    """`known` versions by name, `axis`, `from`, `to` → every run's view."""
    try:
        known = json.loads(query.get("known", ["{}"])[0])
        span = tuple(float(query[key][0]) for key in ("from", "to")) if "from" in query else None
    except (ValueError, KeyError, RecursionError):
        raise ValueError("known must be JSON, from and to numbers") from None
    axis = query.get("axis", ["step"])[0]
    if axis not in ("step", "tokens", "hours") or not isinstance(known, dict):
        raise ValueError("axis is one of step, tokens, hours; known a mapping")
    if span is not None and not all(map(math.isfinite, span)):
        raise ValueError("from and to must be finite")
    views = server.board.view(known, axis, span)
    return "application/json", json.dumps({"runs": views}, allow_nan=False).encode()


def script(name: str, server: DashboardServer, query: Query) -> Reply:
    """One of the page's own."""
    return "text/javascript", asset(name).encode()


ROUTES: dict[str, Callable[[DashboardServer, Query], Reply]] = {
    "/": lambda server, query: ("text/html", live_page().encode()),
    "/dashboard.css": lambda server, query: ("text/css", asset("dashboard.css").encode()),
    "/plotly.js": lambda server, query: ("text/javascript", plotly_script().encode()),
    "/data.json": data,
    **{f"/{name}": partial(script, name) for name in SCRIPTS},
}
