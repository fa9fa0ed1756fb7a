"""Mixtures: what is drawn, dropped, cut and kept; the cache; packed rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import hedged_pairs, make_tokenizer, turns, write_rows
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import encode_conversation, encode_prompt, prepare_tokenizer
from genesis_hf.config import ConversationSource, PreferenceSource
from genesis_hf.conversations import prepared
from genesis_hf.conversations.mixture import (
    prepare_conversations,
    prepare_labelled,
    prepare_preferences,
    source_of,
)
from genesis_hf.conversations.packing import PackedConversations, collate_packed
from genesis_hf.conversations.report import mixture_table
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    prepare_tokenizer(tokenizer, "chatml")
    return tokenizer


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "PIECE", 8)
    monkeypatch.setattr(prepared, "BATCH", 3)


def recipe(folder: Path, **settings: Any) -> SimpleNamespace:
    defaults = {"overlong": "turn", "drop_duplicates": True, "max_bad_share": 1.0, "cache_dir": str(folder / "cache")}
    return SimpleNamespace(**{**defaults, **settings})


def source(folder: Path, name: str, rows: list[dict] | None = None, **settings: Any) -> ConversationSource:
    path = folder / f"{name}.jsonl"
    if rows is not None:
        write_rows(path, rows)
    return ConversationSource(name=name, paths=[str(path)], **settings)


def numbered(count: int, name: str = "row") -> list[dict]:
    return [{"messages": turns(f"{name} {i}", f"answer {i}")} for i in range(count)]


def ids(dataset: Dataset) -> list[list[int]]:
    return [row["input_ids"] for row in dataset]


# ---------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------


def test_a_mixture_draws_what_it_says(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source(tmp_path, "a", numbered(40, "a"))
    source(tmp_path, "b", numbered(30, "b"))

    def drawn(*sources: ConversationSource, seed: int = 0) -> tuple[list[int], list[list[int]]]:
        dataset, reports = prepare_conversations(tokenizer, sources, 64, recipe(tmp_path), seed=seed)
        assert len({tuple(row) for row in ids(dataset)}) == len(dataset) == sum(r.examples for r in reports)
        return [report.examples for report in reports], ids(dataset)

    a, b = source(tmp_path, "a"), source(tmp_path, "b")
    assert drawn(a, b)[0] == [40, 30]
    assert drawn(a, source(tmp_path, "b", num_examples=7))[0] == [40, 7]
    assert drawn(source(tmp_path, "a", weight=3), source(tmp_path, "b", weight=1))[0] == [40, 13]
    assert drawn(source(tmp_path, "a", weight=1), source(tmp_path, "b", weight=1))[0] == [30, 30]
    nine = source(tmp_path, "a", num_examples=9)
    assert drawn(nine, seed=1) == drawn(nine, seed=1) != drawn(nine, seed=2)
    assert drawn(source(tmp_path, "a", num_examples=20), seed=1)[1][:9] == drawn(nine, seed=1)[1]
    with pytest.raises(UserError, match="num_examples is 41, but of its 40 rows only 40 are usable"):
        drawn(source(tmp_path, "a", num_examples=41))
    with pytest.raises(UserError, match="a name twice"):
        drawn(a, a)


def test_examples_asked_for_are_usable_ones(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [*numbered(20), *({"messages": turns("a")} for _ in range(20))]
    _, (report,) = prepare_conversations(
        tokenizer, [source(tmp_path, "half", rows, num_examples=12)], 64, recipe(tmp_path)
    )
    assert report.examples == 12
    assert report.rows == 12 + sum(report.dropped.values()) < 40


def test_what_is_dropped_is_counted_with_its_first_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [
        {"messages": turns("hello", "river")},
        {"messages": turns("a", " ")},
        {"messages": turns("a " * 99, "b")},
        {"messages": turns("hello", "river")},
        {"x": 1},
    ]
    mixed = source(tmp_path, "mixed", rows)
    dataset, (report,) = prepare_conversations(tokenizer, [mixed], 64, recipe(tmp_path))
    expected = encode_conversation(tokenizer, rows[0]["messages"])
    assert dataset[0]["input_ids"] == expected.input_ids
    assert dataset[0]["labels"] == expected.labels
    assert (report.rows, report.examples, report.tokens) == (5, 1, len(expected.input_ids))
    assert report.trained_tokens == len([label for label in expected.labels if label != IGNORE_INDEX])
    assert report.dropped == {
        "empty assistant turn": 1, "too long": 1, "duplicate": 1, "fits no known shape": 1
    }  # fmt: skip
    assert report.faults["fits no known shape"].endswith("mixed.jsonl, line 5")
    assert "1 too long" in mixture_table([report])
    assert dataset[0]["row"] in (0, 3)
    kept, (report,) = prepare_conversations(tokenizer, [mixed], 64, recipe(tmp_path, drop_duplicates=False))
    assert len(kept) == 2
    assert "duplicate" not in report.dropped


def test_a_conversation_of_an_earlier_source_is_a_duplicate(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", numbered(10)), source(tmp_path, "b", numbered(15))]
    _, reports = prepare_conversations(tokenizer, sources, 64, recipe(tmp_path))
    assert [report.examples for report in reports] == [10, 5]
    assert reports[1].dropped == {"duplicate": 10}
    assert [source_of(sources, reports, number).name for number in (0, 9, 10, 14)] == ["a", "a", "b", "b"]


def test_too_many_malformed_rows_are_refused_with_their_kinds(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    bad = source(tmp_path, "bad", [*numbered(18), {"messages": turns("a", "")}, {"x": 1}])
    prepare_conversations(tokenizer, [bad], 64, recipe(tmp_path, max_bad_share=0.1))
    with pytest.raises(UserError, match="2 of 20 rows are malformed") as refusal:
        prepare_conversations(tokenizer, [bad], 64, recipe(tmp_path, max_bad_share=0.09))
    assert "1 empty assistant turn (first: " in str(refusal.value)
    assert "line 20" in str(refusal.value)
    long = source(tmp_path, "long", [*numbered(2), *({"messages": turns(f"{i} " * 99, "b")} for i in range(9))])
    prepare_conversations(tokenizer, [long], 64, recipe(tmp_path, max_bad_share=0))  # long ones are not malformed
    with pytest.raises(UserError, match=r"none of its 1 rows is usable .*x\.jsonl, line 1: fits no known shape"):
        prepare_conversations(tokenizer, [source(tmp_path, "x", [{"x": 1}])], 64, recipe(tmp_path))


def test_a_long_conversation_is_cut_after_an_answer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    messages = turns("one", "river", "two", "stone", "three", "walks " * 30)
    whole, half = (encode_conversation(tokenizer, messages[:k]) for k in (6, 4))
    limit = len(half.input_ids) + 9
    long = source(tmp_path, "long", [{"messages": messages}])

    def prepare(overlong: str) -> tuple[dict, Any]:
        dataset, (report,) = prepare_conversations(tokenizer, [long], limit, recipe(tmp_path, overlong=overlong))
        return dataset[0], report

    row, report = prepare("turn")
    assert row["input_ids"] == half.input_ids[: half.ends[-1]]
    assert row["input_ids"][-1] == tokenizer.eos_token_id == row["labels"][-1]
    assert (report.cut, report.cut_tokens) == (1, len(whole.input_ids) - half.ends[-1])
    assert f"1 cut by {report.cut_tokens} tokens" in mixture_table([report])
    row, report = prepare("tokens")
    assert row["input_ids"] == whole.input_ids[:limit]
    with pytest.raises(UserError, match="too long"):
        prepare("drop")


# ---------------------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows encoded, a call each."""
    calls: list[int] = []
    encode = prepared.ENCODERS["conversations"]

    def counted(tokenizer: Any, source: Any, settings: Any, rows: Any) -> Any:
        calls.append(len(rows))
        return encode(tokenizer, source, settings, rows)

    monkeypatch.setitem(prepared.ENCODERS, "conversations", counted)
    return calls


