"""What a playground's server refuses, over real HTTP."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from small_playground import ENDLESS, make_models, serving

ROOT = Path(__file__).parents[1]
PREFIX = "/gradio_api"
QUEUE = 3
CHAT = "models/chat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    with (
        serving(models, concurrency=1, queue_size=QUEUE) as address,
        httpx.Client(base_url=address, timeout=20, trust_env=False) as client,
    ):
        yield client


class Visitor:
    """Somebody with a browser, as far as the server can tell."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.client, self.name = client, name
        functions = client.get("/config").json()["dependencies"]
        self.function = next(function["id"] for function in functions if function["api_name"] == "say")

    def ask(self, text: object, key: object = CHAT, history: object = (), tokens: int = 4, **changes: object) -> object:
        """Put a question; the server's answer to that."""
        values = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1, "max_new_tokens": tokens}
        values = {**values, "seed": "1", **changes}
        data = [text, list(history), key, "auto", "", *values.values()]
        body = {"data": data, "fn_index": self.function, "session_hash": self.name}
        return self.client.post(f"{PREFIX}/queue/join", json=body)

    def messages(self) -> Iterator[dict]:
        """What the server sends; leaving the iterator is closing the browser."""
        with self.client.stream("GET", f"{PREFIX}/queue/data", params={"session_hash": self.name}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def last_word(self) -> str:
        """All that was shown to the end, as text."""
        return json.dumps([m.get("output") for m in self.messages() if m["msg"].startswith("process_")])


def test_names_that_another_site_could_have_are_refused(client: httpx.Client) -> None:
    assert client.get("/config", headers={"host": "evil.example"}).status_code == 403
    assert client.post(f"{PREFIX}/queue/join", json={}, headers={"host": "evil.example"}).status_code == 403
    asked = {"host": "192.168.1.5:7860", "origin": "http://evil.example"}
    answer = client.get("/config", headers=asked)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={file}",
        "/file={file}",
        "/gradio_api/file/{file}",
        "/gradio_api/file=..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/assets/..%2f..%2froutes.py",
        "/assets/%2e%2e/%2e%2e/routes.py",
        "/svelte/..%2f..%2froutes.py",
        "/static//etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/x",
        "/gradio_api/custom_component/x/client/component/..%2f..%2fapp.py",
        "/gradio_api/stream/a/b/c/playlist-file",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/upload_progress?upload_id=a",
        "/gradio_api/token",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/gradio_api/deep_link",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
    ],
)
def test_nothing_but_the_page_can_be_read(client: httpx.Client, models: Path, path: str) -> None:
    for file in ("/etc/passwd", models / "trunk/checkpoints/step_000000010/recipe.yaml", ROOT / "README.md"):
        # A client of its own would tidy up the dots before it asks.
        request = client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.format(file=file).encode())
        answer = client.send(request)
        assert answer.status_code == 404, answer.text[:200]
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["upload", "run/predict", "api/say", "call/say", "component_server", "process_recording"]
)
def test_nothing_but_the_pages_own_questions_is_taken(client: httpx.Client, path: str) -> None:
    files = {"files": ("a.txt", b"a")} if path == "upload" else None
    assert client.post(f"{PREFIX}/{path}", files=files, json=None if files else {"data": []}).status_code == 404
    assert client.put("/", content=b"a").status_code == 404


def test_a_page_may_ask_nobody_else(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert str(ROOT) not in page.text


def test_oversized_requests_are_refused_before_they_are_read(client: httpx.Client) -> None:
    assert client.post(f"{PREFIX}/queue/join", content=b"x" * 10_000_000).status_code == 413
    pieces = (b"x" * 100_000 for _ in range(100))
    assert client.post(f"{PREFIX}/queue/join", content=pieces).status_code == 413  # no length announced
    assert Visitor(client, "long").ask("x" * 16_001).status_code == 200
    assert "may have 16,000" in Visitor(client, "long").last_word()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": "../../etc"}, None),
        ({"key": "/etc/passwd"}, None),
        ({"key": ["models/chat"]}, None),
        ({"tokens": ENDLESS}, None),
        ({"top_p": "many"}, None),
        ({"seed": "abc"}, "seed must be"),
        ({"seed": -1}, "seed must be"),
        ({"history": [{"role": "user", "content": {"path": "/etc/passwd"}}]}, "other than text"),
        ({"history": [{"role": "system", "content": "x"}]}, "other than text"),
        ({"history": [{"role": "user", "content": "x" * 20_000}]}, "may have 16,000"),
    ],
)
def test_what_a_page_would_not_send_is_refused(client: httpx.Client, change: dict, complaint: str | None) -> None:
    visitor = Visitor(client, "other")
    assert visitor.ask("hello", **change).status_code == 200
    told = visitor.last_word()
    assert "assistant" not in told
    assert complaint is None or complaint in told


def test_a_full_queue_says_so_and_who_leaves_makes_room(client: httpx.Client) -> None:
    first = Visitor(client, "first")
    first.ask("hello", tokens=ENDLESS // 2, temperature=0)
    stream = first.messages()
    while next(stream)["msg"] != "process_generating":
        pass
    waiting = [Visitor(client, f"waiting{number}") for number in range(QUEUE)]
    assert [visitor.ask("hello").status_code for visitor in waiting] == [200] * QUEUE
    refused = Visitor(client, "refused").ask("hello")
    assert refused.status_code == 503
    assert "Queue is full" in refused.json()["detail"]
    answers: dict[str, str] = {}
    readers = [threading.Thread(target=lambda v=v: answers.update({v.name: v.last_word()})) for v in waiting]
    for reader in readers:
        reader.start()
    stream.close()  # the first one closes the browser amid an answer that would take minutes
    for reader in readers:
        reader.join(30)
    assert len(answers) == QUEUE
    assert all("4 tokens" in told for told in answers.values())
