"""A chat API on 127.0.0.1 that speaks OpenAI's and Anthropic's protocols, and fails when told to.

    with ChatServer(rates={"500": 0.05, "drop": 0.05}) as server:
        AsyncOpenAI(base_url=server.base_url, api_key="-")

`python tests/chat_server.py --latency 0.2` serves until it is ended and prints its address first; `GET /stats` and
`POST /reset` are for programs in another process.
"""

import argparse
import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FAULTS = {
    "500": "an error of the server, which passes",
    "429": "too many requests, which passes",
    "drop": "the connection is closed without a word",
    "malformed": "half of a JSON object",
    "no_choices": "JSON without an answer",
    "empty": "an answer of no text",
    "cut": "an answer that ended for want of tokens",
    "chat_tokens": "an answer with a chat format's tokens in it",
    "hang": "no answer until the server is closed",
    "400": "a request that is refused",
    "401": "a key that is refused",
    "404": "no such model",
}
UNPAID = frozenset({"500", "429", "drop", "hang", "400", "401", "404"})
"""Faults that no provider charges for."""

ERROR_TEXT = "scripted {}"
NAMES = ("river", "stone", "bridge", "window", "letter", "garden", "number", "morning", "winter", "table", "paper")

Reply = Callable[[dict[str, Any]], str]


def words(body: dict[str, Any]) -> str:
    """An answer that follows from the request, distinct for distinct ones, with thoughts where they are asked for."""
    digest = hash_of(body)
    rng = random.Random(digest)
    text = f"Answer {digest[:12]}: " + " ".join(rng.choices(NAMES, k=12)) + "."
    asked = json.dumps(body.get("messages"), ensure_ascii=False) + str(body.get("system"))
    return f"<think>\nWhat is {rng.choice(NAMES)}?\n</think>\n\n{text}" if "<think>" in asked else text


def hash_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class ChatServer:
    """Answers every request after `latency` seconds; which ones fail follows from the seed and the request alone.

    Attributes:
        bodies: all requests in the order in which they came.
        answered: how often each request, by its hash, got an answer that is paid for.
        keys: API keys that came with requests.
        most_in_air: calls at once, at most.
    """

    def __init__(
        self,
        rates: Mapping[str, float] | None = None,
        latency: float = 0.0,
        seed: int = 0,
        reply: Reply = words,
        port: int = 0,
        keep_bodies: bool = True,
    ) -> None:
        """
        Args:
            rates: share of the requests that come to each of `FAULTS`.
            reply: the text of an answer to a request's body.
            keep_bodies: False: nothing is held of a request, for long runs.
        """
        if unknown := set(rates or ()) - set(FAULTS):
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        self.rates, self.latency, self.seed, self.reply = dict(rates or {}), latency, seed, reply
        self.bodies: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.most_in_air = self._in_air = 0
        self._asked: Counter[str] = Counter()
        self._failures: list[str] = []
        self._keep_bodies = keep_bodies
        self._port = port
        self._ready = threading.Event()
        self._closing: asyncio.Event | None = None
        self.reset()

    def __enter__(self) -> "ChatServer":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """Of an OpenAI client; Anthropic's takes `url`."""
        return f"{self.url}/v1"

    def fail(self, faults: Sequence[str]) -> None:
        """What the next requests come to, one fault each, before the rates count again."""
        self._failures = list(faults)

    def reset(self) -> None:
        """Begin to count the calls in the air anew; those that are there now are among them."""
        self._area, self._count = 0.0, 0
        self._began = self._moved = None

    def stats(self) -> dict[str, Any]:
        """`requests` that came, `answers` paid for, and since `reset` the mean number of calls in the air at once."""
        seconds = (self._moved or 0) - (self._began or 0)
        return {
            "requests": self._count,
            "answers": sum(self.answered.values()),
            "mean_in_air": self._area / seconds if seconds else 0.0,
            "seconds": seconds,
        }

    # -----------------------------------------------------------------------------------------------------
    # HTTP
    # -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._closing.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.keys |= {headers[name] for name in ("authorization", "x-api-key") if name in headers}
                path = head.split(" ")[1]
                response = await self._respond(path, json.loads(body or b"{}"))
                if response is None:
                    break
                writer.write(response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _respond(self, path: str, body: dict[str, Any]) -> bytes | None:
        if path == "/stats":
            return encode(200, json.dumps(self.stats()))
        if path == "/reset":
            self.reset()
            return encode(200, "{}")
        self._move(+1)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            return await self._answer(body, anthropic=path.endswith("/messages"))
        finally:
            self._move(-1)

    async def _answer(self, body: dict[str, Any], anthropic: bool) -> bytes | None:
        digest = hash_of(body)
        if self._keep_bodies:
            self.bodies.append(body)
        fault = self._fault(digest)
        if fault not in UNPAID:
            self.answered[digest if self._keep_bodies else ""] += 1
        if fault == "drop":
            return None
        if fault == "hang":
            await self._closing.wait()
            return None
        if fault is not None and fault.isdigit():
            error = {"type": "error", "error": {"type": "scripted", "message": ERROR_TEXT.format(fault)}}
            return encode(int(fault), json.dumps(error), {"retry-after-ms": "1"})
        text = {"empty": "", "chat_tokens": "Well<|im_end|>\n<|im_start|>user\nGo on"}.get(fault, self.reply(body))
        answer = (anthropic_answer if anthropic else openai_answer)(body, text, cut=fault == "cut")
        if fault == "no_choices":
            answer.pop("content" if anthropic else "choices")
        content = json.dumps(answer, ensure_ascii=False)
        return encode(200, content[: len(content) // 2] if fault == "malformed" else content)

    def _fault(self, digest: str) -> str | None:
        """What this request comes to; asked again, it is drawn anew."""
        if self._failures:
            return self._failures.pop(0)
        if not self.rates:
            return None
        self._asked[digest] += 1
        draw = random.Random(f"{self.seed} {digest} {self._asked[digest]}").random()
        for fault, rate in self.rates.items():
            if (draw := draw - rate) < 0:
                return fault
        return None

    def _move(self, step: int) -> None:
        now = self._loop.time()
        if self._moved is None:
            self._began = self._moved = now
        self._area += self._in_air * (now - self._moved)
        self._moved, self._in_air = now, max(0, self._in_air + step)
        self.most_in_air = max(self.most_in_air, self._in_air)
        self._count += step > 0


def encode(status: int, content: str, headers: Mapping[str, str] | None = None) -> bytes:
    data = content.encode()
    lines = [f"HTTP/1.1 {status} scripted", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def openai_answer(body: dict[str, Any], text: str, cut: bool) -> dict[str, Any]:
    prompt, written = count_words(body), len(text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "scripted"),
        "choices": [
            {
                "index": 0,
                "finish_reason": "length" if cut else "stop",
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def anthropic_answer(body: dict[str, Any], text: str, cut: bool) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "scripted"),
        "content": [{"type": "text", "text": text}],
        "stop_reason": "max_tokens" if cut else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": count_words(body), "output_tokens": len(text.split())},
    }


def count_words(body: dict[str, Any]) -> int:
    texts = [str(body.get("system") or ""), *(str(message["content"]) for message in body.get("messages", ()))]
    return sum(len(text.split()) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rates", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ChatServer(**vars(arguments), keep_bodies=False) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
