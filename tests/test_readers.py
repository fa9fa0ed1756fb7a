import gzip
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from hub_server import GATED, HubServer
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf.config import Source
from genesis_hf.data.readers import open_source, read_documents
from genesis_hf.data.records import BadRecord
from genesis_hf.errors import UserError

DOCUMENTS = [f"document {i} says {'so ' * (i % 7)}é" for i in range(600)]
FORMATS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", "-stream.arrow", "-file.arrow"]


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_file(path, texts):
    """Documents in the format that the file's name says, with a column beside the text."""
    name, table = path.name, pa.table({"text": texts, "number": range(len(texts))})
    lines = jsonl(table.to_pylist())
    if name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):  # of two frames, as parallel compressors write them
        path.write_bytes(b"".join(pa.compress(part, "zstd", asbytes=True) for part in (lines[:999], lines[999:])))
    elif name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=90, compression="none", write_page_checksum=True)
    else:
        writer = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as batches:
            batches.write_table(table, max_chunksize=70)
    return str(path)


def read_all(source, counts=(10**6,)):
    """Every block joined, each from a new reader and a position that went through JSON, as in a checkpoint."""
    texts, bad, empty, filtered = [], [], 0, 0
    position, turn = open_source(source).start, 0
    while position is not None:
        block = open_source(source).read_block(json.loads(json.dumps(position)), counts[turn % len(counts)])
        texts, bad = texts + block.texts, bad + block.bad
        empty, filtered = empty + block.empty, filtered + block.filtered
        position, turn = block.position, turn + 1
    return texts, bad, empty, filtered


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_reader_goes_on_from_any_position(tmp_path, suffix):
    source = Source(name="x", paths=[write_file(tmp_path / f"docs{suffix}", DOCUMENTS)])
    assert list(read_documents(source)) == DOCUMENTS
    assert read_all(source, [277, 1, 90]) == (DOCUMENTS, [], 0, 0)
    reader = open_source(source)
    first = reader.read_block(reader.start, 277)
    second = reader.read_block(first.position, 5)
    assert second.texts == DOCUMENTS[277:282]
    assert reader.read_block(first.position, 5) == second


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_lies_behind_is_not_read_again(tmp_path, suffix):
    path = tmp_path / f"docs{suffix}"
    source = Source(name="x", paths=[write_file(path, DOCUMENTS)])
    block = open_source(source).read_block(open_source(source).start, 300)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 3] = b"?" * (len(content) // 3 - 4)
    path.write_bytes(content)
    rest = open_source(source).read_block(block.position, 1000)
    assert rest.texts == DOCUMENTS[300:]
    assert rest.bad == []


def test_text_files_are_a_document_each_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.md"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"text of c"))
    (tmp_path / "d.md.zst").write_bytes(pa.compress(b"text of d", "zstd", asbytes=True))
    source = Source(name="x", paths=[str(tmp_path / "*"), str(tmp_path / "a.*")])
    assert read_all(source, [1]) == (["text of a.md", "text of b.txt", "text of c", "text of d"], [], 0, 0)


def test_a_block_ends_after_a_long_document_and_after_many_bad_records(tmp_path, monkeypatch):
    monkeypatch.setattr("genesis_hf.data.blocks.MAX_BLOCK_CHARACTERS", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "x" * 60}] * 3) + b"?\n" * 5)
    reader = open_source(Source(name="x", paths=[str(tmp_path / "a.jsonl")]))
    first = reader.read_block(reader.start, 4)
    assert [len(text) for text in first.texts] == [60, 60]
    second = reader.read_block(first.position, 4)
    assert len(second.texts) == 1
    assert len(second.bad) == 4
    assert second.position is not None


# ---------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------

