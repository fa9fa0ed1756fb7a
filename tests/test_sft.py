"""SFT on a tiny model: a run that resumes to the last bit, packing that changes nothing, a folder that loads."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import VOCABULARY, echo_rows, small_model, turns, write_rows
from tiny_sft import make_base, metrics, run, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from genesis_hf.chat import encode_conversation, encode_prompt, prepare_for_chat
from genesis_hf.conversations.packing import PackedConversations
from genesis_hf.errors import UserError
from genesis_hf.post_training.conversation_trainer import Collator, ConversationTrainer, TrainingRows
from genesis_hf.post_training.order import LengthGroupedOrder
from genesis_hf.post_training.run import RunCallback
from genesis_hf.post_training.scoring import score_answers
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two epochs, not interrupted, with held-out conversations of an odd number."""
    output_dir = tmp_path_factory.mktemp("sft") / "run"
    return output_dir, run(base, output_dir)


# ---------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------


def test_held_out_answers_become_likelier(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    before, after = summary["held_out"]["before"], summary["held_out"]["after"]
    assert after["loss"] < before["loss"] - 1
    assert before["stderr"] > 0
    assert summary["steps"] == 22
    assert json.loads((finished[0] / "summary.json").read_text())["steps"] == 22


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
    sums, counts = [], []
    rows = {json.dumps(row): row for row in echo_rows(23, seed=2)}  # duplicates count once
    for row in rows.values():
        ids, labels = (torch.tensor([x]) for x in encode_conversation(tokenizer, row["messages"])[:2])
        with torch.no_grad():
            logits = model(ids).logits[:, :-1]
        sums.append(torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], reduction="sum").item())
        counts.append(int((labels != -100).sum()))
    after, (s, n) = finished[1]["held_out"]["after"], np.array([sums, counts])
    loss = s.sum() / n.sum()
    assert after["tokens"] == n.sum()
    assert after["loss"] == pytest.approx(loss, abs=1e-4)
    assert after["stderr"] == pytest.approx((s - loss * n).std(ddof=1) / n.mean() / len(n) ** 0.5, rel=1e-3)


