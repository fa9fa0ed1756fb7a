"""KTO on a tiny model: good and bad answers, no pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_chat import hedged_pairs, make_tokenizer, small_model, write_rows
from transformers import AutoModelForCausalLM
from trl import KTOConfig

from genesis_hf.chat import encode_conversation, prepare_for_chat
from genesis_hf.errors import UserError
from genesis_hf.post_training.kto import balance, parse_kto_recipe, train_kto, with_mismatched_answers
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics


def labelled_rows(count: int, seed: int) -> list[dict]:
    """Answers without a hedge are good."""
    rows = []
    for number, pair in enumerate(hedged_pairs(count, seed)):
        good = number % 2 == 0
        answer = pair["chosen"][0]["content"] if good else pair["rejected"]
        rows.append({"messages": [*pair["prompt"], {"role": "assistant", "content": answer}], "label": good})
    return rows


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that hasn't learned anything, and labelled answers."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, model = load_tokenizer(make_tokenizer(folder)), small_model()
    prepare_for_chat(model, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "train.jsonl", labelled_rows(96, seed=1))
    write_rows(folder / "heldout.jsonl", labelled_rows(23, seed=2))
    return folder


def run(chat: Path, output_dir: Path, **settings: Any) -> dict[str, Any] | None:
    values = {
        "model": chat / "model",
        "output_dir": output_dir,
        "cache_dir": chat / "cache",
        "mixture": json.dumps([{"name": "direct", "paths": [f"{chat}/train.jsonl"]}]),
        "eval_mixture": json.dumps([{"name": "direct", "paths": [f"{chat}/heldout.jsonl"]}]),
        "drop_duplicates": "false",
        "learning_rate": 5e-3,
        "max_length": 64,
        "logging_steps": 1,
        "bf16": "false",
        "disable_tqdm": "true",
        **settings,
    }
    return train_kto(*parse_kto_recipe([word for key, value in values.items() for word in (f"--{key}", str(value))]))


@pytest.fixture(scope="module")
def finished(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output_dir = tmp_path_factory.mktemp("kto") / "run"
    return output_dir, run(chat, output_dir, eval_strategy="steps", eval_steps=12)


def answer_log_probabilities(folder: Path, rows: list[dict]) -> np.ndarray:
    """(rows,) computed one conversation at a time."""
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for row in rows:
        encoded = encode_conversation(tokenizer, row["messages"])
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0, :-1]
        labels = torch.tensor(encoded.labels)[1:]
        found.append(-torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item())
    return np.array(found)


def test_the_first_step_is_at_the_reference(finished: tuple[Path, dict[str, Any]]) -> None:
    first = next(line for line in read_metrics(finished[0] / "metrics.jsonl") if line["step"] == 1)
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "kl"):
        assert first[name] == pytest.approx(0, abs=1e-4)
    assert finished[1]["first_step"]["loss"] == first["loss"]


def test_held_out_answers_get_the_sign_of_their_label(chat: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    held_out, rows = finished[1]["held_out"], labelled_rows(23, seed=2)
    before, after = (answer_log_probabilities(f, rows) for f in (chat / "model", finished[0] / "final"))
    gains, good = after - before, np.array([row["label"] for row in rows])
    assert held_out["sign"]["value"] == pytest.approx(((gains > 0) == good).mean())
    auc = (np.sign(gains[good][:, None] - gains[~good]) / 2 + 0.5).mean()
    assert held_out["auc"]["value"] == pytest.approx(auc)
    assert auc > 0.9
    assert held_out["desirable"]["log_probability_after"] == pytest.approx(after[good].mean(), abs=1e-3)
    assert held_out["undesirable"]["log_probability_before"] == pytest.approx(before[~good].mean(), abs=1e-3)
    assert (held_out["answers"], held_out["desirable"]["answers"]) == (23, 12)
    assert any("eval_loss" in line for line in read_metrics(finished[0] / "metrics.jsonl"))


def test_a_pair_is_a_good_and_a_bad_answer(chat: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", hedged_pairs(16, seed=3))
    mixture = json.dumps([{"name": "pairs", "paths": [path]}])
    summary = run(chat, tmp_path / "run", mixture=mixture, eval_mixture=mixture, max_steps=1)
    assert (summary["balance"]["desirable"], summary["balance"]["undesirable"]) == (16, 16)
    assert summary["held_out"]["answers"] == 32


def test_a_resumed_run_is_the_same_run(chat: Path, tmp_path: Path) -> None:
    settings = {"save_steps": 5, "logging_steps": 4}
    whole = run(chat, tmp_path / "whole", **settings)
    run(chat, tmp_path / "run", **settings)
    for name in ("summary.json", f"checkpoint-{whole['steps']}/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    assert run(chat, tmp_path / "run", **settings)["held_out"] == whole["held_out"]
    resumed, expected = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(2, 6))
def test_a_mismatched_answer_is_another_prompts_of_the_same_batch(prompts: list[int], batch_size: int) -> None:
    columns = {"prompt_ids": [[p] for p in prompts], "completion_ids": [[100 + i] for i in range(len(prompts))]}
    rows = with_mismatched_answers(Dataset.from_dict(columns), batch_size)
    for i, row in enumerate(rows):
        assert (row["prompt_ids"], row["completion_ids"]) == ([prompts[i]], [100 + i])
        other = row["KL_completion_ids"][0] - 100
        batch = range(i - i % batch_size, min(i - i % batch_size + batch_size, len(prompts)))
        assert other in batch
        if any(prompts[j] != prompts[i] for j in batch):
            assert prompts[other] != prompts[i]


@pytest.mark.parametrize(
    ("good", "bad", "desirable_weight", "expected"),
    [
        (4, 4, 1.0, None),
        (4, 3, 1.0, None),
        (1, 2, 2.0, None),
        (5, 3, 1.0, "between 0.60 and 0.80"),
        (1, 3, 1.0, "3.00"),
    ],
)
def test_imbalance_is_said_with_weights_that_mend_it(
    good: int, bad: int, desirable_weight: float, expected: str | None, tmp_path: Path
) -> None:
    training = KTOConfig(str(tmp_path), desirable_weight=desirable_weight, use_cpu=True, bf16=False)
    advice = balance([True] * good + [False] * bad, training)["advice"]
    assert (advice is None) if expected is None else (expected in advice)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, "must be at least 2"),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy: leave it out"),
        ({"precompute_ref_log_probs": "false"}, "the reference is the start"),
    ],
)
def test_settings_under_which_kto_does_not_work_are_refused(
    settings: dict[str, Any], message: str, chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(chat, tmp_path / "run", **settings)


def test_good_answers_alone_are_refused(chat: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row for row in labelled_rows(8, seed=4) if row["label"]])
    with pytest.raises(UserError, match="there are 4 and 0"):
        run(chat, tmp_path / "run", mixture=json.dumps([{"name": "x", "paths": [path]}]))