GOOD_LINE = b'{"text": "fine"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": \n', "not valid JSON"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b'["text"]\n', "not list"),
        (b'{"body": "x"}\n', r"no key 'text' \(found body\); set text_column"),
        (b'{"text": 3}\n', "'text' is int, not text"),
        (b'{"text": null}\n', "'text' is null, not text"),
        (b'{"text": "\xff"}\n', "not valid UTF-8"),
        (b'{"text": "\\ud800"}\n', "lone surrogate"),
    ],
)
def test_a_bad_line_is_named_and_skipped(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE + b"\n" + line + GOOD_LINE)
    source = Source(name="x", paths=[str(tmp_path / "a.jsonl")])
    texts, bad, _, _ = read_all(source)
    assert texts == ["fine", "fine"]
    assert [(record.where, record.count) for record in bad] == [(f"{tmp_path}/a.jsonl, line 3", 1)]
    with pytest.raises(UserError, match=f"a.jsonl, line 3: .*{words}"):
        list(read_documents(source))


@pytest.mark.parametrize(
    ("name", "content", "where", "words"),
    [
        ("a.txt", b"\xff\xfe\xfa", "a.txt", "not valid UTF-8"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:20], "a.txt.gz", "cut, damaged or gone"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz, after line 0", "cut or damaged"),
        ("a.parquet", b"PAR1 no", "a.parquet", "cannot be read as parquet"),
        ("a.arrow", b"ARROW1 no", "a.arrow", "cannot be read as arrow"),
        ("a.arrow", b"", "a.arrow", "cannot be read as arrow"),
    ],
)
def test_a_file_that_is_none_is_named_and_skipped(tmp_path, name, content, where, words):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(GOOD_LINE)
    texts, (record,), _, _ = read_all(Source(name="x", paths=[str(tmp_path / "*")]))
    assert texts == ["fine"]
    assert record.where == f"{tmp_path}/{where}"
    assert words in record.reason


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", "-stream.arrow"])
def test_of_a_file_cut_in_the_middle_the_beginning_is_used(tmp_path, suffix):
    documents = [f"{zlib.crc32(b'%d' % i)} {i}" * 20 for i in range(4000)]  # too random to fit into one zstd block
    path = tmp_path / f"a{suffix}"
    write_file(path, documents)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    texts, (record,), _, _ = read_all(Source(name="x", paths=[str(path)]), [1500])
    assert len(texts) > 1000
    assert texts == documents[: len(texts)]
    assert record.where == f"{path}, after {'row' if 'arrow' in suffix else 'line'} {len(texts)}"
    assert "cut or damaged" in record.reason


