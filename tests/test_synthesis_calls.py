"""Providers, the journal of paid calls, and budgets, against a server that fails as told."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from hypothesis import given, settings
from hypothesis import strategies as st
from small_synthesis import provider
from tiny_chat import make_tokenizer, small_model

from genesis_hf.chat import prepare_for_chat
from genesis_hf.errors import UserError
from genesis_hf.synthesis.budget import Budget, BudgetUsedUp, Rate
from genesis_hf.synthesis.calls import CALLS, MAX_ATTEMPTS, Calls, Unusable
from genesis_hf.synthesis.providers import open_provider
from genesis_hf.synthesis.providers.base import CallFailed, Completion, ProviderUnusable, Request
from genesis_hf.synthesis.recipe import BudgetSettings, ProviderSettings
from genesis_hf.synthesis.records import Appender, check_made_from, read_lines, sole_writer
from genesis_hf.tokenizer import load_tokenizer

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
KEY = "sk-very-secret-7d1f"


def anthropic(server: ChatServer, **changes: Any) -> ProviderSettings:
    return provider(kind="anthropic", base_url=server.url, **changes)


KINDS = {"openai": provider, "anthropic": anthropic}


def complete(settings: ProviderSettings, messages: list[dict[str, str]] = QUESTION) -> Completion:
    return complete_all(settings, [1], messages)[0]


def complete_all(
    settings: ProviderSettings, seeds: list[int], messages: list[dict[str, str]] = QUESTION
) -> list[Completion]:
    """An answer for each seed, asked for at once."""

    async def ask() -> list[Completion]:
        opened = open_provider(settings)
        requests = [
            Request(messages, settings.max_tokens, settings.temperature, settings.top_p, seed) for seed in seeds
        ]
        try:
            return await asyncio.gather(*map(opened.complete, requests))
        finally:
            await opened.close()

    return asyncio.run(ask())


def ask_all(folder: Path, settings: ProviderSettings, count: int = 1, **changes: Any) -> list[Any]:
    """One call for each of `count` numbers, at once; errors among the answers."""
    budget = Budget(changes.pop("budget", BudgetSettings()), [settings])
    done = changes.pop("done", ())

    async def run() -> list[Any]:
        opened = open_provider(settings)
        with Calls(folder, budget, done) as calls:
            asks = [
                calls.ask(opened, number, "answer-1", QUESTION, seed=number, **{"accept": str} | changes)
                for number in range(count)
            ]
            try:
                return await asyncio.gather(*asks, return_exceptions=True)
            finally:
                await opened.close()

    return asyncio.run(run())


# ---------------------------------------------------------------------------------------------------------
# Providers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["500", "429"])
def test_what_passes_is_tried_again(kind: str, fault: str) -> None:
    with ChatServer() as server:
        server.fail([fault, fault])
        answer = complete(KINDS[kind](server))
        assert answer.text.startswith("Answer ")
        assert answer.finish_reason == "stop"
        assert (answer.prompt_tokens, answer.completion_tokens, answer.model) == (7, 14, "scripted")
        assert len(server.bodies) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("500", CallFailed, "scripted at http"),
        ("400", CallFailed, "scripted 400"),
        ("drop", CallFailed, "the connection broke"),
        ("hang", CallFailed, "no answer within the timeout"),
        ("401", ProviderUnusable, "is refused (401)"),
        ("404", ProviderUnusable, "no such model or address"),
    ],
)
def test_what_stays_wrong_is_one_line(kind: str, fault: str, error: type[CallFailed], said: str) -> None:
    with ChatServer(rates={fault: 1.0}) as server, pytest.raises(CallFailed) as raised:
        complete(KINDS[kind](server, max_retries=0, timeout=0.2 if fault == "hang" else 60))
    assert type(raised.value) is error
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_listening_is_said(kind: str) -> None:
    with ChatServer() as server:
        settings = KINDS[kind](server, max_retries=1)
    with pytest.raises(ProviderUnusable, match=r"nobody answers at http://127.0.0.1:\d+.*: is the server running\?"):
        complete(settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["malformed", "no_choices"])
def test_an_unreadable_answer_is_an_empty_one_that_may_have_cost(kind: str, fault: str) -> None:
    with ChatServer(rates={fault: 1.0}) as server:
        answer = complete(KINDS[kind](server))
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("", "other", None)


def test_requests_say_what_the_recipe_says() -> None:
    with ChatServer() as server:
        complete(provider(server, extra_body={"min_p": 0.1}))
        complete(anthropic(server))
    openai_body, anthropic_body = server.bodies
    wanted = {"model": "scripted", "messages": QUESTION, "max_tokens": 64, "temperature": 0.8}
    assert openai_body == wanted | {"top_p": 0.95, "seed": 1, "min_p": 0.1}
    assert anthropic_body == wanted | {"system": "Be brief.", "messages": QUESTION[1:]}


def test_reasoning_in_a_field_of_its_own_comes_as_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    import chat_server

    plain = chat_server.openai_answer
    for field in ("reasoning_content", "reasoning"):

        def answer(*arguments: Any, field: str = field, **named: Any) -> dict[str, Any]:
            made = plain(*arguments, **named)
            made["choices"][0]["message"][field] = "Short waves scatter."
            return made

        monkeypatch.setattr(chat_server, "openai_answer", answer)
        with ChatServer(reply=lambda body: "Scattering.") as server:
            assert complete(provider(server)).text == "<think>\nShort waves scatter.\n</think>\n\nScattering."


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = load_tokenizer(make_tokenizer(folder))
    model = small_model()
    prepare_for_chat(model, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def test_a_local_model_answers_by_the_requests_seed_alone(chat_model: str) -> None:
    settings = ProviderSettings(kind="local", model=chat_model, max_tokens=12, concurrency=4)
    together = complete_all(settings, [1, 2, 3, 4, 5, 6, 1])
    alone = [complete_all(settings, [seed])[0] for seed in (1, 2, 3)]
    assert together[:3] == alone
    assert together[6] == together[0]
    assert len({answer.text for answer in together}) == 6
    assert together[0].prompt_tokens > 10
    assert together[0].completion_tokens <= 12


def test_a_local_model_says_what_does_not_fit(chat_model: str) -> None:
    settings = ProviderSettings(kind="local", model=chat_model, max_tokens=100)
    with pytest.raises(CallFailed, match=r"a prompt of \d+ tokens, and room for 28 beside max_tokens"):
        complete(settings, [{"role": "user", "content": "stone " * 50}])
    with pytest.raises(UserError, match="leaves no room for a prompt in the context of 128"):
        complete(replace(settings, max_tokens=128))


# ---------------------------------------------------------------------------------------------------------
# Keys
# ---------------------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment_and_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    for wrong, name in (
        (provider(), "OPENAI_API_KEY"),
        (provider(kind="anthropic"), "ANTHROPIC_API_KEY"),
        (provider(api_key_env="MY_KEY", base_url="http://127.0.0.1:1/v1"), "MY_KEY"),
        (provider(base_url="http://192.168.1.5:8000/v1"), "OPENAI_API_KEY"),
    ):
        with pytest.raises(UserError, match=f"the environment variable {name} is not set"):
            open_provider(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_sent_and_nowhere_else(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, caplog
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_KEY", KEY)
    # The server's own words hold the key, too.
    monkeypatch.setattr("chat_server.ERROR_TEXT", f"scripted {{}}: you sent {KEY}")
    said = []
    for fault in ("400", "401", "404", "429", "malformed", "empty"):
        with ChatServer(rates={fault: 1.0}) as server:
            settings = KINDS[kind](server, api_key_env="MY_KEY", max_retries=0)
            said += map(repr, ask_all(tmp_path, settings))
            assert any(KEY in key for key in server.keys)
    said += [repr(opened := open_provider(settings)), repr(vars(opened))]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode()
    everything = "".join(said) + written + "".join(capsys.readouterr()) + caplog.text
    assert "MY_KEY" in everything
    assert KEY not in everything


@pytest.mark.parametrize("wrong", [{"api_key_env": KEY}, {"base_url": f"http://me:{KEY}@host/v1"}])
def test_a_key_in_the_recipe_is_refused_and_not_shown(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError) as error:
        provider(**wrong)
    assert KEY not in str(error.value)


def test_a_loopback_server_gets_no_key_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer() as server:
        complete(provider(server))
        assert server.keys == {"bearer none"}


# ---------------------------------------------------------------------------------------------------------
# The journal
# ---------------------------------------------------------------------------------------------------------


def test_what_was_paid_is_not_asked_again(tmp_path: Path) -> None:
    with ChatServer() as server:
        first = ask_all(tmp_path, provider(server), 5)
        assert ask_all(tmp_path, provider(server), 5) == first
        assert len(server.bodies) == 5
        # Other settings are another question.
        ask_all(tmp_path, provider(server, temperature=0.1), 5)
        assert len(server.bodies) == 10


def test_half_a_last_line_is_cut_off_and_asked_again(tmp_path: Path) -> None:
    with ChatServer() as server:
        first = ask_all(tmp_path, provider(server), 3)
        whole = (tmp_path / CALLS).read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        for cut in (1, len(last) // 2, len(last) - 1):
            (tmp_path / CALLS).write_bytes(whole[: len(whole) - cut])
            asked = len(server.bodies)
            assert ask_all(tmp_path, provider(server), 3) == first
            assert len(server.bodies) == asked + 1
            assert (tmp_path / CALLS).read_bytes() == whole


@given(
    lines=st.lists(st.text(max_size=30), max_size=4),
    half=st.binary(max_size=200_000).map(lambda b: b.replace(b"\n", b"")),
)
@settings(max_examples=30, deadline=None)
def test_whole_lines_stay(tmp_path_factory: pytest.TempPathFactory, lines: list[str], half: bytes) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    with Appender(path) as file:
        for line in lines:
            file.add({"text": line})
    with open(path, "ab") as file:
        file.write(half)
    with Appender(path) as file:
        file.add({"text": "new"})
    assert [line["text"] for line in read_lines(path)] == [*lines, "new"]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Appender(tmp_path / "a.jsonl") as file:
        file.add({"a": 1})
        monkeypatch.setattr(file, "_file", ShortWrites(file._file))
        with pytest.raises(OSError, match="No space left"):
            file.add({"a": 2})
    assert list(read_lines(tmp_path / "a.jsonl")) == [{"a": 1}]


class ShortWrites:
    """A file that takes half of what is written."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data[: len(data) // 2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("line", ['{"key": ', "[]", '{"key": "x"}', '{"key": "a/b", "tokens": 1, "cost": null}'])
