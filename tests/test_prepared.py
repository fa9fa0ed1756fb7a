import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY_MODEL, run_script
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe, build, parse_recipe
from genesis_hf.data.preparation import pool
from genesis_hf.data.preparation.prepare import PrepareSettings, prepare, verify
from genesis_hf.data.prepared import PreparedTokens
from genesis_hf.data.selection import document_hash, recipe_selection
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import encode_documents, load_tokenizer, save_tokenizer

WORDS = ["river", "stone", "walks", "under", "bright", "cloud", "seven", "letters", "and", "the", "a", "old"]
SIZES = {"num_proc": 1, "shard_tokens": 9_000, "group_bytes": 1}
"""A part for each input file, and several shards of most."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of files, and by source the texts in them, in order."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(3)

    def make(count):
        return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for i in range(count)]

    lines = {"a": make(1200), "b": make(350), "c": make(40)}
    for name, some in lines.items():
        records = [json.dumps({"text": text}) for text in some]
        if name == "b":
            records[100:100] = ["{broken", json.dumps({"text": ""}), "[]"]
        (folder / f"lines-{name}.jsonl").write_text("\n".join(records) + "\n")
    rows = make(500)
    pq.write_table(pa.table({"body": rows, "score": [i % 5 for i in range(500)]}), folder / "rows.parquet")
    (folder / "eval.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines["c"][:5]))
    (folder / "exclude.txt").write_text(f"{document_hash(rows[1]):016x} a copy of a test\n")
    fitting = [text for i, text in enumerate(rows) if i % 5 >= 1]
    return folder, {"lines": lines["a"] + lines["b"] + lines["c"], "rows": fitting}


@pytest.fixture(scope="module")
def values(texts, tokenizer_folder):
    """A recipe, as plain values; tests change copies."""
    folder, _ = texts
    rows = {"paths": [str(folder / "rows.parquet")], "text_column": "body", "filters": {"score": {"min": 1}}}
    return {
        "output_dir": str(folder / "run"),
        "model": TINY_MODEL,
        "tokenizer": str(tokenizer_folder),
        "sources": [
            {"name": "lines", "paths": [str(folder / "lines-*.jsonl")], "weight": 2.0},
            {"name": "rows", **rows, "max_documents": 390, "max_epochs": 3},
        ],
        "held_out_share": 0.05,
        "exclude_documents": [str(folder / "exclude.txt")],
        "eval_sources": [{"name": "eval", "paths": [str(folder / "eval.jsonl")]}],
        "max_steps": 1000,
    }


def prepare_in(folder, values, **changes):
    recipe = build(PretrainRecipe, values, "test")
    return prepare(recipe, build(PrepareSettings, {"prepared_dir": str(folder), **SIZES, **changes}, "test"))


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    """The recipe prepared in one go by one worker; tests change copies."""
    folder = tmp_path_factory.mktemp("finished")
    prepare_in(folder, values)
    return folder


def contents(folder):
    """Every file of the sources' folders."""
    files = [path for name in ("lines", "rows") for path in (Path(folder) / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------------------------------------------------
# What is in the shards
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lines", "rows"])
def test_documents_come_back_token_by_token(finished, values, texts, tokenizer, name):
    selection = recipe_selection(build(PretrainRecipe, values, "test"))
    by_use = {use: [t for t in texts[1][name] if selection.use(t) == use] for use in ("train", "held_out", "excluded")}
    assert all(by_use.values())
    prepared = PreparedTokens(finished / name)
    assert len(prepared.index["shards"]) > (1 if name == "lines" else 0)

    found = []
    for start, stop in itertools.pairwise([0, *prepared.ends.tolist()]):
        out = np.empty(stop - start, np.int64)
        prepared.read(start, stop, out)
        found.append(out.tolist())
    trained = by_use["train"][: 390 if name == "rows" else None]
    assert found[: len(trained)] == [[*ids, tokenizer.eos_token_id] for ids in encode_documents(tokenizer, trained)]
    assert prepared.hashes.tolist()[: len(trained)] == [document_hash(text) for text in trained]
    held_out = [json.loads(line)["text"] for line in (finished / name / "held_out.jsonl").read_text().splitlines()]
    assert held_out == by_use["held_out"]
    prepared.check(tokenizer, selection)


def test_everything_is_counted(finished, texts):
    totals = PreparedTokens(finished / "lines").index["totals"]
    used = totals["documents"] + totals["held_out"] + totals["excluded"]
    assert used == len(texts[1]["lines"])
    assert (totals["excluded"], totals["empty"], totals["bad"]) == (5, 1, 2)
    bad = [json.loads(line) for line in (finished / "lines" / "bad_records.jsonl").read_text().splitlines()]
    assert [record["where"].rpartition("lines-")[2] for record in bad] == ["b.jsonl, line 101", "b.jsonl, line 103"]
    assert PreparedTokens(finished / "rows").index["totals"]["filtered"] == 100


def test_shards_hold_no_more_than_shard_tokens(finished):
    assert all(shard["tokens"] <= 9_000 for shard in PreparedTokens(finished / "lines").index["shards"])


@given(data=st.data())
def test_any_range_is_read_across_shards(finished, data):
    prepared = PreparedTokens(finished / "lines")
    whole = np.concatenate([np.fromfile(finished / "lines" / s["file"], "<u2") for s in prepared.index["shards"]])
    assert len(whole) == prepared.num_tokens
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    dtype = data.draw(st.sampled_from([np.uint16, np.int32, np.int64]))
    out = np.empty(stop - start, dtype)
    prepared.read(start, stop, out)
    assert np.array_equal(out, whole[start:stop])


def test_a_range_beyond_the_end_is_refused(finished):
    prepared = PreparedTokens(finished / "lines")
    with pytest.raises(IndexError):
        prepared.read(0, prepared.num_tokens + 1, np.empty(prepared.num_tokens + 1, np.int32))


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_tokens_take_16_bits_where_the_vocabulary_fits(tmp_path, values, vocabulary, dtype):
    model = WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0")
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="w1"), tmp_path / "tokenizer")
    (tmp_path / "last.jsonl").write_text(json.dumps({"text": f"w{vocabulary - 1}"}) + "\n")
    source = {"name": "last", "paths": [str(tmp_path / "last.jsonl")]}
    changes = {"tokenizer": str(tmp_path / "tokenizer"), "sources": [source], "held_out_share": 0}
    prepare_in(tmp_path / "prepared", {**values, **changes})
    prepared = PreparedTokens(tmp_path / "prepared" / "last")
    assert prepared.index["dtype"] == dtype
    out = np.empty(2, np.int64)
    prepared.read(0, 2, out)
    assert out.tolist() == [vocabulary - 1, 1]