def test_a_damaged_row_group_is_left_out_and_counted(tmp_path):
    path = tmp_path / "a.parquet"
    source = Source(name="x", paths=[write_file(path, DOCUMENTS)])
    content = bytearray(path.read_bytes())
    place = content.index(DOCUMENTS[100].encode())
    content[place] ^= 1
    path.write_bytes(content)
    texts, bad, _, _ = read_all(source)
    assert texts == DOCUMENTS[:90] + DOCUMENTS[180:]
    assert [(record.where, record.count) for record in bad] == [(f"{path}, rows 91 to 180", 90)]
    path.write_bytes(content[: len(content) // 2])
    texts, (record,), _, _ = read_all(source)
    assert texts == []
    assert record.where == str(path)


@pytest.mark.parametrize("suffix", [".parquet", "-stream.arrow", "-file.arrow"])
def test_a_table_without_the_column_counts_as_its_rows(tmp_path, suffix):
    path = write_file(tmp_path / f"a{suffix}", DOCUMENTS)
    _, bad, _, _ = read_all(Source(name="x", paths=[path], text_column="body"))
    assert bad == [BadRecord(path, "no column 'body' (found text, number); set text_column", len(DOCUMENTS))]
    _, (record,), _, _ = read_all(Source(name="x", paths=[path], filters={"lang": "en"}))
    assert record.reason == "no column 'lang' to filter by (found text, number)"


def test_bad_values_in_a_table_are_named_by_their_row(tmp_path):
    values = pa.array([b"one", None, b"\xff", b"four"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    texts, bad, _, _ = read_all(Source(name="x", paths=[str(tmp_path / "a.parquet")]))
    assert texts == ["one", "four"]
    assert [record.where for record in bad] == [f"{tmp_path}/a.parquet, row {row}" for row in (2, 3)]
    assert "null" in bad[0].reason
    assert "UTF-8" in bad[1].reason


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_vanishes_is_named_and_skipped(tmp_path, suffix):
    gone = tmp_path / f"b{suffix}"
    for name in (f"a{suffix}", f"b{suffix}", f"c{suffix}"):
        write_file(tmp_path / name, [f"text of {name}"])
    reader = open_source(Source(name="x", paths=[str(tmp_path / "*")]))
    first = reader.read_block(reader.start, 1)
    gone.unlink()
    block = reader.read_block(first.position, 5)
    assert block.texts == [f"text of c{suffix}"]
    assert [record.where for record in block.bad] == [str(gone)]


def test_a_source_without_readable_names_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        open_source(Source(name="x", paths=[str(tmp_path / "*.jsonl")]))
    for name in ("a.exe", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} is none of"):
            open_source(Source(name="x", paths=[str(tmp_path / name)]))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files of every format, with empty, filtered, bad and damaged parts."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, suffix in enumerate(FORMATS):
        write_file(folder / f"{number}{suffix}", ["" if i % 11 == 5 else f"{suffix} {i}" for i in range(200)])
    lines = [b"?\n" if i % 9 == 4 else jsonl([{"text": f"line {i}", "number": i}]) for i in range(300)]
    (folder / "bad.jsonl").write_bytes(b"".join(lines))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b"".join(lines))[:400])
    parquet = (folder / "3.parquet").read_bytes()
    place = parquet.index(b".parquet 100")
    (folder / "damaged.parquet").write_bytes(parquet[:place] + b"X" + parquet[place + 1 :])
    return folder


@settings(max_examples=12, deadline=None)
@given(counts=st.lists(st.integers(1, 300), min_size=1, max_size=6))
def test_any_chain_of_interruptions_gives_the_same_records(mixed, counts):
    source = Source(name="x", paths=[str(mixed / "*")], filters={"number": {"min": 20}})
    texts, bad, empty, filtered = whole = read_all(source)
    assert read_all(source, counts) == whole
    assert len(set(texts)) > 1000
    assert len(bad) > 33
    assert empty > 6 * 15
    assert filtered > 6 * 15


# ---------------------------------------------------------------------------------------------------------
# Filters and templates
# ---------------------------------------------------------------------------------------------------------

RECORDS = [
    {"text": "a", "lang": "en", "score": 1.5},
    {"text": "b", "lang": "de", "score": 2},
    {"text": "c", "lang": "fr", "score": 3.5},
    {"text": "", "lang": "en", "score": 3},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"lang": "en"}, "a"),
        ({"lang": ["de", "fr"]}, "bc"),
        ({"score": {"min": 2}}, "bc"),
        ({"score": {"min": 1.5, "max": 2}}, "ab"),
        ({"lang": ["en", "de"], "score": {"max": 1.5}}, "a"),
    ],
)
def test_filters_keep_what_fits(tmp_path, suffix, filters, kept):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(jsonl(RECORDS))
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    texts, bad, empty, filtered = read_all(Source(name="x", paths=[str(path)], filters=filters))
    assert "".join(texts) == kept
    assert bad == []
    assert len(texts) + empty + filtered == len(RECORDS)


def test_a_record_that_cannot_be_filtered_is_bad(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "a"}, {"text": "b", "score": "high"}]))
    _, bad, _, _ = read_all(Source(name="x", paths=[str(tmp_path / "a.jsonl")], filters={"score": {"min": 1}}))
    assert bad[0].reason == "no key 'score' to filter by (found text)"
    assert bad[1].reason == "'score' is str, not a number to filter by"


@pytest.mark.parametrize("rule", [{"minn": 3}, {}, {"min": "3"}, [], [{"min": 3}]])
def test_a_filter_of_another_shape_is_refused(tmp_path, rule):
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE)
    with pytest.raises(UserError, match=r"source 'mine': filters\.score must"):
        open_source(Source(name="mine", paths=[str(tmp_path / "*")], filters={"score": rule}))


