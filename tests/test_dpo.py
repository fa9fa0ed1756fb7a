"""DPO on a tiny model: the reference is where the policy starts, the tokens are those of SFT."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import echo_rows, hedged_pairs, make_tokenizer, small_model, turns, write_rows
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOTrainer

from genesis_hf.chat import encode_conversation, encode_prompt, prepare_for_chat
from genesis_hf.config import ConversationSource
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.preferences import to_pair
from genesis_hf.errors import UserError
from genesis_hf.post_training.dpo import encode_preferences, parse_dpo_recipe, train_dpo
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.training.metrics import read_metrics


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that hasn't learned anything, and pairs."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, model = load_tokenizer(make_tokenizer(folder)), small_model()
    prepare_for_chat(model, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "train.jsonl", hedged_pairs(48, seed=1))
    write_rows(folder / "heldout.jsonl", hedged_pairs(24, seed=2))
    return folder


def run(chat: Path, output_dir: Path, **settings: Any) -> dict[str, Any] | None:
    values = {
        "model": chat / "model",
        "output_dir": output_dir,
        "mixture": json.dumps([{"name": "direct", "paths": [f"{chat}/train.jsonl"]}]),
        "eval_mixture": json.dumps([{"name": "direct", "paths": [f"{chat}/heldout.jsonl"]}]),
        "learning_rate": 5e-3,
        "max_length": 64,
        "logging_steps": 1,
        "bf16": "false",
        "disable_tqdm": "true",
        **settings,
    }
    return train_dpo(*parse_dpo_recipe([word for key, value in values.items() for word in (f"--{key}", str(value))]))


@pytest.fixture(scope="session")
def finished(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output_dir = tmp_path_factory.mktemp("dpo") / "run"
    return output_dir, run(chat, output_dir)


def log_probability(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, messages: list) -> float:
    ids, labels = (torch.tensor([x]) for x in encode_conversation(tokenizer, messages))
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return -torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()


def test_the_first_step_is_at_the_reference(finished: tuple[Path, dict[str, Any]]) -> None:
    first = next(record for record in read_metrics(finished[0] / "metrics.jsonl") if record["step"] == 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert finished[1]["first_step"] == {"loss": first["loss"], "margin": first["rewards/margins"]}


def test_held_out_pairs_are_ranked_better(finished: tuple[Path, dict[str, Any]]) -> None:
    held_out = finished[1]["held_out"]
    assert held_out["pairs"] == 24
    assert held_out["implicit_reward"]["value"] > 0.9
    assert held_out["reward_margin"] > 0.1
    assert held_out["mean_tokens"]["rejected"] > held_out["mean_tokens"]["chosen"]


def test_the_figures_are_log_probabilities_of_answer_and_stop_token(
    chat: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    tokenizer = load_tokenizer(chat / "model")
    for moment, folder in (("before", chat / "model"), ("after", finished[0] / "final")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        chosen, rejected = [], []
        for row in hedged_pairs(24, seed=2):
            chosen.append(log_probability(model, tokenizer, [*row["prompt"], *row["chosen"]]))
            answer = {"role": "assistant", "content": row["rejected"]}
            rejected.append(log_probability(model, tokenizer, [*row["prompt"], answer]))
        figures = finished[1]["held_out"][moment]
        assert figures["log_probability_chosen"] == pytest.approx(sum(chosen) / 24, abs=1e-3)
        assert figures["log_probability_rejected"] == pytest.approx(sum(rejected) / 24, abs=1e-3)
        right = sum(c > r for c, r in zip(chosen, rejected, strict=True)) / 24
        assert figures["ranked"]["value"] == pytest.approx(right)


def test_another_reference_is_refused(chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = DPOTrainer.compute_ref_log_probs

    def shifted(self: DPOTrainer, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = compute(self, model, inputs)
        return chosen + 5, rejected

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", shifted)
    pairs = write_rows(tmp_path / "pairs.jsonl", hedged_pairs(16, seed=3))  # none that TRL has in its cache
    with pytest.raises(UserError, match="the reference is not the starting policy"):
        run(chat, tmp_path / "run", mixture=json.dumps([{"name": "direct", "paths": [pairs]}]))


def test_a_resumed_run_is_the_same_run(chat: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run(chat, tmp_path / "run", save_steps=4)
    for name in ("summary.json", "checkpoint-6/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    summary = run(chat, tmp_path / "run", save_steps=4)
    assert summary["held_out"] == finished[1]["held_out"]
    assert summary["first_step"] == finished[1]["first_step"]
    assert run(chat, tmp_path / "run")["already_finished"]


def test_a_base_model_is_refused(chat: Path, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "base")
    load_tokenizer(chat / "made").save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="no chat template"):
        run(chat, tmp_path / "run", model=tmp_path / "base")


# ---------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------


def test_pairs_have_the_tokens_of_sft(chat: Path) -> None:
    tokenizer = load_tokenizer(chat / "model")
    source = ConversationSource(name="pairs", paths=[str(chat / "train.jsonl")])
    dataset, (report,) = encode_preferences(tokenizer, [source], max_length=64)
    rows = {tuple(encode_prompt(tokenizer, row["prompt"])): row for row in hedged_pairs(48, seed=1)}
    assert len(dataset) == 48
    for encoded in dataset:
        row = rows[tuple(encoded["prompt_ids"])]
        ids, labels = encode_conversation(tokenizer, [*row["prompt"], *row["chosen"]])
        assert encoded["chosen_ids"] == [label for label in labels if label != -100]
        assert encoded["prompt_ids"] + encoded["chosen_ids"] == ids[:-1]  # without the line break at the end
        assert encoded["chosen_ids"][-1] == encoded["rejected_ids"][-1] == tokenizer.eos_token_id
    assert report.trained_tokens == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in dataset)


def test_a_prompt_of_several_turns_keeps_its_answers(chat: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(chat / "model")
    row = {"prompt": turns("a", "b", "c", system="s"), "chosen": "yes", "rejected": "no"}
    source = ConversationSource(name="pairs", paths=[write_rows(tmp_path / "pairs.jsonl", [row])])
    dataset, _ = encode_preferences(tokenizer, [source], max_length=64)
    assert tokenizer.decode(dataset[0]["chosen_ids"]) == "yes<|im_end|>"
    assert "b<|im_end|>" in tokenizer.decode(dataset[0]["prompt_ids"])


ANSWERS = {"chosen": "y", "rejected": "n"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", **ANSWERS},
        {"prompt": turns("a"), "chosen": turns("a", "y")[1:], "rejected": turns("a", "n")[1:]},
        {"prompt": "a", "chosen": turns("a", "y"), "rejected": turns("a", "n")},
        {"chosen": turns("a", "y"), "rejected": turns("a", "n")},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "y"},
            "rejected": {"from": "gpt", "value": "n"},
        },
    ],
)
def test_preferences_that_people_have_become_pairs(row: dict) -> None:
    pair = to_pair(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (turns("a"), "y", "n")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "a", "chosen": "y"}, "no chosen and rejected"),
        ({"prompt": "a", "chosen": "y", "rejected": "y"}, "chosen equals rejected"),
        ({"prompt": "a", "chosen": "", "rejected": "y"}, "empty chosen"),
        ({"prompt": turns("a", "b"), **ANSWERS}, "two assistant turns in a row"),
        ({"prompt": "a", "chosen": 1, "rejected": "y"}, "not of a preference's shape"),
        ({"prompt": "a", "chosen": None, "rejected": "y"}, "not of a preference's shape"),
        ({"chosen": "y", "rejected": "n"}, "an assistant turn without a question"),
    ],
)
def test_a_pair_that_can_not_be_used_says_why(row: dict, fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        to_pair(row)


def test_conversations_are_no_pairs(chat: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", echo_rows(3, seed=0))
    with pytest.raises(UserError, match=r"none of its 3 rows is usable .*line 1: no chosen and rejected"):
        run(chat, tmp_path / "run", mixture=json.dumps([{"name": "x", "paths": [path]}]))
