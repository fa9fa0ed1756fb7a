import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf.config import Source
from genesis_hf.data.readers import open_source, read_documents
from genesis_hf.data.stream import PackedStream, Prefetcher
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import encode_documents


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


DOCUMENTS = [f"document {i} says {'so ' * (i % 7)}é" for i in range(1500)]


def make_file(folder, suffix):
    path = folder / f"docs{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, DOCUMENTS)
    elif suffix == ".jsonl.gz":
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS))
    elif suffix == ".parquet":
        pq.write_table(pa.table({"text": DOCUMENTS, "other": range(1500)}), path, row_group_size=190)
    else:
        table = pa.table({"text": DOCUMENTS})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=170)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".arrow"])
def test_a_reader_goes_on_from_any_position(tmp_path, suffix):
    source = Source(name="x", paths=[make_file(tmp_path, suffix)])
    assert list(read_documents(source)) == DOCUMENTS
    position = open_source(source).read_block(open_source(source).start, 777)[1]
    # through JSON, as in a checkpoint, and in a reader that has read nothing yet
    documents, _ = open_source(source).read_block(json.loads(json.dumps(position)), 5)
    assert documents == DOCUMENTS[777:782]


def test_text_files_are_a_document_each_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.md"):
        (tmp_path / name).write_text(f"text of {name}")
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("text of c")
    source = Source(name="x", paths=[str(tmp_path / "*")])
    assert list(read_documents(source)) == ["text of a.md", "text of b.txt", "text of c"]


