"""What a run does about its data: unreadable records, dry sources, held-out documents, declared changes."""

import hashlib
import json

import numpy as np
import pytest
import torch
from conftest import launch, run_script
from small_data import write_jsonl
from small_runs import losses, write_recipe
from test_pretrain import assert_same_run, train, values, weights  # noqa: F401

from genesis_hf.checkpoint.folders import complete_checkpoints, read_trainer_state
from genesis_hf.config import PretrainRecipe, build
from genesis_hf.data.selection import Selection
from genesis_hf.data.stream import PackedStream
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics


def small_blocks(values):  # noqa: F811
    return {**values, "shuffle_block": 16, "shuffle_rows": 8, "eval_sources": []}


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_too_many_unreadable_records_end_the_run_at_a_good_checkpoint(values, corpus, tmp_path):  # noqa: F811
    lines = (corpus / "prose.jsonl").read_text().splitlines()
    for number in (30, 32, 34, 300):
        lines[number] = '{"text": ' + str(number) + "}"
    path = tmp_path / "prose.jsonl"
    path.write_text("\n".join(lines) + "\n")
    values = {**small_blocks(values), "sources": [{"name": "prose", "paths": [str(path)]}]}
    recipe = write_recipe({**values, "max_bad_records": 2}, tmp_path / "r.yaml")
    stopped = run_script("scripts/pretrain.py", "--config", recipe, check=False)
    assert stopped.returncode == 2
    last = stopped.stderr.strip().splitlines()[-1]
    assert "prose.jsonl, line 35: 'text' is int, not text; unreadable records: 3, max_bad_records: 2" in last
    assert "The run stopped after step" in last
    assert "Traceback" not in stopped.stderr
    reached = read_trainer_state(complete_checkpoints(values["output_dir"])[0])["step"]
    assert 0 < reached < 12
    # with a higher limit the same run goes on, and ends like one that had it from the start
    train(values, max_bad_records=3)
    train(values, max_bad_records=3, output_dir=str(tmp_path / "whole"))
    assert_same_run(values["output_dir"], tmp_path / "whole")
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()]
    assert [record["where"] for record in bad] == [f"{path}, line {number}" for number in (31, 33, 35)]
    assert read_metrics(f"{values['output_dir']}/metrics.jsonl")[-1]["records"]["prose"]["bad"] == 3


def test_a_file_that_vanishes_is_reported_and_the_run_goes_on(values, corpus, tmp_path):  # noqa: F811
    prose = texts_of(corpus / "prose.jsonl")
    for number in range(20):
        write_jsonl(tmp_path / "data" / f"part{number:02}.jsonl", prose[10 * number : 10 * number + 10])
    values = {**small_blocks(values), "sources": [{"name": "prose", "paths": [str(tmp_path / "data/*.jsonl")]}]}
    recipe = build(PretrainRecipe, values, "test")
    stream = PackedStream.from_recipe(recipe, load_tokenizer(values["tokenizer"]), 4)
    next(stream)
    (tmp_path / "data" / "part19.jsonl").unlink()
    while not stream.bad_records:
        next(stream)
    assert "part19.jsonl" in stream.bad_records[0][1].where
    next(stream)


def test_the_first_repeated_document_is_reported_with_its_step(values, corpus, tmp_path, capfd):  # noqa: F811
    path = write_jsonl(tmp_path / "small.jsonl", texts_of(corpus / "prose.jsonl")[:30])
    values = {**small_blocks(values), "sources": [{"name": "small", "paths": [path]}]}
    train(values, stop_at_step=6)
    train(values)
    state = read_trainer_state(complete_checkpoints(values["output_dir"])[0])
    step = state["repeated_since"]["small"]
    assert f"step {step:,}: source small repeats" in capfd.readouterr().out
    stream = PackedStream.from_recipe(build(PretrainRecipe, values, "test"), load_tokenizer(values["tokenizer"]), 4)
    passes = [next(stream)[1]["epochs"]["small"] for _ in range(12)]
    assert passes.index(1) + 1 == step


def test_a_run_whose_data_ends_says_so_and_keeps_its_last_step(values, corpus, tmp_path, capfd):  # noqa: F811
    path = write_jsonl(tmp_path / "small.jsonl", texts_of(corpus / "prose.jsonl")[:30])
    values = {**small_blocks(values), "sources": [{"name": "small", "paths": [path]}], "when_dry": "stop"}
    folder = train(values)
    said = capfd.readouterr().out
    step = read_trainer_state(folder)["step"]
    assert f"the data has run dry after step {step} of 12" in said
    assert "no document of any source came twice" in said
    ids = sum(len(row) + 1 for row in load_tokenizer(values["tokenizer"])(texts_of(tmp_path / "small.jsonl")).input_ids)
    assert read_trainer_state(folder)["tokens_seen"] == ids
    assert train(values) == folder


def test_documents_held_out_by_hash_are_measured_and_never_trained_on(values, corpus):  # noqa: F811
    values = {**small_blocks(values), "held_out_share": 0.2}
    train(values)
    found = read_metrics(f"{values['output_dir']}/metrics.jsonl")[-1]
    assert set(found["held_out"]) == {"prose", "code"}
    assert found["records"]["prose"]["held_out"] > 0
    files = list((complete_checkpoints(values["output_dir"])[0].parents[1] / "held_out").iterdir())
    held_out = [text for file in files for text in texts_of(file)]
    selection = Selection(0.2)
    assert held_out
    assert all(selection.use(text) == "held_out" for text in held_out)


