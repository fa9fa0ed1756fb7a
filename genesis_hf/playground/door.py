"""What a browser may ask the server for.

Gradio serves uploads, files, proxied addresses, an API for programs and more. The page needs none of these, and they
are closed here whatever Gradio makes of them: what isn't on the list doesn't exist, and what is sent is bounded.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from genesis_hf.hostnames import names_this_machine

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SESSION = r"[\w-]{1,64}"

OPEN = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)(/[\w. @-]+)+"
        rf"|/gradio_api/(queue/data|startup-events|theme\.css|app_id/?|heartbeat/{SESSION})"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset)/?"),
}
"""Paths by method; HEAD is as GET."""

SECURITY = {
    # The page can ask nobody but this server, whatever a model writes. Gradio's own scripts stand in the page and make
    # functions of its templates.
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    b"form-action 'self'; base-uri 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Door:
    """An ASGI application before another one."""

    def __init__(self, app: App, largest_body: int, host: str | None = None) -> None:
        """
        Args:
            largest_body: bytes that a request may send.
            host: the address that is listened on; requests under names that any other site could give itself are
                refused (DNS rebinding). None: all names are known.
        """
        self.app, self.largest_body, self.host = app, largest_body, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not is_open(scope["method"], scope["path"]):
            return await refuse(scope, send, 404, "not found")
        asked = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if self.host is not None and not names_this_machine(asked, self.host):
            return await refuse(scope, send, 403, "this name is not known here; use the address")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self.largest_body:
            return await refuse(scope, send, 413, f"too large: at most {self.largest_body:,} bytes")
        if scope["method"] == "POST":
            body = await self.read(receive)
            if body is None:
                return await refuse(scope, send, 413, f"too large: at most {self.largest_body:,} bytes")
            receive = replayed(body, receive)
        return await self.app(scope, receive, secured(send))

    async def read(self, receive: Receive) -> bytes | None:
        """The whole body, however it was announced; None where it is too large."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.largest_body:
                return None
        return body


def is_open(method: str, path: str) -> bool:
    """Whether there is anything at a path, percent signs already decoded."""
    pattern = OPEN.get("GET" if method == "HEAD" else method)
    return pattern is not None and bool(pattern.fullmatch(path)) and ".." not in path


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, then whatever comes after it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return next_message


def secured(send: Send) -> Send:
    """Responses with the headers of `SECURITY`."""

    async def with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message.get("headers", [])]
            # Gradio lets pages of other sites read answers; nobody needs that here.
            kept = [pair for pair in headers if pair[0] not in SECURITY and not pair[0].startswith(b"access-control-")]
            message = {**message, "headers": [*kept, *SECURITY.items()]}
        await send(message)

    return with_headers


async def refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *SECURITY.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode() + b"\n"})