def test_a_hub_dataset_streams_and_resumes(tmp_path, monkeypatch):
    """A folder of parquet is opened by the same `load_dataset(..., streaming=True)` as a name on the Hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    make_file(tmp_path / "set", ".parquet")
    source = Source(name="x", dataset=str(tmp_path / "set"))
    assert list(read_documents(source)) == DOCUMENTS
    position = open_source(source).read_block({}, 777)[1]
    assert open_source(source).read_block(json.loads(json.dumps(position)), 3)[0] == DOCUMENTS[777:780]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1: no key 'text' \(found body\)"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "lone surrogate"),
        ("a.txt", b"\xff\xfe\xfa", "not readable UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "xyz"}\n' * 50, mtime=0)[:40], "cut or damaged"),
        ("a.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("a.exe", b"", "is none of"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        list(read_documents(Source(name="x", paths=[str(tmp_path / name)])))
    assert name in str(raised.value)


def test_a_glob_without_a_match_is_named(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        open_source(Source(name="x", paths=[str(tmp_path / "*.jsonl")]))


# ---------------------------------------------------------------------------------------------------------
# Stream
# ---------------------------------------------------------------------------------------------------------


def take(sources, tokenizer, steps, **settings):
    stream = PackedStream(sources, tokenizer, 16, 4, **settings)
    return np.concatenate([next(stream)[0].input_ids.numpy() for _ in range(steps)])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    block=st.sampled_from([0, 3, 1024]),
    seed=st.integers(0, 3),
)
def test_every_token_of_every_document_appears_exactly_once_an_epoch(tmp_path_factory, tokenizer, lengths, block, seed):
    texts = [f"{i}:" + "abc "[i % 4] * n for i, n in enumerate(lengths)]
    source = Source(name="x", paths=[write_jsonl(tmp_path_factory.mktemp("s") / "x.jsonl", texts)])
    documents = [[*ids, tokenizer.eos_token_id] for ids in encode_documents(tokenizer, texts)]
    total = sum(map(len, documents))
    stream = PackedStream([source], tokenizer, 16, 1, seed=seed, shuffle_block=block, shuffle_rows=0)
    ids = []
    while len(ids) < 2 * total:
        ids += next(stream)[0].input_ids.flatten().tolist()
    for epoch in range(2):
        part = ids[epoch * total : (epoch + 1) * total]
        found, current = [], []
        for token in part:
            current.append(token)
            if token == tokenizer.eos_token_id:
                found.append(current)
                current = []
        assert sorted(found) == sorted(documents)
        if block == 0:
            assert found == documents


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 5), block=st.integers(2, 40))
def test_row_shuffling_permutes_blocks_and_loses_nothing(corpus, tokenizer, seed, block):
    sources = [Source(name="code", paths=[str(corpus / "code.jsonl")])]
    plain = PackedStream(sources, tokenizer, 16, 1, seed=seed, shuffle_rows=0)
    mixed = PackedStream(sources, tokenizer, 16, 1, seed=seed, shuffle_rows=block)
    orders = []
    for _ in range(3):
        rows = [[tuple(next(s)[0].input_ids[0].tolist()) for _ in range(block)] for s in (plain, mixed)]
        assert sorted(rows[0]) == sorted(rows[1])
        orders.append([rows[0].index(row) for row in rows[1]])
    if block > 8:
        assert orders[0] != sorted(orders[0])
        assert orders[0] != orders[1]


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 3),
    block=st.sampled_from([0, 7, 1024]),
)
def test_interruptions_and_other_world_sizes_give_the_same_rows(corpus, tokenizer, cuts, seed, block):
    sources = [
        Source(name="prose", weight=3, paths=[str(corpus / "prose.jsonl")]),
        Source(name="code", weight=1, paths=[str(corpus / "code.jsonl")]),
    ]
    whole = take(sources, tokenizer, sum(cuts), seed=seed, shuffle_rows=block)
    state, parts = None, []
    for number, steps in enumerate(cuts):
        world = [1, 2, 4][number % 3]
        ranks = [
            PackedStream(
                sources, tokenizer, 16, 4, seed=seed, shuffle_rows=block, rank=r, world_size=world, state=state
            )
            for r in range(world)
        ]
        for _ in range(steps):
            outs = [next(stream) for stream in ranks]
            parts.append(np.concatenate([batch.input_ids.numpy() for batch, _ in outs]))
            assert len({json.dumps(s) for _, s in outs}) == 1
            assert len({batch.num_items for batch, _ in outs}) == 1
            labels = sum(int((batch.labels[:, 1:] != IGNORE_INDEX).sum()) for batch, _ in outs)
            assert labels == outs[0][0].num_items
            state = json.loads(json.dumps(outs[0][1]))
    assert np.array_equal(np.concatenate(parts), whole)


def test_positions_restart_and_boundaries_carry_no_label(corpus, tokenizer):
    stream = PackedStream([Source(name="x", paths=[str(corpus / "code.jsonl")])], tokenizer, 64, 8)
    batch, _ = next(stream)
    boundary = (batch.input_ids[:, :-1] == tokenizer.eos_token_id).nonzero()
    assert len(boundary) > 10
    for row, column in boundary.tolist():
        assert batch.position_ids[row, column + 1] == 0
        assert batch.labels[row, column + 1] == IGNORE_INDEX
        assert batch.labels[row, column] in (tokenizer.eos_token_id, IGNORE_INDEX)
    starts = (batch.position_ids == 0).sum()
    assert starts == len(boundary) + len(batch.input_ids)
    kept = batch.labels != IGNORE_INDEX
    assert (batch.labels[kept] == batch.input_ids[kept]).all()

    plain = PackedStream(
        [Source(name="x", paths=[str(corpus / "code.jsonl")])], tokenizer, 64, 8, reset_positions=False
    )
    batch, _ = next(plain)
    assert batch.position_ids is None
    assert (batch.labels == batch.input_ids).all()
    assert batch.num_items == 8 * 63


def test_shares_are_of_tokens(corpus, tokenizer):
    sources = [
        Source(name="prose", weight=1, paths=[str(corpus / "prose.jsonl")]),
        Source(name="code", weight=3, paths=[str(corpus / "code.jsonl")]),
    ]
    stream = PackedStream(sources, tokenizer, 64, 4)
    for _ in range(60):
        batch, state = next(stream)
        assert sum(batch.tokens_by_source.values()) == 256
    tokens = state["tokens"]
    assert sum(tokens.values()) == 60 * 256
    assert tokens["code"] / sum(tokens.values()) == pytest.approx(0.75, abs=0.02)
    assert len(json.dumps(state)) < 4000


def test_other_data_is_refused_with_the_difference(corpus, tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, ["one", "two"] * 50)
    source = Source(name="mine", paths=[str(path)])
    _, state = next(PackedStream([source], tokenizer, 16, 4))
    write_jsonl(path, ["one", "TWO"] * 50)
    with pytest.raises(UserError, match="sources mine differ"):
        PackedStream([source], tokenizer, 16, 4, state=state)
    write_jsonl(path, ["one", "two"] * 50)
    with pytest.raises(UserError, match="another seed"):
        PackedStream([source], tokenizer, 16, 4, seed=1, state=state)


def test_a_prefetcher_keeps_order_and_passes_errors_on():
    def items():
        yield from range(5)
        raise UserError("broken at 5")

    prefetcher = Prefetcher(items())
    assert [next(prefetcher) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="broken at 5"):
        next(prefetcher)
    endless = Prefetcher(iter(range(10**9)))
    next(endless)
    endless.close()
    assert not endless._thread.is_alive()
