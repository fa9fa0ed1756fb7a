"""SFT on a tiny model: data that adds up, a run that resumes, a folder that loads."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import VOCABULARY, echo_rows, make_tokenizer, small_model, turns, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from genesis_hf.chat import INPUT_MARK, encode_conversation
from genesis_hf.config import ConversationSource
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.mixture import mixture_table, read_mixture
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.post_training.order import LengthGroupedOrder
from genesis_hf.post_training.sft import encode_mixture, parse_sft_recipe, train_sft
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import MetricsWriter, read_metrics


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported base model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = load_tokenizer(make_tokenizer(folder))
    small_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "train.jsonl", echo_rows(96, seed=1))
    write_rows(folder / "heldout.jsonl", echo_rows(24, seed=2))
    return folder


def run(base: Path, output_dir: Path, **settings: Any) -> dict[str, Any] | None:
    values = {
        "model": base / "model",
        "output_dir": output_dir,
        "mixture": json.dumps([{"name": "echo", "paths": [f"{base}/train.jsonl"]}]),
        "eval_mixture": json.dumps([{"name": "echo", "paths": [f"{base}/heldout.jsonl"]}]),
        "learning_rate": 2e-2,
        "max_length": 64,
        "logging_steps": 1,
        "bf16": "false",
        "disable_tqdm": "true",
        **settings,
    }
    return train_sft(*parse_sft_recipe([word for key, value in values.items() for word in (f"--{key}", str(value))]))


def losses(output_dir: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(output_dir / "metrics.jsonl") if "loss" in record}


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two epochs, not interrupted."""
    output_dir = tmp_path_factory.mktemp("sft") / "run"
    return output_dir, run(base, output_dir, num_train_epochs=2)


# ---------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------


