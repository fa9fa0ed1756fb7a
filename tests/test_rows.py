"""Rows of files: the same in every format, in any order; what can't be read is said where it stands."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import turns, write_rows

from genesis_hf.config import ConversationSource
from genesis_hf.conversations import rows as rows_module
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.rows import read_rows, rows_fingerprint
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError

ROWS = [{"messages": turns(f"question {i}", f"Antwort ä {i}")} for i in range(7)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def source(path: Path, **settings: Any) -> ConversationSource:
    return ConversationSource(name="x", paths=[str(path)], **settings)


def write_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    opener = pa.ipc.new_file if "file" in path.name else pa.ipc.new_stream
    with opener(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


WRITERS = {
    "a.jsonl": lambda path: path.write_text(LINES.replace("\n", "\n\n  \n")),
    "no_last_newline.jsonl": lambda path: path.write_text(LINES.rstrip()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.zst": lambda path: pa.output_stream(str(path), compression="zstd").write(LINES.encode()),
    "byte_order_mark.jsonl": lambda path: path.write_text("\ufeff" + LINES),
    "list.json": lambda path: path.write_text("\ufeff\n" + json.dumps(ROWS, indent=1)),
    "list.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "lines.json": lambda path: path.write_text(LINES),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3),
    "stream.arrow": write_arrow,
    "file.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_the_same_in_every_format_and_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK", 2)
    WRITERS[name](tmp_path / name)
    rows = read_rows(source(tmp_path / name))
    assert [row for _, row in rows] == ROWS
    for number in (6, 0, 3, 4, 5, 6, 1, 0, -1):
        where, row = rows[number]
        assert row == ROWS[number]
        assert where == rows.where(number)
        assert where.startswith(str(tmp_path / name))
    assert [row for _, row in rows[2:5]] == ROWS[2:5]
    with pytest.raises(IndexError):
        rows[7]


def test_several_files_are_one_after_the_other(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.jsonl", ROWS[3:])
    write_rows(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "a2.jsonl").write_text("\n")
    rows = read_rows(source(tmp_path / "*.jsonl"))
    assert [row for _, row in rows] == ROWS
    assert rows[3][0] == f"{tmp_path}/b.jsonl, line 1"


def test_a_row_that_is_none_is_a_fault_and_the_others_can_be_read(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": ', b"[1]", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 2}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read_rows(source(tmp_path / "a.jsonl"))
    assert (rows[0][1], rows[5][1]) == ({"a": 1}, {"a": 2})
    kinds = ["not valid JSON", "a row that is not a JSON object", "not valid UTF-8", "not valid JSON"]
    for number, kind in enumerate(kinds, 1):
        with pytest.raises(Fault, match=kind) as fault:
            rows[number]
        assert fault.value.malformed
        assert rows.where(number) == f"{tmp_path}/a.jsonl, line {number + 1}"


def test_a_surrogate_in_an_escape_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        r'{"prompt": "a", "completion": "\ud83d\ude42"}' + "\n" + r'{"prompt": "a", "completion": "\ud83d"}'
    )
    rows = read_rows(source(tmp_path / "a.jsonl"))
    assert to_messages(rows[0][1]) == turns("a", "🙂")
    with pytest.raises(Fault, match="a lone surrogate"):
        to_messages(rows[1][1])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.jsonl", b"\n", "not one row in"),
        ("a.csv", b"a,b\n", "none of .jsonl"),
        ("cut.jsonl.gz", gzip.compress(LINES.encode())[:-20], "cannot be read"),
        ("bad.parquet", b"PAR1", "cannot be read"),
        ("bad.arrow", b"x" * 99, "cannot be read"),
        ("cut.json", b'[{"a": 1}, ', "not valid JSON"),
        ("object.json", b'{\n "a": 1\n}', "neither a JSON list of rows nor a row in each line"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        read_rows(source(tmp_path / name))
    assert name in str(error.value)
    with pytest.raises(UserError, match="no file matches"):
        read_rows(source(tmp_path / "missing.jsonl"))


def test_a_fingerprint_follows_names_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    for limit in (rows_module.HASHED_WHOLE, 10):  # as small and as large files are looked at
        monkeypatch.setattr(rows_module, "HASHED_WHOLE", limit)
        first = rows_fingerprint(source(path))
        assert rows_fingerprint(source(path)) == first
        path.write_text(LINES.replace("question", "Question"))
        assert rows_fingerprint(source(path)) != first
        path.write_text(LINES)
    first = rows_fingerprint(source(path))
    os.rename(path, tmp_path / "b.jsonl")
    assert rows_fingerprint(source(tmp_path / "b.jsonl")) != first


# ---------------------------------------------------------------------------------------------------------
# Open-Assistant's single messages
# ---------------------------------------------------------------------------------------------------------


def message(number: int, parent: int | None, text: str, **more: Any) -> dict[str, Any]:
    role = "prompter" if parent is None or parent in (2, 3) else "assistant"
    parent_id = None if parent is None else f"m{parent}"
    return {"message_id": f"m{number}", "parent_id": parent_id, "text": text, "role": role, **more}


MESSAGES = [
    message(1, None, "a"),
    message(2, 1, "worse", rank=1.0),
    message(3, 1, "best", rank=0.0),
    message(4, 3, "b"),
    message(5, 4, "deleted", rank=0.0, deleted=True),
    message(6, 4, "c", rank=float("nan")),
    message(7, None, "other"),
    message(8, 7, "answer"),
    message(9, 99, "orphan"),
    message(10, 1, "unrated", rank=float("nan")),
    message(11, 3, "b", rank=0.0, deleted=True),
]


UNANSWERED = message(0, 3, "nobody answered this")
"""Stands before the reply that somebody answered."""


@given(st.permutations(MESSAGES).map(lambda messages: [UNANSWERED, *messages]))
def test_single_messages_become_trees_in_whatever_order_they_stand(tmp_path_factory: Any, messages: list) -> None:
    path = tmp_path_factory.getbasetemp() / "messages.jsonl"
    write_rows(path, messages)
    for settings in ({}, {"format": "open_assistant_messages"}):
        rows = read_rows(source(path, **settings))
        read, faults = [], []
        for number in range(len(rows)):
            try:
                read.append(to_messages(rows[number][1], settings.get("format", "auto")))
            except Fault as fault:
                faults.append((str(fault), rows.where(number)))
        assert sorted(read, key=len) == [turns("other", "answer"), turns("a", "best", "b", "c")]
        orphan = [m["message_id"] for m in messages].index("m9") + 1
        assert faults == [("a reply to a message that is missing", f"{path}, line {orphan}")]