def test_a_spoilt_journal_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    good = {"key": "0/a", "tokens": 1, "cost": None}
    (tmp_path / CALLS).write_text(json.dumps(good) + "\n" + line + "\n" + json.dumps(good) + "\n")
    with pytest.raises(UserError, match=r"calls.jsonl, line 2: "):
        Calls(tmp_path, Budget(BudgetSettings(), []))


@pytest.mark.parametrize("fault", ["empty", "cut", "chat_tokens", "malformed", "no_choices"])
def test_an_answer_of_no_use_is_asked_for_with_another_seed(tmp_path: Path, fault: str) -> None:
    with ChatServer() as server:
        server.fail([fault, fault])
        (asked,) = ask_all(tmp_path, provider(server))
        assert asked.value.startswith("Answer ")
        assert len({body["seed"] for body in server.bodies}) == 3
        entries = list(read_lines(tmp_path / CALLS))
        assert [entry["key"] for entry in entries] == ["0/answer-1", "0/answer-1#2", "0/answer-1#3"]
        # Unless it says so, a provider may have charged the most: 64 tokens and the prompt's bytes.
        assert all(entry["tokens"] > 64 for entry in entries if entry["prompt_tokens"] is None)


def test_answers_of_no_use_come_to_an_end_and_a_later_start_tries_anew(tmp_path: Path) -> None:
    with ChatServer(rates={"cut": 1.0}) as server:
        for start in (1, 2):
            (error,) = ask_all(tmp_path, provider(server))
            assert str(error) == "answer-1: the answer was cut at max_tokens, 3 times"
            assert len(server.bodies) == start * MAX_ATTEMPTS
        server.rates = {}
        (asked,) = ask_all(tmp_path, provider(server))
        assert asked.value.startswith("Answer ")