def test_documents_of_eval_sources_are_left_out(values, corpus, tmp_path):  # noqa: F811
    prose = texts_of(corpus / "prose.jsonl")
    shared = write_jsonl(tmp_path / "shared.jsonl", prose[:50])
    values = {**small_blocks(values), "eval_sources": [{"name": "shared", "paths": [shared]}], "eval_rows": 2}
    train(values, max_steps=4, warmup_steps=0)
    assert read_metrics(f"{values['output_dir']}/metrics.jsonl")[-1]["records"]["prose"]["excluded"] > 0


def test_a_branch_with_new_weights_is_exact(values, tmp_path):  # noqa: F811
    values = small_blocks(values)
    train(values, stop_at_step=4)
    trunk = complete_checkpoints(values["output_dir"])[0]
    change = {"data_changes": [{"step": 6, "weights": {"prose": 0.1, "code": 0.9}, "seed": 7}]}
    train(values, resume_from_checkpoint=str(trunk), output_dir=str(tmp_path / "branch"), **change)
    train(values, output_dir=str(tmp_path / "whole"), **change)
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "branch") == {step: whole[step] for step in range(5, 13)}
    mine, theirs = weights(tmp_path / "branch"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(UserError, match=r"data_changes before row 48 were \[\[24,"):
        train(values, resume_from_checkpoint=str(tmp_path / "branch"), output_dir=str(tmp_path / "other"), max_steps=16)


def test_best_fit_says_what_it_cost(values, capfd):  # noqa: F811
    train(values, packing="best_fit", max_steps=4, warmup_steps=0)
    records = read_metrics(f"{values['output_dir']}/metrics.jsonl")[-1]["records"]
    counts = {k: sum(r[k] for r in records.values()) for k in ("padding", "rows", "truncated", "packed")}
    assert 0 < counts["padding"] / counts["rows"] / 64 < 0.1
    assert f"best_fit: {counts['padding'] / counts['rows'] / 64:.2%} padding, " in capfd.readouterr().out


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_change_no_number(values, tmp_path, workers):  # noqa: F811
    train(values, output_dir=str(tmp_path / "one"), max_steps=4)
    train(values, output_dir=str(tmp_path / "other"), max_steps=4, dataloader_num_workers=workers)
    assert losses(tmp_path / "one") == losses(tmp_path / "other")


# ---------------------------------------------------------------------------------------------------------
# inspect_data.py
# ---------------------------------------------------------------------------------------------------------


def inspected(recipe, *arguments):
    found = run_script("scripts/inspect_data.py", "--config", recipe, "--format", "jsonl", *arguments)
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_inspect_data_shows_the_rows_that_training_gets(values, tmp_path):  # noqa: F811
    recipe = write_recipe(values, tmp_path / "r.yaml")
    stream = PackedStream.from_recipe(build(PretrainRecipe, values, "test"), load_tokenizer(values["tokenizer"]), 4)
    ids = np.concatenate([next(stream)[0].input_ids.numpy() for _ in range(6)]).astype("<i4")
    hashes = [hashlib.sha256(row.tobytes()).hexdigest() for row in ids]
    rows = inspected(recipe, "--num_rows", 24)
    assert [row["index"] for row in rows] == list(range(24))
    assert [row["sha256"] for row in rows] == hashes
    assert all(sum(row["tokens_by_source"].values()) == 64 and row["documents"] >= 1 for row in rows)
    mine = inspected(recipe, "--num_rows", 5, "--start", 4, "--rank", 2, "--world_size", 3)
    assert [row["index"] for row in mine] == [5, 8, 11, 14, 17]
    assert [row["sha256"] for row in mine] == [hashes[row["index"]] for row in mine]
    # from a checkpoint of the run it is the same
    train(values, max_steps=4)
    assert inspected(recipe, "--num_rows", 3, "--start", 18) == rows[18:21]
    text = run_script("scripts/inspect_data.py", "--config", recipe, "--num_rows", 2).stdout
    assert text.count("━━━ row") == 2
    assert text.count("─── document") == rows[0]["documents"] + rows[1]["documents"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_rows", "0"], "num_rows must be above 0"),
        (["--rank", "2", "--world_size", "2"], "rank must lie between 0 and world_size - 1"),
        (["--start", "1000000", "--when_dry", "stop"], "the data ends before row 1,000,000"),
        (["--num_rwos", "2"], "did you mean `num_rows`"),
    ],
)
def test_inspect_data_names_a_mistake(values, tmp_path, arguments, words):  # noqa: F811
    recipe = write_recipe(values, tmp_path / "r.yaml")
    found = run_script("scripts/inspect_data.py", "--config", recipe, *arguments, check=False)
    assert found.returncode == 2
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_two_processes_that_run_into_bad_data_save_and_leave_together(values, corpus, tmp_path):  # noqa: F811
    lines = (corpus / "prose.jsonl").read_text().splitlines()
    lines[60] = "{"
    path = tmp_path / "prose.jsonl"
    path.write_text("\n".join(lines) + "\n")
    values = {**small_blocks(values), "sources": [{"name": "prose", "paths": [str(path)]}], "num_processes": 1}
    recipe = write_recipe({**values, "max_bad_records": 0}, tmp_path / "r.yaml")
    stopped = launch("fsdp2_2gpu", "scripts/pretrain.py", "--config", recipe, check=False)
    assert stopped.returncode != 0
    assert "prose.jsonl, line 61: not valid JSON" in stopped.stderr
    assert complete_checkpoints(values["output_dir"])
