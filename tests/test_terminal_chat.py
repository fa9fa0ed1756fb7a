"""scripts/chat.py: a conversation in the terminal."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_script
from small_playground import make_models

from genesis_hf.errors import UserError
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
        return capsys.readouterr().out, terminal

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
    for wrong in ("other.json", "half.json", "absent.json"):
        printed, unchanged = talk("hello", f"/load {tmp_path / wrong}")
        assert wrong in printed
        assert contents(unchanged) == ["hello"]


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