def test_what_an_answer_must_be_is_up_to_who_asks(tmp_path: Path) -> None:
    replies = iter(["seven", "8", "9"])

    def number(text: str) -> int:
        if not text.isdigit():
            raise Unusable("no number")
        return int(text)

    with ChatServer(reply=lambda body: next(replies)) as server:
        (asked,) = ask_all(tmp_path, provider(server), accept=number)
        assert asked.value == 8


@pytest.mark.parametrize(
    "text",
    ["a <|im_end|>", "<|endoftext|>", "[INST] b", "x</s>", "<start_of_turn>", "<｜end▁of▁sentence｜>", "<<SYS>>"],
)
def test_tokens_of_chat_formats_are_seen(tmp_path: Path, text: str) -> None:
    replies = iter([text, "fine: a <b> c, x | y, <s1>"])
    with ChatServer(reply=lambda body: next(replies)) as server:
        (asked,) = ask_all(tmp_path, provider(server))
    assert asked.value.startswith("fine")


# ---------------------------------------------------------------------------------------------------------
# Budgets and limits
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(max_total_tokens=st.integers(1, 3000), concurrency=st.integers(1, 16))
def test_a_budget_of_tokens_is_used_and_never_overshot(
    tmp_path_factory: pytest.TempPathFactory, max_total_tokens: int, concurrency: int
) -> None:
    folder = tmp_path_factory.mktemp("budget")
    budget = BudgetSettings(max_total_tokens=max_total_tokens)
    with ChatServer() as server:
        # Two starts: the second one counts what the first one spent.
        for _ in range(2):
            answers = ask_all(folder, provider(server, concurrency=concurrency), 60, budget=budget)
    spent = sum(entry["tokens"] for entry in read_lines(folder / CALLS))
    assert spent == 21 * len(server.bodies) <= max_total_tokens
    used_up = [answer for answer in answers if isinstance(answer, BudgetUsedUp)]
    # The most that a call may use is 64 + 64 + 29 + 2 x 16 tokens.
    assert len(server.bodies) == 60 if not used_up else spent + 189 > max_total_tokens


