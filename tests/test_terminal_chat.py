"""scripts/chat.py: a conversation in the terminal."""

import builtins
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import run_script
from small_playground import make_models

from genesis_hf.errors import UserError
from genesis_hf.playground import terminal as terminals
from genesis_hf.playground.loading import Speaker, load_named
from genesis_hf.playground.sampling import Sampling
from genesis_hf.playground.terminal import Terminal, say


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def chat(models: Path) -> Speaker:
    return load_named(str(models / "chat"))


@pytest.fixture
def talk(chat: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Type lines to a terminal of its own; what it printed, and the terminal."""

    def talk(*lines: str, speaker: Speaker = chat, **settings: object) -> tuple[str, Terminal]:
        terminal = Terminal(speaker, Sampling(max_new_tokens=6, seed=3), **settings)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        terminal.run()
        return "".join(capsys.readouterr()), terminal

    return talk


def contents(terminal: Terminal) -> list[str]:
    return [turn["content"] for turn in terminal.history if turn["role"] != "assistant"]


def test_a_conversation_goes_on_and_back(talk: Callable) -> None:
    _, terminal = talk("hello", "river", "/undo", "stone", "", "/quit", "unread")
    assert contents(terminal) == ["hello", "stone"]
    assert [turn["role"] for turn in terminal.history] == ["user", "assistant"] * 2
    printed, again = talk("hello", "river", "/undo", "stone", "/retry")
    assert again.history == terminal.history  # the same seed
    assert "(forgotten: river)" in printed
    _, anew = talk("hello", "/system answer there", "river", "/reset", "stone")
    assert contents(anew) == ["answer there", "stone"]


def test_several_lines_are_one_text(talk: Callable) -> None:
    _, terminal = talk("one \\", "two", '"""', "three", "", "four\\", '"""', "five")
    assert contents(terminal) == ["one \ntwo", "three\n\nfour\\", "five"]


def test_a_conversation_is_saved_and_loaded(talk: Callable, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "talk.json"
    _, first = talk("/system there", "hello", f"/save {file}")
    assert json.loads(file.read_text()) == first.history
    _, second = talk(f"/load {file}", "river")
    assert contents(second) == ["there", "hello", "river"]
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "half.json").write_text('[{"role": "us')
    (tmp_path / "surrogate.json").write_text('[{"role": "user", "content": "\\ud800"}]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe.json")
    for wrong in ("other.json", "half.json", "surrogate.json", "deep.json", "pipe.json", "absent.json"):
        printed, unchanged = talk("hello", f"/load {tmp_path / wrong}")
        assert wrong in printed
        assert contents(unchanged) == ["hello"]


def test_only_a_saved_conversation_is_replaced(talk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, terminal = talk("hello", "/save ~/talk.json", "river", "/save ~/talk.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == terminal.history
    assert talk("/load ~/talk.json")[1].history == terminal.history
    (tmp_path / "link.json").symlink_to(tmp_path / "talk.json")
    _, terminal = talk("stone", "/save ~/link.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == terminal.history
    (tmp_path / "notes.json").write_text('{"a": 1}')
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for other, complaint in (("notes.json", "no saved"), ("device", "no saved"), ("", "no saved"), ("loop", "loop")):
        assert complaint in talk("hello", f"/save ~/{other}")[0]
    assert (tmp_path / "notes.json").read_text() == '{"a": 1}'
    assert (tmp_path / "device").is_fifo()


def test_settings_are_shown_and_changed(talk: Callable) -> None:
    printed, terminal = talk("/temperature 0", "/top_p 0.5", "/top_k 7", "/max_new_tokens 3", "/seed none", "/settings")
    assert terminal.sampling == Sampling(temperature=0, top_p=0.5, top_k=7, max_new_tokens=3)
    assert "another one each time" in printed


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/temprature 1", "did you mean /temperature?"),
        ("/xyzzy", "/help lists them"),
        ("/temperature hot", "takes a number"),
        ("/temperature 50", "must be from 0 to 2"),
        ("/seed 1.5", "seed must be a whole number, not 1.5"),
        ("/seed 5e9", "from 0 to 4294967295"),
        ("/top_k 2.5", "top_k must be a whole number, not 2.5"),
        ("\udcff", "not UTF-8"),
        ("/model \udcff", "not UTF-8"),
        ("/undo", "nothing was asked"),
        ("/retry", "nothing was asked"),
        ("/save", "takes a file"),
        ("/save /proc/no/such", "/proc/no/such"),
        ("/model /nowhere", "no such folder"),
        ("/model", "takes a folder"),
    ],
)
def test_a_slip_is_said_and_nothing_is_lost(talk: Callable, line: str, complaint: str) -> None:
    printed, terminal = talk(line, "hello")
    assert complaint in printed
    assert contents(terminal) == ["hello"]


def test_a_base_model_goes_on_with_texts(talk: Callable, models: Path) -> None:
    base = load_named(str(models / "trunk"))
    printed, terminal = talk("hello", "/retry", "/chat", "stone " * 80, f"/model {models / 'chat'}", "hi", speaker=base)
    assert "no chat format" in printed
    assert "room for" in printed
    assert contents(terminal) == ["hi"]


def test_a_format_can_be_named(talk: Callable, models: Path) -> None:
    _, alpaca = talk("hello", speaker=load_named(str(models / "chat")), chat_format="alpaca")
    assert contents(alpaca) == ["hello"]
    assert "### Instruction" in alpaca.speaker.tokenizer.chat_template
    _, raw = talk("hello", chat_format="raw")
    assert raw.history == []


def test_ctrl_c_stops_an_answer_and_keeps_what_is_there(capsys: pytest.CaptureFixture) -> None:
    def pieces():
        yield "river "
        raise KeyboardInterrupt

    assert say(pieces()) == "river "
    assert capsys.readouterr().out == "river  …\n"


@pytest.fixture
def type_in(chat: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """As `talk` at a terminal, where a key may raise what Ctrl-C and Ctrl-D do."""

    def type_in(*lines: str | type) -> tuple[str, Terminal]:
        given = iter([*lines, EOFError])

        def read(sign: str) -> str:
            line = next(given)
            if not isinstance(line, str):
                raise line
            return line

        terminal = Terminal(chat, Sampling(max_new_tokens=6, seed=3))
        monkeypatch.setattr(builtins, "input", read)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        assert terminal.run()
        return capsys.readouterr().out, terminal

    return type_in


def test_ctrl_c_drops_what_is_typed_and_ctrl_d_ends_the_line(type_in: Callable) -> None:
    printed, terminal = type_in("hello", '"""', "one", KeyboardInterrupt, "two", "half \\", KeyboardInterrupt, "three")
    assert contents(terminal) == ["hello", "two", "three"]
    assert printed.endswith("\n\n")


def test_ctrl_c_stops_a_command(type_in: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> Speaker:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminals, "load_named", interrupted)
    printed, terminal = type_in("hello", "/model other", "river")
    assert "(stopped)" in printed
    assert contents(terminal) == ["hello", "river"]


def test_nothing_reaches_the_terminal_that_it_obeys(
    talk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "a\x1b]0;b\x07\r\x9b1m\tc\nd é 👩\u200d🚀"
    monkeypatch.setattr(terminals, "stream_answer", lambda *_: iter(written))
    printed, terminal = talk("hello", "/undo", f"/load {tmp_path}/\x1b[2J", "/system \x1b[31m", "/settings", "river")
    assert terminal.history[-1]["content"] == written
    assert r"a\x1b]0;b\x07\r\x9b1m" + "\tc\nd é 👩\u200d🚀\n" in printed
    assert not set(printed) & {"\x1b", "\x07", "\r", "\x9b"}


def test_a_model_that_diverged_leaves_the_conversation(talk: Callable, models: Path) -> None:
    diverged = load_named(str(models / "chat"))
    with torch.no_grad():
        diverged.model.model.norm.weight.fill_(torch.nan)
    printed, terminal = talk("stone", "/retry", f"/model {models / 'chat'}", "river", speaker=diverged)
    assert printed.count("diverged") == 1
    assert contents(terminal) == ["river"]


def test_questions_piped_in(chat: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for text, answered, refusals in (
        (b"hello\n\xff\xfe\nriver\n", True, 1),
        (b"\xff\n/seed 1.5\n", False, 2),
        (b"/settings\n", True, 0),
        (b"", True, 0),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        assert Terminal(chat, Sampling(max_new_tokens=6)).run() is answered
        assert capsys.readouterr().err.count("\n") == refusals


def test_the_script_refuses_in_one_line(tmp_path: Path, models: Path) -> None:
    for arguments, complaint in (
        ([tmp_path / "absent"], "no such folder"),
        ([tmp_path], "neither a complete checkpoint"),
        ([models / "broken"], "can't be loaded"),
        ([models / "chat", "--temperature", "9"], "temperature must be from 0 to 2"),
    ):
        ended = run_script("scripts/chat.py", *arguments, check=False)
        assert ended.returncode == 2
        assert complaint in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_model_of_no_name_is_refused() -> None:
    with pytest.raises(UserError, match="not the form of a Hub id"):
        load_named("nothing")