@pytest.mark.parametrize("taking", [{"filters": {"lang": "en"}}, {"text_template": "{text}"}])
def test_plain_text_has_no_columns(tmp_path, taking):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt is plain text"):
        open_source(Source(name="x", paths=[str(tmp_path / "*")], **taking))


MESSAGES = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "weight": None}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain [1] text", "plain [1] text"),
        ("[not JSON", "[not JSON"),
        ('["a list"]', '["a list"]'),
        (MESSAGES, "User: Hi\n\nAssistant: Ho"),
        (json.dumps(MESSAGES), "User: Hi\n\nAssistant: Ho"),
        (SHAREGPT, "User: Hi\n\nAssistant: Ho"),
        ({"naïve": 1}, '{"naïve": 1}'),
        ([1, 2], "[1, 2]"),
        (True, "true"),
    ],
)
def test_a_template_renders_a_records_columns(tmp_path, suffix, value, text):
    path, records = tmp_path / f"a{suffix}", [{"value": value, "other": "beside"}]
    path.write_bytes(jsonl(records))
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    source = Source(name="x", paths=[str(path)], text_template="{{{other}}}\n{value}")
    assert list(read_documents(source)) == [f"{{beside}}\n{text}"]


def test_a_template_over_null_or_a_missing_column_is_bad(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"a": None}, {"b": "x"}, {"a": "\ud800"}]))
    _, bad, _, _ = read_all(Source(name="x", paths=[str(tmp_path / "a.jsonl")], text_template="{a}"))
    reasons = ["'a' is null, not text", "no key 'a' (found b); set text_template"]
    assert [record.reason for record in bad[:2]] == reasons
    assert "lone surrogate" in bad[2].reason


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{}", "{a", "no column"])
def test_a_template_holds_nothing_but_columns(tmp_path, template):
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE)
    with pytest.raises(UserError, match="source 'x': text_template"):
        open_source(Source(name="x", paths=[str(tmp_path / "*")], text_template=template))


def test_the_fingerprint_changes_with_content_and_with_what_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    place = {"dataset": "someone/set"}
    for source in ({"paths": [str(path)]}, place):
        path.write_bytes(GOOD_LINE)
        takings = [{}, {"text_column": "body"}, {"text_template": "{text}"}, {"filters": {"lang": "en"}}]
        prints = [open_source(Source(name="x", **source, **taking)).fingerprint() for taking in takings]
        assert len(set(prints)) == len(takings)
        assert open_source(Source(name="y", **source)).fingerprint() == prints[0]
        path.write_bytes(GOOD_LINE.upper())
        assert (open_source(Source(name="x", **source)).fingerprint() == prints[0]) == (source is place)
    parts = [{}, *({part: "other"} for part in PARTS)]
    assert len({open_source(Source(name="x", **place, **part)).fingerprint() for part in parts}) == len(parts)


# ---------------------------------------------------------------------------------------------------------
# The Hub
# ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_a_dataset_streams_and_resumes(tmp_path, monkeypatch):
    """A folder of parquet is opened by the same streaming as a name on the Hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    write_file(tmp_path / "set" / "a.parquet", [*DOCUMENTS[:200], "", *DOCUMENTS[200:]])
    source = Source(name="x", dataset=str(tmp_path / "set"), filters={"number": {"min": 10}})
    assert read_all(source, [277, 33]) == (DOCUMENTS[10:], [], 1, 10)
    _, bad, _, _ = read_all(Source(name="x", dataset=str(tmp_path / "set"), text_column="number"))
    assert bad[6] == BadRecord(f"dataset {tmp_path}/set, row 7", "'number' is int, not text")


PARTS = ("config", "data_dir", "split", "revision")

READ_FROM_THE_HUB = """
import json, sys, time
time.sleep = lambda seconds: None  # the waits of the Hub's client; ours is `pause`
from genesis_hf.config import Source
from genesis_hf.data import hub, readers
from genesis_hf.errors import UserError, report_user_errors
waits = []
hub.pause = waits.append
refused = None
with report_user_errors():
    for place, position, count in json.loads(sys.argv[1]):
        reader = readers.open_source(Source(name="far", **place))
        position, blocks = position or reader.start, []
        try:
            while position is not None:
                block = reader.read_block(position, count)
                blocks.append([block.texts, position])
                position = block.position
        except UserError as error:
            refused = error
        print(json.dumps([blocks, waits, str(refused)]))
    if refused:
        raise refused