def test_a_run_goes_on_to_the_same_bits_from_wherever_it_was_left(
    base: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to leave between two logged steps; killed between saves; killed while it saves, in the last epoch."""
    output_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", stopping(RunCallback.on_step_end, 5, ask_to_stop))
        assert run(base, output_dir) is None
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-5"]
    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", stopping(RunCallback.on_step_end, 9, die))
        with pytest.raises(Killed):
            run(base, output_dir)
    with monkeypatch.context() as patch:
        patch.setattr(ConversationTrainer, "_save_scaler", stopping(ConversationTrainer._save_scaler, 14, die))
        with pytest.raises(Killed):
            run(base, output_dir)
    assert not (output_dir / "checkpoint-14").exists()
    assert not (output_dir / "summary.json").exists()
    half_deleted = output_dir / "checkpoint-99"
    half_deleted.mkdir()
    (half_deleted / "trainer_state.json").write_text('{"global_step": 99}')
    summary = run(base, output_dir)
    assert metrics(output_dir) == metrics(finished[0])
    assert summary["held_out"] == finished[1]["held_out"]
    assert weights(output_dir) == weights(finished[0])
    assert not list(output_dir.glob(".*"))


class Killed(BaseException):
    """The end of a process, as far as a test can go."""


def die() -> None:
    raise Killed


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stopping(method: Callable, step: int, stop: Callable[[], None]) -> Callable:
    """The method of a callback or trainer, stopped before it does anything at one step."""

    def stopped(self: Any, *arguments: Any, **keywords: Any) -> Any:
        trainer = getattr(self, "trainer", self)
        if trainer.state.global_step == step:
            stop()
        return method(self, *arguments, **keywords)

    return stopped


def test_a_finished_run_says_so_and_an_other_recipe_is_refused(
    base: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    output_dir, _ = finished
    assert run(base, output_dir)["already_finished"]
    with pytest.raises(UserError, match="differs in learning_rate, num_train_epochs"):
        run(base, output_dir, learning_rate=1e-3, num_train_epochs=1)
    with pytest.raises(UserError, match="not empty"):
        run(base, output_dir, resume_from_checkpoint="none")


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
        ({"max_length": "5"}, "none of its 96 rows is usable"),
        ({"resume_from_checkpoint": "/nowhere"}, "not a complete checkpoint"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"packing": "true", "packing_strategy": "wrapped"}, "packing_strategy: wrapped lets conversations see"),
        ({"assistant_only_loss": "true"}, "what is trained follows from the chat format"),
        ({"loss_type": "dft"}, "loss_type: dft is not supported"),
        ({"sample_steps": "1", "sample_max_new_tokens": "128"}, "no room for a prompt"),
        ({"sample_steps": "1", "sample_max_new_tokens": "9", "sample_prompts": "/nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_a_users_mistake_is_one_line(base: Path, tmp_path: Path, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        run(base, tmp_path / "run", **settings)
    assert not (tmp_path / "run/final").exists()


# ---------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------


def batches(packed: bool, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """The same eight conversations in a row each, or packed into three."""
    encoded = [encode_conversation(tokenizer, row["messages"]) for row in echo_rows(8, seed=3)]
    columns = {"input_ids": [e.input_ids for e in encoded], "labels": [e.labels for e in encoded]}
    dataset = Dataset.from_dict({**columns, "length": [len(e.input_ids) for e in encoded]})
    rows = PackedConversations(dataset, 64) if packed else TrainingRows(dataset, 0)
    assert len(rows) == (3 if packed else 8)
    batch = Collator(0, packed)([rows[number] for number in range(len(rows))])
    assert batch.pop("num_tokens") == sum(dataset["length"])
    return batch


@pytest.mark.parametrize("tied", [True, False])
def test_packed_conversations_give_the_loss_and_gradients_of_single_ones(base: Path, tied: bool) -> None:
    """And both those of plain logits."""
    tokenizer, results = load_tokenizer(base / "model"), []
    model = LlamaForCausalLM(small_model(tied).config)
    prepare_for_chat(model, tokenizer)
    single, packed = batches(False, tokenizer), batches(True, tokenizer)
    logits = model(single["input_ids"]).logits[:, :-1]
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), single["labels"][:, 1:].flatten(), reduction="sum")
    score_answers(model)
    by_mask = model(**packed)["loss"]
    model.set_attn_implementation("documents")
    for loss in (total, model(**single)["loss"], by_mask, model(**packed)["loss"]):
        model.zero_grad()
        loss.backward()
        results.append({"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}})
    for other in results[1:]:
        for name, value in other.items():
            torch.testing.assert_close(value, results[0][name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        rows = model(**single)
    assert rows["tokens"].tolist() == (single["labels"][:, 1:] != -100).sum(dim=1).tolist()
    torch.testing.assert_close(rows["losses"].sum(), total.detach())


def test_the_logits_of_a_conversation_do_not_depend_on_its_neighbours(base: Path) -> None:
    tokenizer = load_tokenizer(base / "model")
    model = small_model()
    prepare_for_chat(model, tokenizer)
    model.eval()
    batch = batches(True, tokenizer)
    inputs = {name: batch[name][:1] for name in ("input_ids", "position_ids")}
    begins = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
    second = slice(begins[1], begins[2])
    changed = inputs["input_ids"].clone()
    changed[:, : second.start] = changed[:, : second.start].flip(1)
    changed[:, second.stop :] = 7
    with torch.no_grad():
        before, after = (
            model(ids, position_ids=inputs["position_ids"], use_cache=False).logits[0, second]
            for ids in (inputs["input_ids"], changed)
        )
        alone = model(inputs["input_ids"][:, second]).logits[0]
    assert torch.equal(before, after)
    torch.testing.assert_close(before, alone, rtol=1e-5, atol=1e-6)


def test_a_packed_run_learns_and_reads_every_token(base: Path, tmp_path: Path) -> None:
    summary = run(
        base, tmp_path / "run", packing="true", logging_steps=1, num_train_epochs=1, per_device_train_batch_size=2
    )
    assert summary["held_out"]["after"]["loss"] < summary["held_out"]["before"]["loss"] - 1
    logged = [record for record in read_metrics(tmp_path / "run/metrics.jsonl") if "num_tokens" in record]
    assert logged[-1]["num_tokens"] == sum(source["tokens"] for source in summary["mixture"])


# ---------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------


def test_sample_answers_are_the_models_own_and_change_nothing(
    base: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("hello", "river stone there")])
    settings = {"sample_prompts": prompts, "sample_steps": 2, "sample_max_new_tokens": 12}
    run(base, tmp_path / "run", **settings, eval_strategy="steps", eval_steps=4)
    assert metrics(tmp_path / "run") == metrics(finished[0])
    assert weights(tmp_path / "run") == weights(finished[0])
    records = read_metrics(tmp_path / "run/samples.jsonl")
    assert [record["step"] for record in records] == list(range(2, 23, 2))
    samples = records[-1]["samples"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run/final"),
        load_tokenizer(tmp_path / "run/final"),
    )
    for sample in samples:
        ids = torch.tensor([encode_prompt(tokenizer, sample["prompt"])])
        with torch.no_grad():
            new = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        assert sample["stopped"] == (tokenizer.eos_token_id in new)
        assert sample["answer"] == tokenizer.decode(
            new[: new.index(tokenizer.eos_token_id)] if sample["stopped"] else new
        )
    rates = [r["stop_rate"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "stop_rate" in r]
    assert rates == [sum(s["stopped"] for s in record["samples"]) / 2 for record in records]


# ---------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------


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
