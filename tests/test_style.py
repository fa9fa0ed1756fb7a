"""Answers: batched sampling is what single sampling is, and style is counted right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from tiny_chat import echo_rows, make_tokenizer, small_model, turns, write_rows
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.chat import encode_prompt, prepare_for_chat
from genesis_hf.config import SampleRecipe
from genesis_hf.errors import UserError
from genesis_hf.generate import Answer, load_chat, read_prompts, sample_answers, sampling, stream_answer
from genesis_hf.style import hedges_of, measure_style, repetition
from genesis_hf.tokenizer import load_tokenizer

PROMPTS = [turns("hello there river stone walks under"), turns("a"), turns("user", "answer", "stone", system="there")]


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random chat model in which the stop token is about as likely as any other."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, model = load_tokenizer(make_tokenizer(folder)), small_model(hidden_size=48)
    prepare_for_chat(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(25)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def loaded(chat: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load_chat(str(chat))


def recipe(**settings: float) -> SampleRecipe:
    return SampleRecipe(model="", prompts="", output_file="", **{"max_new_tokens": 12, **settings})


def test_answers_of_a_batch_are_those_of_single_prompts(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = loaded
    answers = sample_answers(model, tokenizer, PROMPTS, sampling(tokenizer, recipe(temperature=0)))
    assert [answer.prompt for answer in answers] == PROMPTS
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        written = ids[len(encode_prompt(tokenizer, prompt)) :]
        assert answer.tokens == len(written)
        assert answer.stopped == (written[-1] == tokenizer.eos_token_id)
        assert answer.answer == tokenizer.decode(written[:-1] if answer.stopped else written)


def test_the_seed_decides(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(temperature=5.0, top_p=1.0))
    answers = [sample_answers(model, tokenizer, PROMPTS, settings, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_stop_token_ends_an_answer_and_is_not_shown(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(max_new_tokens=60, temperature=5.0, top_p=1.0))
    answers = sample_answers(model, tokenizer, PROMPTS * 20, settings)
    assert any(answer.stopped for answer in answers)
    assert not all(answer.stopped for answer in answers)
    for answer in answers:
        assert answer.stopped == (answer.tokens < 60) or answer.tokens == 60
        assert not answer.answer.endswith(tokenizer.eos_token)


def test_a_streamed_answer_is_the_sampled_one(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(temperature=0))
    (answer,) = sample_answers(model, tokenizer, PROMPTS[:1], settings)
    assert "".join(stream_answer(model, tokenizer, encode_prompt(tokenizer, PROMPTS[0]), settings)) == answer.answer
    pieces = stream_answer(model, tokenizer, encode_prompt(tokenizer, PROMPTS[0]), settings)
    next(pieces)
    pieces.close()


def test_an_answer_needs_room_for_a_prompt(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    with pytest.raises(UserError, match="max_new_tokens is 128"):
        sample_answers(model, tokenizer, PROMPTS, sampling(tokenizer, recipe(max_new_tokens=128)))
    long = [turns("hello " * 300)]
    assert sample_answers(model, tokenizer, long, sampling(tokenizer, recipe()))[0].tokens


def test_prompts_are_read_from_conversations_and_texts(tmp_path: Path) -> None:
    rows = [
        {"messages": turns("a", "b")},
        {"messages": turns("a")},
        {"prompt": "a"},
        {"instruction": "a", "output": "b"},
    ]
    path = write_rows(tmp_path / "prompts.jsonl", rows)
    assert read_prompts(path) == [turns("a")] * 4
    assert len(read_prompts(path, 2)) == 2
    with pytest.raises(UserError, match="line 1: no prompt"):
        read_prompts(write_rows(tmp_path / "bad.jsonl", [{"text": "a"}]))


def answer(text: str, stopped: bool = True) -> Answer:
    return Answer(turns("a"), text, stopped, len(text.split()))


def test_hedges_are_counted_once_each() -> None:
    assert hedges_of("It opens a file.") == []
    assert hedges_of("The mightiest likelihood seemed maybelline.") == []
    assert hedges_of("I’m not sure, but perhaps it might be open.") == ["not sure", "perhaps", "might be"]
    assert hedges_of("MAYBE. I could be wrong.") == ["maybe", "i could be wrong"]


def test_style_is_a_mean_with_its_standard_error() -> None:
    answers = [answer("one two three four"), answer("perhaps it does", False), answer("a b"), answer("")]
    style = measure_style(answers)
    assert style["stop_rate"] == {"value": 0.75, "stderr": 0.25}
    assert style["hedging_rate"]["value"] == 0.25
    assert style["hedges_per_100_words"]["value"] == pytest.approx(100 / 3 / 4)
    assert style["words"]["value"] == 9 / 4
    assert style["empty"]["value"] == 0.25


def test_repetition_is_the_share_of_sequences_that_came_before() -> None:
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("no " * 50) == pytest.approx(46 / 47)
    assert repetition("short") == 0


def test_the_script_writes_answers_and_figures_once(chat: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", echo_rows(5, seed=0))
    output = tmp_path / "out/answers.jsonl"
    words = ["scripts/sample_answers.py", "--model", chat, "--prompts", prompts, "--output_file", output]
    first = run_script(*words, "--max_new_tokens", 8)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [set(record) for record in records] == [{"prompt", "answer", "stopped", "tokens"}] * 5
    assert json.loads((tmp_path / "out/answers.summary.json").read_text())["style"]["stop_rate"]
    assert "stop_rate" in first.stdout
    assert "already answered" in run_script(*words, "--max_new_tokens", 8).stdout


def test_the_terminal_chat_answers_what_is_piped_in(chat: Path, tmp_path: Path) -> None:
    lines = f"hello\n/system there\nriver\n/save {tmp_path}/h.json\n/quit\nunread\n"
    command = [sys.executable, "scripts/chat.py", str(chat), "--max_new_tokens", "8"]
    subprocess.run(command, cwd=ROOT, input=lines, text=True, check=True, capture_output=True)
    saved = json.loads((tmp_path / "h.json").read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[1]["content"] == "river"