def test_a_budget_of_dollars_needs_prices_and_holds(tmp_path: Path) -> None:
    budget = BudgetSettings(max_cost=0.001)
    with ChatServer() as server:
        with pytest.raises(UserError, match="max_cost needs prices"):
            ask_all(tmp_path, provider(server), budget=budget)
        answers = ask_all(tmp_path, provider(server, prompt_price=1.0, completion_price=2.0), 60, budget=budget)
    entries = list(read_lines(tmp_path / CALLS))
    assert {entry["cost"] for entry in entries} == {7 / 1e6 + 14 * 2 / 1e6}
    assert sum(entry["cost"] for entry in entries) <= 0.001
    assert len(entries) > 15
    (said,) = {str(answer) for answer in answers if isinstance(answer, BudgetUsedUp)}
    assert said.startswith("max_cost: $0.0")


@pytest.mark.parametrize("key", ["max_cost", "max_total_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_budget_of_nothing_is_refused(key: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{key} is {value}: nothing can be asked"):
        BudgetSettings(**{key: value})


def test_a_rate_spreads_calls_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now, moments = 1000.0, []

    async def wait(waiting: Any, delay: float) -> None:
        nonlocal now
        waiting.close()
        now += delay
        raise TimeoutError

    monkeypatch.setattr("genesis_hf.synthesis.budget.time.monotonic", lambda: now)
    monkeypatch.setattr("genesis_hf.synthesis.budget.asyncio.wait_for", wait)

    async def run() -> None:
        rate = Rate(120)
        for _ in range(4):
            await rate.take(1, asyncio.Event())
            moments.append(now - 1000)
        rate.give_back(0.5)
        await rate.take(1, asyncio.Event())
        moments.append(now - 1000)

    asyncio.run(run())
    assert moments == pytest.approx([0, 0.5, 1.0, 1.5, 1.75])


def test_calls_at_once_are_limited(tmp_path: Path) -> None:
    with ChatServer(latency=0.01) as server:
        ask_all(tmp_path, provider(server, concurrency=3), 30)
        assert 1 < server.most_in_air <= 3


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path),
        pytest.raises(UserError, match="another process is writing there"),
        sole_writer(tmp_path),
    ):
        pass
    with sole_writer(tmp_path):
        pass


def test_other_settings_are_refused_once_something_is_paid(tmp_path: Path) -> None:
    check_made_from(tmp_path, {"seed": 1, "provider": {"model": "a"}})
    check_made_from(tmp_path, {"seed": 2, "provider": {"model": "b"}})
    (tmp_path / CALLS).write_text("{}\n")
    check_made_from(tmp_path, {"seed": 2, "provider": {"model": "b"}})
    with pytest.raises(UserError, match="holds records made with another seed, model;"):
        check_made_from(tmp_path, {"seed": 1, "provider": {"model": "a"}})
