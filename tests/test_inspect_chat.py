"""scripts/inspect_chat.py: each token of a conversation, and whether it is trained."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import byte_tokenizer
from tiny_chat import echo_rows, hedged_pairs, make_tokenizer, turns, write_rows
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import encode_conversation, encode_conversations, prepare_tokenizer
from genesis_hf.chat_display import as_jsonl
from genesis_hf.chat_inspection import InspectionSettings, inspect_messages
from genesis_hf.errors import report_user_errors
from genesis_hf.tokenizer import load_tokenizer

TALK = turns(
    "Where is 東京 👩\u200d👩\u200d👧?\n\n  two", "<think>\nhm\n</think>\n\nIn 日本 🌊.\n", system="walks <|im_end|>"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def byte_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(base: Path, byte_base: Path) -> list[PreTrainedTokenizerFast]:
    loaded = [load_tokenizer(folder) for folder in (base, byte_base)]
    for tokenizer in loaded:
        prepare_tokenizer(tokenizer)
    return loaded


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """The script in this process: its exit code, stdout and stderr."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which scripts replace
    main = runpy.run_path(str(ROOT / "scripts/inspect_chat.py"), run_name="inspect_chat")["main"]

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect_chat.py", *map(str, arguments)])
        code = 0
        try:
            with report_user_errors():
                main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def write_messages(path: Path, messages: Any) -> Path:
    path.write_text(json.dumps(messages))
    return path


def recipe(path: Path, base: Path, **values: Any) -> Path:
    """An SFT, DPO or KTO recipe as a user has it: with keys of TRL."""
    common = {
        "output_dir": str(path.parent / "run"),
        "model": str(path.parent / "nowhere"),
        "cache_dir": str(path.parent / "cache"),
        "max_length": 40,
        "learning_rate": 1e-4,
        "packing": True,
    }
    path.write_text(yaml.safe_dump({**common, **values}))
    return path