def test_held_out_answers_become_likelier(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    before, after = summary["held_out"]["before"], summary["held_out"]["after"]
    assert after["loss"] < before["loss"] - 1
    assert before["stderr"] > 0
    assert summary["steps"] == 24
    assert json.loads((finished[0] / "summary.json").read_text())["steps"] == 24


def test_the_final_folder_is_a_plain_llama_with_everything_inside(finished: tuple[Path, dict[str, Any]]) -> None:
    final = finished[0] / "final"
    config = json.loads((final / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert model.config.vocab_size == len(tokenizer) == VOCABULARY + 4
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == VOCABULARY + 1
    assert "generation" in tokenizer.chat_template
    messages = turns("hello", "river")
    assert tokenizer.apply_chat_template(messages)["input_ids"] == encode_conversation(tokenizer, messages).input_ids
    assert not list(final.parent.glob(".*"))


def test_the_held_out_loss_is_the_mean_over_trained_tokens(base: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    final = finished[0] / "final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), load_tokenizer(final)
    total, count = 0.0, 0
    for row in echo_rows(24, seed=2):
        ids, labels = (torch.tensor([x]) for x in encode_conversation(tokenizer, row["messages"]))
        with torch.no_grad():
            logits = model(ids).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], reduction="sum").item()
        count += int((labels != -100).sum())
    after = finished[1]["held_out"]["after"]
    assert after["tokens"] == count
    assert after["loss"] == pytest.approx(total / count, abs=1e-4)


def test_a_stopped_run_goes_on_to_the_same_losses(
    base: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MetricsWriter.write

    def write_and_stop(self: MetricsWriter, record: dict[str, Any]) -> None:
        write(self, record)
        if record["step"] == 15:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_and_stop)
        assert run(base, tmp_path / "run", num_train_epochs=2) is None
    assert not (tmp_path / "run/summary.json").exists()
    half_written = tmp_path / "run/checkpoint-99"
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text('{"global_step": 99')
    summary = run(base, tmp_path / "run", num_train_epochs=2)
    assert losses(tmp_path / "run") == losses(finished[0])
    assert summary["held_out"]["after"] == finished[1]["held_out"]["after"]


def test_a_finished_run_says_so_and_an_other_recipe_is_refused(
    base: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    output_dir, _ = finished
    assert run(base, output_dir, num_train_epochs=2)["already_finished"]
    with pytest.raises(UserError, match="differs in learning_rate, num_train_epochs"):
        run(base, output_dir, learning_rate=1e-3)
    with pytest.raises(UserError, match="not empty"):
        run(base, output_dir, num_train_epochs=2, resume_from_checkpoint="none")


def test_packed_conversations_do_not_see_each_other(base: Path, tmp_path: Path) -> None:
    alone = run(base, tmp_path / "alone", max_steps=1, learning_rate=0)
    packed = run(base, tmp_path / "packed", max_steps=1, learning_rate=0, packing="true")
    assert packed["held_out"]["before"]["loss"] == pytest.approx(alone["held_out"]["before"]["loss"], abs=1e-5)


def test_alpaca_trains_with_the_base_tokens(base: Path, tmp_path: Path) -> None:
    summary = run(base, tmp_path / "run", chat_format="alpaca", max_length=120, max_steps=1)
    tokenizer = load_tokenizer(tmp_path / "run/final")
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.eos_token == "</s>"
    assert summary["held_out"]["before"]["loss"] == pytest.approx(6.0, abs=0.3)  # ln 400


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "/nowhere/model"}, "no such folder"),
        ({"learning_rte": "1"}, "did you mean `learning_rate`"),
        ({"mixture": '[{"name": "a", "paths": ["/nowhere/*.jsonl"]}]'}, "no file matches"),
        ({"max_length": "5"}, "none of its 96 rows is usable .*too long"),
        ({"resume_from_checkpoint": "/nowhere"}, "not a complete checkpoint"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
    ],
)
def test_a_users_mistake_is_one_line(base: Path, tmp_path: Path, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        run(base, tmp_path / "run", **settings)
    assert not (tmp_path / "run/final").exists()


# ---------------------------------------------------------------------------------------------------------
# Rows, mixtures, order
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": turns("a", "b", system="s")}, turns("a", "b", system="s")),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, turns("a", "b")[1]]},
            turns("a", "b"),
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, turns("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, turns("a", "b")),
        ({"instruction": "a", "context": "c", "response": "b"}, turns(f"a{INPUT_MARK}c", "b")),
        ({"prompt": "a", "completion": "b"}, turns("a", "b")),
        ({"query": "a", "response": "b", "type": "x"}, turns("a", "b")),
    ],
)
def test_rows_that_people_have_become_messages(row: dict, expected: list) -> None:
    assert to_messages(row, input_mark=INPUT_MARK) == expected


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": turns("a")}, "ends without an answer"),
        ({"messages": turns("a", " ")}, "empty assistant turn"),
        ({"messages": [*turns("a"), *turns("a", "b")]}, "two user turns in a row"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown role 'narrator'"),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]}, "a system turn that is not the first"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "an assistant turn without a question"),
        ({"messages": turns("a", "\ud800")}, "a lone surrogate"),
        ({"messages": []}, "no turns"),
        ({"messages": "a"}, "not of the shape messages"),
        ({"messages": [{"role": "user"}]}, "not of the shape messages"),
        ({"instruction": "a", "output": None}, "a content that is not text"),
        ({"text": "a"}, "fits no known shape"),
    ],
)
def test_a_row_that_can_not_be_used_says_why(row: dict, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        to_messages(row)


def test_what_is_dropped_is_counted(base: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    rows = [
        {"messages": turns("hello", "river")},
        {"messages": turns("a")},
        {"messages": turns("a " * 99, "b")},
        {"x": 1},
    ]
    source = ConversationSource(name="mixed", paths=[write_rows(tmp_path / "rows.jsonl", rows)])
    tokenizer = load_tokenizer(finished[0] / "final")
    dataset, (report,) = encode_mixture(tokenizer, [source], max_length=64)
    ids, labels = encode_conversation(tokenizer, rows[0]["messages"])
    assert dataset[0] == {"input_ids": ids, "labels": labels, "length": len(ids)}
    assert (report.rows, report.examples, report.tokens) == (4, 1, len(ids))
    assert report.trained_tokens == len([label for label in labels if label != -100])
    assert report.dropped == {"ends without an answer": 1, "fits no known shape": 1, "too long": 1}
    assert "1 too long" in mixture_table([report])


def test_a_mixture_draws_what_it_says(tmp_path: Path) -> None:
    def source(name: str, **share: float) -> ConversationSource:
        return ConversationSource(name=name, paths=[str(tmp_path / f"{name}.jsonl")], **share)

    for name, count in (("a", 40), ("b", 30)):
        write_rows(tmp_path / f"{name}.jsonl", [{"messages": turns(f"{name} {i}", "x")} for i in range(count)])

    def counts(*sources: ConversationSource, seed: int = 0) -> list[int]:
        drawn = read_mixture(sources, seed)
        for _, rows in drawn:
            assert len({where for where, _ in rows}) == len(rows)
        return [len(rows) for _, rows in drawn]

    assert counts(source("a"), source("b", num_examples=7)) == [40, 7]
    assert counts(source("a", weight=3), source("b", weight=1)) == [40, 13]
    assert counts(source("a", weight=1), source("b", weight=1)) == [30, 30]
    a = source("a", num_examples=9)
    assert read_mixture([a], seed=1) == read_mixture([a], seed=1) != read_mixture([a], seed=2)
    with pytest.raises(UserError, match="num_examples is 41, but it has 40 rows"):
        read_mixture([source("a", num_examples=41)], seed=0)
    with pytest.raises(UserError, match="a name twice"):
        read_mixture([source("a"), source("a")], seed=0)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n{"messages": [\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2: not valid JSON"):
        read_mixture([ConversationSource(name="bad", paths=[str(tmp_path / "bad.jsonl")])], seed=0)


@given(st.lists(st.integers(1, 100), max_size=200), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(lengths: list[int], batch_size: int, epoch: int) -> None:
    order, again = LengthGroupedOrder(lengths, batch_size, seed=3), LengthGroupedOrder(lengths, batch_size, seed=3)
    order.set_epoch(epoch)
    again.set_epoch(epoch)
    rows = list(order)
    assert sorted(rows) == list(range(len(lengths)))
    assert rows == list(again)
    order.set_epoch(epoch + 1)
    assert len(lengths) < 30 or rows != list(order)


def test_batches_hold_rows_of_like_length() -> None:
    lengths = torch.randint(1, 200, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = list(LengthGroupedOrder(lengths, 8, seed=0))
    batches = [[lengths[row] for row in rows[i : i + 8]] for i in range(0, 800, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest, reverse=True)