def test_what_is_in_the_cache_is_not_read_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, encoded_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = source(tmp_path, "rows", numbered(20))
    first = ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))[0])
    assert sum(encoded_rows) == 20
    monkeypatch.setattr(prepared, "read_rows", lambda source: pytest.fail("the file was read"))
    assert ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))[0]) == first
    assert sum(encoded_rows) == 20


@pytest.mark.parametrize("change", ["file", "length", "seed", "template", "masks", "format"])
def test_another_recipe_is_another_cache(
    change: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, encoded_rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows, settings = source(tmp_path, "rows", numbered(5)), recipe(tmp_path, train_special_tokens=True)
    prepare_conversations(tokenizer, [rows], 64, settings, seed=1)
    if change == "file":
        write_rows(tmp_path / "rows.jsonl", numbered(6))
    elif change == "template":
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + " ")
    elif change == "masks":
        settings.train_special_tokens = False
    elif change == "format":
        rows.format = "messages"
    prepare_conversations(
        tokenizer, [rows], 63 if change == "length" else 64, settings, seed=2 if change == "seed" else 1
    )
    assert sum(encoded_rows) == (11 if change == "file" else 10)


def test_more_examples_encode_only_what_is_missing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, encoded_rows: list[int]
) -> None:
    source(tmp_path, "rows", numbered(40))
    for asked, encoded in ((6, 8), (8, 8), (17, 24), (3, 24), (40, 40)):
        dataset, _ = prepare_conversations(
            tokenizer, [source(tmp_path, "rows", num_examples=asked)], 64, recipe(tmp_path)
        )
        assert len(dataset) == asked
        assert sum(encoded_rows) == encoded