def test_one_object_a_token_and_nothing_else(
    base: Path, tokenizers: list[PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    file = write_messages(tmp_path / "talk.json", TALK)
    done = run_script("scripts/inspect_chat.py", "--messages", file, "--tokenizer", base, "--format", "jsonl")
    tokens = [json.loads(line) for line in done.stdout.splitlines()]
    tokenizer = tokenizers[0]
    ids, labels, _ = encode_conversation(tokenizer, TALK)
    assert all(list(token) == ["id", "text", "trained"] for token in tokens)
    assert [token["id"] for token in tokens] == ids
    assert [token["trained"] for token in tokens] == [label != -100 for label in labels]
    assert "".join(token["text"] for token in tokens) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_a_character_of_several_tokens_belongs_to_the_last(tokenizers: list[PreTrainedTokenizerFast]) -> None:
    inspected = inspect_messages(tokenizers[1], turns("a", "é 🌊"), InspectionSettings(), "talk")
    assert [t.text for t in inspected.tokens if t.trained] == ["", "é", " ", "", "", "", "🌊", "<|im_end|>"]


def test_preferences_train_the_last_answer_alone(tokenizers: list[PreTrainedTokenizerFast]) -> None:
    inspected = inspect_messages(tokenizers[0], turns("a", "b", "c", "d"), InspectionSettings("dpo"), "talk")
    assert [t.text for t in inspected.tokens if t.trained] == ["d", "<|im_end|>"]
    assert inspected.tokens[-1].trained


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
contents = st.lists(words | st.sampled_from(["<think>", "<|im_end|>", "</s>", "\n", "▁"]), min_size=1).map("".join)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(contents, min_size=2, max_size=4), st.booleans())
def test_the_texts_are_the_rendering_whatever_is_said(
    tokenizers: list[PreTrainedTokenizerFast], talk: list[str], special: bool
) -> None:
    for tokenizer in tokenizers:
        messages = turns(*talk)
        inspected = inspect_messages(tokenizer, messages, InspectionSettings(train_special_tokens=special), "talk")
        (encoded,) = encode_conversations(tokenizer, [messages], train_special_tokens=special)
        assert "".join(t.text for t in inspected.tokens) == tokenizer.apply_chat_template(messages, tokenize=False)
        assert [t.id for t in inspected.tokens] == encoded.input_ids
        assert [t.trained for t in inspected.tokens] == [label != -100 for label in encoded.labels]
        assert len(as_jsonl(inspected).split("\n")) == len(inspected.tokens) + 1


def test_colours_for_a_terminal_and_marks_otherwise(
    inspect: Callable, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_messages(tmp_path / "talk.json", turns("hello", "a\tb\x1b[0m"))
    _, marked, _ = inspect("--messages", file, "--tokenizer", base)
    assert "\x1b" not in marked
    assert "[masked] <|im_start|>│user│⏎\n│hello│<|im_end|>│⏎\n│<|im_start|>│" in marked
    assert re.search(r"\n\[trained\] a│.*│<\|im_end\|>\n\[masked\] ⏎\n", marked)
    count = len(re.findall("│", marked.split("\n\n", 1)[1])) + 3  # a change of mark parts tokens as well
    assert f"{count} tokens, " in marked

    monkeypatch.setenv("FORCE_COLOR", "1")
    _, coloured, _ = inspect("--messages", file, "--tokenizer", base)
    runs = re.findall(r"(\x1b\[[\d;]*48;5;\d+m)(?:\x1b\[1m)?([^\x1b]*)", coloured.split("\n\n", 1)[1])
    green = "".join(text for shade, text in runs if "5;114" in shade or "5;78" in shade)
    assert green == "a\\tb\\x1b[0m<|im_end|>"
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).endswith(re.split(r"(?=\d+ tokens, )", marked)[-1])
    monkeypatch.setenv("NO_COLOR", "1")
    assert inspect("--messages", file, "--tokenizer", base)[1] == marked


def test_tools_and_the_format_of_a_chat_tokenizer(inspect: Callable, base: Path, tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": {"at": 1}}}]}
    file = write_messages(tmp_path / "talk.json", {"messages": [*turns("when?"), call], "tools": [{"name": "tide"}]})
    tokenizer = load_tokenizer(base)
    prepare_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path / "chat/final")  # where a run has it
    code, out, _ = inspect("--messages", file, "--model", tmp_path / "chat", "--format", "jsonl")
    text = "".join(json.loads(line)["text"] for line in out.splitlines())
    assert code == 0
    assert '<tools>\n{"name": "tide"}\n</tools>' in text
    assert '<tool_call>\n{"name": "tide", "arguments": {"at": 1}}\n</tool_call><|im_end|>' in text
    code, _, error = inspect("--messages", file, "--model", tmp_path / "chat", "--chat_format", "alpaca")
    assert (code, "chat format chatml already" in error) == (2, True)
    plain = write_messages(tmp_path / "plain.json", turns("a", "b"))
    _, out, _ = inspect("--messages", plain, "--tokenizer", base, "--chat_format", "alpaca", "--format", "jsonl")
    assert "".join(json.loads(line)["text"] for line in out.splitlines()).endswith("### Response:\nb</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "foreign")
    code, out, error = inspect("--messages", plain, "--tokenizer", tmp_path / "foreign", "--format", "jsonl")
    assert (
        "".join(json.loads(line)["text"] for line in out.splitlines() if json.loads(line)["trained"]) == "b<|im_end|>"
    )
    assert (code, "chatml takes its place" in error) == (0, True)


def test_a_row_is_the_example_that_is_trained(inspect: Callable, base: Path, tmp_path: Path) -> None:
    rows = echo_rows(12, seed=1)
    bad = {"messages": turns("a", " ")}
    first = write_rows(tmp_path / "first.jsonl", [*rows[:6], bad])
    second = write_rows(tmp_path / "second.jsonl", rows[6:])
    mixture = [{"name": "one", "paths": [first], "num_examples": 3}, {"name": "two", "paths": [second]}]
    path = recipe(tmp_path / "sft.yaml", base, mixture=mixture, tokenizer=str(base), max_bad_share=0.5)
    texts = set()
    for number in range(9):
        code, out, _ = inspect("--config", path, "--row", number)
        name, file, line = re.search(r"example (?:\d+) of 9, (\w+): (\S+), line (\d+)", out).groups()
        assert code == 0
        assert (name, file) == (("one", first) if number < 3 else ("two", second))
        row = json.loads(Path(file).read_text().splitlines()[int(line) - 1])
        _, out, _ = inspect("--config", path, "--row", number, "--format", "jsonl")
        tokens = [json.loads(text) for text in out.splitlines()]
        assert "".join(t["text"] for t in tokens if t["trained"]) == row["messages"][1]["content"] + "<|im_end|>"
        texts.add("".join(t["text"] for t in tokens))
    assert len(texts) == 9
    code, _, error = inspect("--config", path, "--row", 9)
    assert (code, error.count("\n")) == (2, 1)
    assert "the mixture has 9 examples, 0 to 8" in error


def test_a_pair_is_shown_twice_and_a_label_named(inspect: Callable, base: Path, tmp_path: Path) -> None:
    pairs = hedged_pairs(4, seed=1)
    source = {"name": "pairs", "paths": [write_rows(tmp_path / "pairs.jsonl", pairs)]}
    path = recipe(tmp_path / "preferences.yaml", base, mixture=[source], beta=0.1)
    _, out, _ = inspect("--config", path, "--row", 1, "--tokenizer", base)
    line = int(re.search(r"line (\d+), chosen", out)[1])
    assert out.count("━━━ example 1 of 4") == 2
    for answer in ("chosen", "rejected"):
        arguments = ("--config", path, "--row", 1, "--tokenizer", base, "--format", "jsonl", "--answer", answer)
        tokens = [json.loads(text) for text in inspect(*arguments)[1].splitlines()]
        text = pairs[line - 1]["rejected"] if answer == "rejected" else pairs[line - 1]["chosen"][0]["content"]
        assert "".join(t["text"] for t in tokens if t["trained"]) == text + "<|im_end|>"
        assert tokens[-1]["trained"]  # the line break after it is not there
    source = {"name": "labelled", "paths": [write_rows(tmp_path / "labels.jsonl", [
        {"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False},
    ])]}  # fmt: skip
    path = recipe(tmp_path / "kto.yaml", base, mixture=[source])
    shown = [inspect("--config", path, "--row", row, "--tokenizer", base)[1] for row in (0, 1)]
    assert sorted(re.search(r"line (\d), (\w+)", out).groups() for out in shown) == [
        ("1", "desirable"),
        ("2", "undesirable"),
    ]


def test_a_long_conversation_is_shown_as_training_cuts_it(inspect: Callable, base: Path, tmp_path: Path) -> None:
    messages = turns("hello", "river", "and " * 40, "stone")
    file = write_messages(tmp_path / "talk.json", messages)
    source = {"name": "talk", "paths": [write_rows(tmp_path / "talk.jsonl", [{"messages": messages}])]}
    path = recipe(tmp_path / "sft.yaml", base, mixture=[source], tokenizer=str(base))
    for arguments in (("--messages", file), ("--row", 0)):
        code, out, error = inspect("--config", path, *arguments, "--format", "jsonl")
        assert code == 0
        assert re.search(r"longer than max_length 40: training cuts the last \d+ of \d+ tokens", error)
        assert "".join(json.loads(line)["text"] for line in out.splitlines()).endswith("assistant\nriver<|im_end|>")
    _, out, _ = inspect("--config", path, "--messages", file, "--format", "jsonl", "--overlong", "tokens")
    assert len(out.splitlines()) == 40
    code, _, error = inspect("--config", path, "--messages", file, "--overlong", "drop")
    assert (code, "training drops it" in error) == (2, True)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("a text", "a list of objects with role and content is needed"),
        ([], "a list of objects"),
        (["a"], "turn 1 is no object with role and content"),
        ([{"role": "user"}], "turn 1 is no object"),
        ([{"role": "user", "content": 3}], "the content of turn 1 is not text"),
        ([*turns("a"), {"role": "robot", "content": "b"}], "turn 2: unknown role 'robot'"),
        ([*turns("a"), *turns("b")], "turn 2: two user turns in a row"),
        (turns("a", " \n", system="s"), "turn 3: empty assistant turn"),
        ([{"role": "system", "content": "alone"}], "turn 1: no turns"),
        (turns("\ud800", "b"), "turn 1: a lone surrogate"),
        (
            {"messages": [*turns("a"), {"role": "assistant", "tool_calls": [{}]}]},
            "tools or tool_calls of another shape",
        ),
    ],
)
def test_a_conversation_that_is_none_ends_with_one_line(
    inspect: Callable, base: Path, tmp_path: Path, messages: Any, complaint: str
) -> None:
    file = write_messages(tmp_path / "talk.json", messages)
    code, out, error = inspect("--messages", file, "--tokenizer", base)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"messages {file}: {complaint}" in error or f"messages {file}: the {complaint.removeprefix('the ')}" in error


def test_other_mistakes_end_with_one_line(inspect: Callable, base: Path, tmp_path: Path) -> None:
    file = write_messages(tmp_path / "talk.json", turns("a", "b"))
    broken = tmp_path / "broken.json"
    broken.write_text("[{")
    sft = recipe(tmp_path / "sft.yaml", base, mixture=[{"name": "a", "paths": ["x"]}])
    for arguments, complaint in (
        (("--messages", tmp_path / "none.json", "--tokenizer", base), "no such file"),
        (("--messages", broken, "--tokenizer", base), "not valid JSON"),
        (("--messages", file), "give --config, --model or --tokenizer"),
        (("--messages", file, "--row", 1, "--tokenizer", base), "one of them"),
        (("--row", 1, "--tokenizer", base), "--row needs --config"),
        (("--row", -1, "--config", sft), "row must be at least 0"),
        (("--rwo", 1, "--config", sft), "unknown key `rwo`; did you mean `row`?"),
        (("--messages", file, "--config", sft), "nowhere: no such folder"),
        (("--messages", file, "--config", sft, "--format", "html"), "must be one of text, jsonl"),
    ):
        code, out, error = inspect(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1), arguments
        assert complaint in error