def test_a_file_is_read_no_further_than_the_caps_need(tmp_path, values):
    lines = {**values["sources"][0], "max_documents": 10}
    totals = prepare_in(tmp_path, {**values, "sources": [lines]})
    files = 3
    assert 10 * files <= totals["lines"]["documents"] <= 256 * files


def test_small_files_share_a_part(tmp_path, values):
    prepare_in(tmp_path, values, group_bytes=2**24, shard_tokens=2**20)
    prepared = PreparedTokens(tmp_path / "lines")
    assert [shard["file"] for shard in prepared.index["shards"]] == ["00000-00000.bin"]


def test_a_hub_dataset_is_prepared_shard_by_shard(tmp_path, values, texts):
    """A folder stands for the Hub: `datasets` streams both in the same way."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in "abc":
        shutil.copy(texts[0] / f"lines-{name}.jsonl", folder)
    (folder / "lines-b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[1]["lines"][:300]))
    hub = {"name": "lines", "dataset": str(folder)}
    prepare_in(tmp_path / "hub", {**values, "sources": [hub]}, task_index=0, num_tasks=2)
    prepare_in(tmp_path / "hub", {**values, "sources": [hub]}, num_proc=2)
    local = {"name": "lines", "paths": [str(folder / "*.jsonl")]}
    prepare_in(tmp_path / "local", {**values, "sources": [local]})
    found, expected = contents(tmp_path / "hub"), contents(tmp_path / "local")
    assert {name: found[name] for name in found if name != "lines/index.json"} == {
        name: expected[name] for name in expected if name != "lines/index.json"
    }


# ---------------------------------------------------------------------------------------------------------
# The same bytes, however they came about
# ---------------------------------------------------------------------------------------------------------


def test_two_workers_write_the_same_bytes(tmp_path, values, finished):
    prepare_in(tmp_path, values, num_proc=2)
    assert contents(tmp_path) == contents(finished)


def test_a_task_array_writes_the_same_bytes(tmp_path, values, finished):
    for task in (2, 0):
        assert prepare_in(tmp_path, values, task_index=task, num_tasks=3) == {}
    assert not (tmp_path / "lines" / "index.json").exists()
    prepare_in(tmp_path, values)  # finds task 1's share missing
    assert contents(tmp_path) == contents(finished)


def test_two_runs_in_one_folder_wait_for_each_other(tmp_path, values, finished):
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(prepare_in, tmp_path, values) for _ in range(2)]
    assert runs[0].result() == runs[1].result()
    assert contents(tmp_path) == contents(finished)


def prepare_and_die(folder, values):
    """As soon as the first part is finished."""
    pool.Progress.finish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    prepare_in(folder, values)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, values, finished):
    run = multiprocessing.get_context("forkserver").Process(target=prepare_and_die, args=(tmp_path, values))
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not (tmp_path / "lines" / "index.json").exists()
    prepare_in(tmp_path, values)
    assert contents(tmp_path) == contents(finished)


def test_ctrl_c_stops_the_workers_and_the_next_call_goes_on(tmp_path, values, finished, monkeypatch):
    monkeypatch.setattr(pool.Progress, "finish", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        prepare_in(tmp_path, values)
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "lines" / "index.json").exists()
    monkeypatch.undo()
    prepare_in(tmp_path, values)
    assert contents(tmp_path) == contents(finished)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_power_cut_leaves_is_not_used_and_not_in_the_way(tmp_path, values, finished, seed):
    prepare_in(tmp_path, values, task_index=0, num_tasks=1)
    rng = random.Random(seed)
    pieces = sorted((tmp_path / "lines" / "pieces").glob("00000-*.json"))
    cut = rng.randrange(len(pieces))
    for path in pieces[cut:]:
        path.unlink()
    shards = tmp_path / "lines"
    (shards / f"00000-{cut:05d}.bin").write_bytes(b"half a shard")
    (shards / "pieces" / f"00000-{cut:05d}.bin.tmp").write_bytes(b"the other half")
    (shards / "00009-00000.bin").write_bytes(b"of a file that is no more")
    (tmp_path / "rows" / "00000-00000.bin").write_bytes(b"its JSON was durable, the shard was not")
    kept = {path: path.stat().st_mtime_ns for path in pieces[:cut]}
    prepare_in(tmp_path, values, task_index=0, num_tasks=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is tokenised twice"
    prepare_in(tmp_path, values)
    assert contents(tmp_path) == contents(finished)


# ---------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------


def copy(folder, to):
    return Path(shutil.copytree(folder, to))


def test_a_flipped_byte_is_found(tmp_path, values, finished):
    folder = copy(finished, tmp_path / "prepared")
    settings = PrepareSettings(prepared_dir=str(folder))
    recipe = build(PretrainRecipe, values, "test")
    verify(recipe, settings)
    name = PreparedTokens(folder / "lines").index["shards"][1]["file"]
    data = bytearray((folder / "lines" / name).read_bytes())
    data[77] ^= 4
    (folder / "lines" / name).write_bytes(data)
    assert [line.partition(":")[0] for line in PreparedTokens(folder / "lines").verify()] == [
        str(folder / "lines" / name)
    ]
    with pytest.raises(UserError, match=name):
        verify(recipe, settings)


@pytest.mark.parametrize("name", ["index.json", "00000-00000.bin", "hashes.bin"])
def test_a_missing_or_short_file_is_refused(tmp_path, finished, name):
    folder = copy(finished / "lines", tmp_path / "lines")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] if name != "index.json" else b"[]")
    with pytest.raises(UserError, match=name):
        PreparedTokens(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        PreparedTokens(folder)


CHANGES = {
    "held_out_share": lambda values: {"held_out_share": 0.06},
    "source.text_column": lambda values: {"sources": [{**values["sources"][0], "text_column": "body"}]},
    "source.max_documents": lambda values: {"sources": [{**values["sources"][0], "max_documents": 7}]},
    "tokenizer_sha256": None,
    "lines-a.jsonl": None,
}


@pytest.mark.parametrize("stage", ["begun", "finished"])
@pytest.mark.parametrize("what", CHANGES)
def test_another_recipe_does_not_go_on(tmp_path, values, texts, tokenizer_folder, what, stage):
    copy(texts[0], tmp_path / "texts")
    source = {"name": "lines", "paths": [str(tmp_path / "texts" / "lines-*.jsonl")]}
    values = {**values, "sources": [source]}
    prepare_in(tmp_path / "prepared", values, **({"task_index": 0, "num_tasks": 1} if stage == "begun" else {}))
    if what == "tokenizer_sha256":
        tokenizer = load_tokenizer(tokenizer_folder)
        tokenizer.add_tokens(["<more>"])
        save_tokenizer(tokenizer, tmp_path / "tokenizer")
        changed = {"tokenizer": str(tmp_path / "tokenizer")}
    elif what == "lines-a.jsonl":
        with open(tmp_path / "texts" / what, "a") as file:
            file.write(json.dumps({"text": "one more"}) + "\n")
        changed = {}
    else:
        changed = CHANGES[what](values)
    expected = "have changed" if (what, stage) == ("lines-a.jsonl", "finished") else what
    with pytest.raises(UserError, match=expected) as raised:
        prepare_in(tmp_path / "prepared", {**values, **changed})
    assert "\n" not in str(raised.value)


def test_tokens_of_another_tokenizer_or_selection_are_refused(finished, values, tokenizer, tokenizer_folder):
    prepared = PreparedTokens(finished / "lines")
    recipe = build(PretrainRecipe, values, "test")
    other = load_tokenizer(tokenizer_folder)
    other.add_tokens(["<more>"])
    with pytest.raises(UserError, match="another tokenizer"):
        prepared.check(other, recipe_selection(recipe))
    recipe.held_out_share = 0.5
    with pytest.raises(UserError, match="held_out_share"):
        prepared.check(tokenizer, recipe_selection(recipe))


def test_too_many_bad_records_stop_the_run(tmp_path, values, finished):
    with pytest.raises(UserError, match=r"lines-b.jsonl, line 103: .*2 unreadable records.*max_bad_records \(1\)"):
        prepare_in(tmp_path, {**values, "max_bad_records": 1})
    prepare_in(tmp_path, {**values, "max_bad_records": 2})
    assert contents(tmp_path) == contents(finished)


def test_a_tokenizer_without_eos_is_refused(tmp_path, values, tokenizer_folder):
    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="EOS"):
        prepare_in(tmp_path / "prepared", {**values, "tokenizer": str(tmp_path / "tokenizer")})


@pytest.mark.parametrize(
    "changes", [{"task_index": 0}, {"task_index": 3, "num_tasks": 3}, {"num_proc": 0}, {"shard_tokens": 0}]
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        PrepareSettings(prepared_dir="x", **changes)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden"])
def test_a_source_name_that_is_no_folder_name_is_refused(tmp_path, values, name):
    with pytest.raises(UserError, match="folder"):
        prepare_in(tmp_path, {**values, "sources": [{**values["sources"][0], "name": name}]})


# ---------------------------------------------------------------------------------------------------------
# The script
# ---------------------------------------------------------------------------------------------------------


def test_the_script_writes_a_recipe_that_names_the_shards(tmp_path, values, texts, finished):
    copied = copy(finished / "rows", tmp_path / "earlier")
    ready = {"name": "earlier", "prepared": str(copied)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "sources": [*values["sources"], ready]}))
    folder = tmp_path / "prepared"
    sizes = [word for key, value in SIZES.items() for word in (f"--{key}", value)]
    run = ["scripts/prepare_data.py", "--config", recipe, "--prepared_dir", folder, *sizes]
    assert str(folder / "pretrain.yaml") in run_script(*run).stdout
    assert contents(folder) == contents(finished)
    (written,) = parse_recipe(PretrainRecipe, argv=["--config", str(folder / "pretrain.yaml")])
    lines, rows, earlier = written.sources
    assert (lines.prepared, lines.paths, lines.weight) == (str(folder / "lines"), None, 2.0)
    assert (rows.prepared, rows.filters, rows.max_documents, rows.max_epochs) == (str(folder / "rows"), {}, 390, 3)
    assert earlier == build(PretrainRecipe, {**values, "sources": [ready]}, "test").sources[0]
    assert written.held_out_share == 0.05

    refused = run_script(*run, "--held_out_share", "0.1", check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "held_out_share" in refused.stderr
