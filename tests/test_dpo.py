"""DPO on a tiny model: the reference is where the policy starts, the figures are log-probabilities of answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import launch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_chat import echo_rows, hedged_pairs, make_tokenizer, small_model, turns, write_rows
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from genesis_hf.chat import encode_conversation, prepare_for_chat
from genesis_hf.errors import UserError
from genesis_hf.post_training.dpo import parse_dpo_recipe, train_dpo
from genesis_hf.post_training.preference_figures import area_under_curve, correlation
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics

HELD_OUT = 23
"""Pairs; an odd number, so that two processes share them unevenly."""


def some_pairs(count: int, seed: int) -> list[dict]:
    """`hedged_pairs` with hedges of several lengths."""
    pairs = hedged_pairs(count, seed)
    for number, pair in enumerate(pairs):
        pair["rejected"] = "hello " * (number % 3) + pair["rejected"]
    return pairs


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that hasn't learned anything, and pairs."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, model = load_tokenizer(make_tokenizer(folder)), small_model()
    prepare_for_chat(model, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "train.jsonl", some_pairs(48, seed=1))
    write_rows(folder / "heldout.jsonl", some_pairs(HELD_OUT, seed=2))
    return folder


def arguments(chat: Path, output_dir: Path, **settings: Any) -> list[str]:
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
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run(chat: Path, output_dir: Path, **settings: Any) -> dict[str, Any] | None:
    return train_dpo(*parse_dpo_recipe(arguments(chat, output_dir, **settings)))


@pytest.fixture(scope="module")
def finished(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output_dir = tmp_path_factory.mktemp("dpo") / "run"
    return output_dir, run(chat, output_dir)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs whose log-probabilities are computed from now on, by batch: the reference's, and the held-out ones' end."""
    compute, batches = DPOTrainer.compute_ref_log_probs, []

    def counted(self: DPOTrainer, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(len(inputs["input_ids"]) // 2)
        return compute(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", counted)
    return batches


def answers_under(folder: Path, rows: list[dict]) -> np.ndarray:
    """(pairs, 2, 2) log-probability and tokens of chosen and rejected, computed one conversation at a time."""
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    figures = []
    for row in rows:
        answers = [row["chosen"][0]["content"], row["rejected"]]
        for answer in answers:
            encoded = encode_conversation(tokenizer, [*row["prompt"], {"role": "assistant", "content": answer}])
            ids, labels = torch.tensor([encoded.input_ids]), torch.tensor(encoded.labels)
            with torch.no_grad():
                logits = model(ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
            figures.append((-loss, int((labels != -100).sum())))
    return np.array(figures).reshape(len(rows), 2, 2)


def step_losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


# ---------------------------------------------------------------------------------------------------------
# The reference
# ---------------------------------------------------------------------------------------------------------


def assert_starts_at_the_reference(folder: Path) -> None:
    first = next(line for line in read_metrics(folder / "metrics.jsonl") if line["step"] == 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen", "rejected", "margins"):
        assert first[f"rewards/{name}"] == pytest.approx(0, abs=1e-5)


def test_the_first_step_is_at_the_reference(finished: tuple[Path, dict[str, Any]]) -> None:
    assert_starts_at_the_reference(finished[0])
    assert finished[1]["first_step"]["loss"] == step_losses(finished[0])[1]


def test_another_reference_is_refused(chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = DPOTrainer.compute_ref_log_probs

    def shifted(self: DPOTrainer, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = compute(self, model, inputs)
        return chosen + 1, rejected + 1  # which leaves loss and margin as they were

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", shifted)
    with pytest.raises(UserError, match="the reference is not the starting policy"):
        run(chat, tmp_path / "run", cache_dir=tmp_path)


def test_the_reference_is_computed_once(
    chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, scored: list[int]
) -> None:
    assert run(chat, tmp_path / "again")["held_out"] == finished[1]["held_out"]
    assert sum(scored) == HELD_OUT  # the trained policy alone


@pytest.mark.parametrize("what", ["model", "data", "precision"])
def test_a_changed_input_has_a_reference_of_its_own(
    what: str, chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, scored: list[int]
) -> None:
    changes: dict[str, Any] = {"max_steps": 1, "eval_mixture": "[]"}
    if what == "model":
        tokenizer, model = load_tokenizer(chat / "model"), AutoModelForCausalLM.from_pretrained(chat / "model")
        model.config.rms_norm_eps *= 10
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        changes["model"] = tmp_path / "model"
    elif what == "data":
        path = write_rows(tmp_path / "rows.jsonl", some_pairs(48, seed=5))
        changes["mixture"] = json.dumps([{"name": "direct", "paths": [path]}])
    else:
        changes["bf16"] = "true"
    run(chat, tmp_path / "run", **changes)
    assert sum(scored) == 48


def test_interrupted_computing_goes_on_where_it_was(
    chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, batches = DPOTrainer.compute_ref_log_probs, []

    def stopping(self: DPOTrainer, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(len(inputs["input_ids"]) // 2)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return compute(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(chat, tmp_path / "run", cache_dir=tmp_path)
    batches[:] = [0] * 3
    summary = run(chat, tmp_path / "run", cache_dir=tmp_path)
    assert sum(batches) == 48 - 2 * 8 + 2 * HELD_OUT
    assert summary["held_out"] == finished[1]["held_out"]


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:200] + b"\7" * 8 + data[208:]])
def test_a_damaged_cache_is_computed_again(
    damage: Callable[[bytes], bytes], chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(chat, tmp_path / "one", cache_dir=tmp_path, max_steps=1)
    for path in (tmp_path / "reference").glob("*.npz"):
        path.write_bytes(damage(path.read_bytes()))
    summary = run(chat, tmp_path / "two", cache_dir=tmp_path)
    assert summary["held_out"] == finished[1]["held_out"]


# ---------------------------------------------------------------------------------------------------------
# What is learned, and how it is measured
# ---------------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_ranked_better(finished: tuple[Path, dict[str, Any]]) -> None:
    held_out = finished[1]["held_out"]
    assert held_out["pairs"] == HELD_OUT
    assert held_out["implicit_reward"]["value"] > 0.9
    assert held_out["reward_margin"] > 0.1


def check_figures(chat: Path, folder: Path, summary: dict[str, Any]) -> None:
    """The summary's held-out figures are those of the two models as they lie on the disk."""
    rows = some_pairs(HELD_OUT, seed=2)
    scores = {}
    for moment, model in (("before", chat / "model"), ("after", folder / "final")):
        logps, tokens = np.moveaxis(answers_under(model, rows), 2, 0)
        scores[moment] = logps
        figures = summary["held_out"][moment]
        assert figures["log_probability_chosen"] == pytest.approx(logps[:, 0].mean(), abs=1e-3)
        assert figures["log_probability_rejected"] == pytest.approx(logps[:, 1].mean(), abs=1e-3)
        assert figures["ranked"]["value"] == pytest.approx((logps[:, 0] > logps[:, 1]).mean())
        means = logps / tokens
        assert figures["ranked_per_token"]["value"] == pytest.approx((means[:, 0] > means[:, 1]).mean())
        expected = np.corrcoef(logps[:, 0] - logps[:, 1], tokens[:, 0] - tokens[:, 1])[0, 1]
        assert figures["length_correlation"]["value"] == pytest.approx(expected, abs=1e-3)
    gains = scores["after"] - scores["before"]
    assert summary["held_out"]["implicit_reward"]["value"] == pytest.approx((gains[:, 0] > gains[:, 1]).mean())
    assert summary["held_out"]["reward_margin"] == pytest.approx(0.1 * (gains[:, 0] - gains[:, 1]).mean(), abs=1e-3)


def test_the_figures_are_log_probabilities_of_answer_and_stop_token(
    chat: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    check_figures(chat, *finished)


def test_adapters_start_at_the_reference_and_are_merged(chat: Path, tmp_path: Path, scored: list[int]) -> None:
    summary = run(chat, tmp_path / "run", use_peft="true", learning_rate=5e-2)
    assert_starts_at_the_reference(tmp_path / "run")
    check_figures(chat, tmp_path / "run", summary)
    assert summary["held_out"]["implicit_reward"]["value"] > 0.9
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_length_normalized_is_dpo_of_means_a_token(chat: Path, tmp_path: Path) -> None:
    settings = {"length_normalized": "true", "beta": 2, "eval_strategy": "steps", "eval_steps": 6}
    summary = run(chat, tmp_path / "run", **settings)
    assert_starts_at_the_reference(tmp_path / "run")
    rows = some_pairs(HELD_OUT, seed=2)
    before, after = (answers_under(folder, rows) for folder in (chat / "model", tmp_path / "run" / "final"))
    gains = (after[..., 0] - before[..., 0]) / after[..., 1]
    losses = np.logaddexp(0, -2 * (gains[:, 0] - gains[:, 1]))
    batches = [losses[start : start + 16].mean() for start in range(0, HELD_OUT, 16)]
    sizes = [len(losses[start : start + 16]) for start in range(0, HELD_OUT, 16)]
    logged = next(line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line)
    assert logged["step"] == summary["steps"] == 6
    assert min(batches) - 1e-3 < logged["eval_loss"] < max(batches) + 1e-3
    assert logged["eval_loss"] == pytest.approx(np.average(batches, weights=sizes), abs=0.02)
    assert logged["eval_loss"] < math.log(2) - 0.05


def test_a_falling_likelihood_is_said_once_and_the_run_goes_on(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    # The rejected answer holds the chosen one: pushed far enough, both become less likely.
    settings = {"learning_rate": 0.05, "num_train_epochs": 3, "max_displacement": 2.0, "beta": 1.0}
    summary = run(chat, tmp_path / "run", **settings)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "displacement"]
    assert summary["displacement"]["passed_at_step"] == event["step"] < summary["steps"] == 18
    assert summary["displacement"]["train"]["lowest"] < -2
    assert capsys.readouterr().out.count("have become less likely") == 1


def test_no_warning_where_chosen_answers_gain(finished: tuple[Path, dict[str, Any]]) -> None:
    displacement = finished[1]["displacement"]
    assert displacement["passed_at_step"] is None
    rewards = [line["rewards/chosen"] for line in read_metrics(finished[0] / "metrics.jsonl") if "loss" in line]
    assert displacement["train"]["last"] == pytest.approx(np.mean(rewards) / 0.1)


def test_lengths_count_what_is_too_long_too(chat: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": turns("a"), "chosen": "river stone walks", "rejected": "river"},
        {"prompt": turns("b"), "chosen": "river", "rejected": "river stone"},
        {"prompt": turns("c"), "chosen": "river " * 60, "rejected": "stone"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    summary = run(
        chat, tmp_path / "run", mixture=json.dumps([{"name": "x", "paths": [path]}]), eval_mixture="[]", max_steps=1
    )
    kept, everything = summary["lengths"]["kept"], summary["lengths"]["all"]
    assert (kept["pairs"], everything["pairs"]) == (2, 3)
    assert kept["chosen_is_longer"]["value"] == 0.5
    assert everything["chosen_is_longer"]["value"] == pytest.approx(2 / 3)
    assert everything["mean_tokens"]["chosen"] > 3 * kept["mean_tokens"]["chosen"]
    tokenizer = load_tokenizer(chat / "model")
    expected = np.mean([len(tokenizer(row["rejected"])["input_ids"]) + 1 for row in rows[:2]])
    assert kept["mean_tokens"]["rejected"] == expected


def test_sampled_answers_are_measured_before_and_after(chat: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "river"}, {"prompt": "stone"}])
    settings = {"sample_prompts": path, "sample_steps": 1, "sample_max_new_tokens": 5, "max_steps": 3}
    summary = run(chat, tmp_path / "run", learning_rate=0, **settings)
    sampled = summary["sampled"]
    assert sampled["prompts"] == 2
    assert sampled["before"] == sampled["after"]  # nothing was learned
    assert 1 <= sampled["before"]["answer_tokens"] <= 5
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum("stop_rate" in line for line in lines) == 4
    # The rewards stand on the training's own lines, whatever is logged between them.
    assert [sorted(name for name in line if "rewards" in name) != [] for line in lines] == [
        "loss" in line for line in lines
    ]


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_area_under_curve_is_the_share_of_pairs_ranked_right(items: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([float(s) for s, _ in items]), np.array([p for _, p in items])
    figure = area_under_curve(scores, positive)
    wins = [np.sign(a - b) / 2 + 0.5 for a in scores[positive] for b in scores[~positive]]
    assert figure["value"] == (pytest.approx(np.mean(wins)) if wins else None)


def test_a_correlation_with_what_is_constant_is_unknown() -> None:
    assert correlation(np.ones(5), np.arange(5))["value"] is None
    assert correlation(np.arange(5), -np.arange(5))["value"] == pytest.approx(-1)


# ---------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_same_run(chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    settings = {"save_steps": 4, "logging_steps": 3}
    whole = run(chat, tmp_path / "whole", **settings)
    run(chat, tmp_path / "run", **settings)
    for name in ("summary.json", "checkpoint-6/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    summary = run(chat, tmp_path / "run", **settings)
    for name in ("held_out", "first_step", "displacement"):
        assert summary[name] == whole[name]
    resumed, expected = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    for one, other in zip(*(read_metrics(tmp_path / n / "metrics.jsonl") for n in ("run", "whole")), strict=True):
        assert [one.get(key) for key in ("loss", "rewards/margins", "num_tokens")] == [
            other.get(key) for key in ("loss", "rewards/margins", "num_tokens")
        ]
    assert run(chat, tmp_path / "run", **settings)["already_finished"]


def test_going_on_from_another_model_is_refused(chat: Path, tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(chat / "model"), AutoModelForCausalLM.from_pretrained(chat / "model")
    for name in ("one", "other"):
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        if name == "one":
            run(chat, tmp_path / "run", model=tmp_path / "model", save_steps=4)
            (tmp_path / "run" / "summary.json").unlink()
            model.model.norm.weight.data += 0.01
    with pytest.raises(UserError, match="the model's files changed since this run began"):
        run(chat, tmp_path / "run", model=tmp_path / "model", save_steps=4)


@pytest.mark.parametrize("topology", ["ddp_2gpu", "fsdp2_2gpu"])
def test_two_processes_do_what_one_does(
    topology: str, chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    settings = {"per_device_train_batch_size": 4, "cache_dir": tmp_path / "cache"}
    launch(topology, "scripts/dpo.py", *arguments(chat, tmp_path / "run", **settings))
    assert_starts_at_the_reference(tmp_path / "run")
    assert step_losses(tmp_path / "run") == pytest.approx(step_losses(finished[0]), abs=1e-4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    check_figures(chat, tmp_path / "run", summary)
    assert summary["held_out"]["pairs"] == summary["held_out"]["implicit_reward"]["n"] == HELD_OUT


# ---------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------


def test_a_base_model_is_refused(chat: Path, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "base")
    load_tokenizer(chat / "made").save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="chat template"):
        run(chat, tmp_path / "run", model=tmp_path / "base")


def test_conversations_are_no_pairs(chat: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", echo_rows(3, seed=0))
    with pytest.raises(UserError, match=r"3 of 3 rows are malformed.*no chosen and rejected"):
        run(chat, tmp_path / "run", mixture=json.dumps([{"name": "x", "paths": [path]}]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precompute_ref_log_probs": "false"}, "the reference is the start"),
        ({"sync_ref_model": "true"}, "the reference is the start"),
        ({"length_normalized": "true", "loss_type": "ipo"}, "leave out loss_type"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, str], message: str, chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(chat, tmp_path / "run", **settings)