"""


def read_hub(environment, *jobs):
    """Each job's (source, position or None, count) in a new process: (blocks and their positions, waits, error)."""
    result = run_script("-c", READ_FROM_THE_HUB, json.dumps(jobs), check=False, **environment)
    assert result.returncode in (0, 2), result.stderr[-3000:]
    return result, [json.loads(line) for line in result.stdout.splitlines()]


def joined(blocks):
    return [text for texts, _ in blocks for text in texts]


@pytest.fixture
def hub(tmp_path):
    """A dataset of two shards on a Hub of its own."""
    (tmp_path / "set").mkdir()
    for shard in range(2):
        part = DOCUMENTS[shard * 300 : shard * 300 + 300]
        write_file(tmp_path / "set" / f"train-0000{shard}-of-00002.parquet", part)
    with HubServer(tmp_path / "set") as server:
        yield server


def test_a_hub_dataset_streams_resumes_and_survives_failures(hub, tmp_path):
    environment = hub.environment(tmp_path / "home")
    place = {"dataset": hub.name}
    _, ((blocks, waits, _),) = read_hub(environment, (place, None, 64))
    assert joined(blocks) == DOCUMENTS
    assert waits == []

    hub.head = "f" * 40  # the dataset was changed in between: what goes on stays with its commit
    # Six failures of a request in a row get through the client's own tries.
    hub.fail("train-00001", ["503"] * 7 + ["drop"] * 7 + ["cut"] * 7 + ["hang"])
    jobs = [(place, position, 100) for _, position in (blocks[2], blocks[5], blocks[-1])]
    result, results = read_hub(environment, *jobs)
    for start, (rest, waits, _) in zip((128, 320, 576), results, strict=True):
        assert joined(rest) == DOCUMENTS[start:]
        assert waits == [1, 2, 4]
    assert result.stderr.count("source 'far': the Hub does not answer") == 3


def test_data_dir_is_one_folder_of_a_hub_dataset(tmp_path):
    texts = {"java": DOCUMENTS[:90], "javascript": DOCUMENTS[90:]}
    for folder in texts:
        (tmp_path / "set" / folder).mkdir(parents=True)
        write_file(tmp_path / "set" / folder / "train-00000-of-00001.parquet", texts[folder])
    with HubServer(tmp_path / "set") as hub:
        jobs = [({"dataset": hub.name, "data_dir": folder}, None, 600) for folder in texts]
        _, results = read_hub(hub.environment(tmp_path / "home"), *jobs)
    assert [joined(blocks) for blocks, _, _ in results] == list(texts.values())


def test_a_hub_that_refuses_or_is_gone_ends_in_one_line(tmp_path):
    folder, home = tmp_path / "set", tmp_path / "home"
    folder.mkdir()
    write_file(folder / "train.parquet", DOCUMENTS)
    with HubServer(folder) as hub:
        environment = hub.environment(home)
        place = {"dataset": hub.name}
        wrong = [{"dataset": "someone/none"}, {"dataset": GATED}, *({**place, key: "no"} for key in PARTS)]
        _, results = read_hub(environment, *((source, None, 9) for source in wrong))
        for source, (_, waits, error) in zip(wrong, results, strict=True):
            assert error.startswith(f"source 'far': dataset {source['dataset']!r} can't be opened")
            assert waits == []
        # A copy that another program downloaded holds the same rows, but not in these shards: it is no answer.
        load = f"import datasets; datasets.load_dataset({hub.name!r})"
        run_script("-c", load, **environment)
        hub.fail("README", ["drop"] * 99)
        result, ((_, waits, _),) = read_hub(environment, (place, None, 9))
        assert waits == [1, 2, 4, 8, 16, 32, 60]
        assert result.returncode == 2
    result, ((_, waits, _),) = read_hub(environment, (place, None, 9))
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: source 'far': the Hub does not answer (")