def test_an_interrupted_preparation_goes_on(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, encoded_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = source(tmp_path, "rows", numbered(30))
    expected = ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path / "whole"))[0])
    encoded_rows.clear()
    write = prepared.write_piece

    def interrupted(folder: Path, number: int, table: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        write(folder, number, table)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write_piece", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))
    assert sum(encoded_rows) == 24
    assert ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))[0]) == expected
    assert sum(encoded_rows) == 24 + 30 - 16


def test_a_damaged_piece_is_encoded_again(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = source(tmp_path, "rows", numbered(20))
    expected = ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))[0])
    (piece,) = (tmp_path / "cache").rglob("piece-00001.arrow")
    for content in (b"", piece.read_bytes()[:-100], piece.read_bytes()[:300]):
        piece.write_bytes(content)
        assert ids(prepare_conversations(tokenizer, [rows], 64, recipe(tmp_path))[0]) == expected


# ---------------------------------------------------------------------------------------------------------
# Preferences
# ---------------------------------------------------------------------------------------------------------


def test_pairs_have_the_tokens_of_sft(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pairs = hedged_pairs(10, seed=0)
    preferences = PreferenceSource(name="pairs", paths=[write_rows(tmp_path / "pairs.jsonl", pairs)])
    dataset, (report,) = prepare_preferences(tokenizer, [preferences], 64, recipe(tmp_path), 0)
    for row in dataset:
        pair = pairs[row["row"]]
        assert row["prompt_ids"] == encode_prompt(tokenizer, pair["prompt"])
        for name, answer in (("chosen", pair["chosen"]), ("rejected", [turns("", pair["rejected"])[1]])):
            whole = encode_conversation(tokenizer, [*pair["prompt"], *answer])
            assert row["prompt_ids"] + row[f"{name}_ids"] == whole.input_ids[: whole.ends[-1]]
            assert row[f"{name}_ids"][-1] == tokenizer.eos_token_id
    assert report.examples == len(dataset) <= 10
    labelled, _ = prepare_labelled(tokenizer, [preferences], 64, recipe(tmp_path), 0)
    assert sorted(set(labelled["label"])) == [False, True]
    assert labelled["label"].count(True) == len(dataset)


# ---------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 50))
def test_every_conversation_is_in_one_row_and_apart(lengths: list[int], max_length: int) -> None:
    tokens = [list(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths)]
    dataset = Dataset.from_dict({"input_ids": tokens, "labels": tokens, "length": lengths, "row": lengths})
    packed = PackedConversations(dataset, max_length)
    batch = collate_packed([packed[i] for i in range(len(packed))], pad_token_id=-1)
    found = []
    columns = (batch[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    for ids, labels, positions in zip(*columns, strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end] == list(range(end - start))
            if ids[start] == -1:
                assert set(ids[start:end]) == {-1}
                assert set(labels[start:end]) == {IGNORE_INDEX}
            else:
                found.append(ids[start:end])
                assert labels[start:end] == [IGNORE_INDEX, *ids[start + 1 : end]]
    assert sorted(found) == tokens
    assert batch["input_ids"].shape[1] <= max_length
    assert len(packed) <= -(-sum(lengths) * 2 // max_length) + 1
