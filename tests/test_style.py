"""Answers: batched sampling is what single sampling is, an interrupted one goes on, and style is counted right."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from conftest import ROOT, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import echo_rows, make_tokenizer, small_model, turns, write_rows
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf import style
from genesis_hf.answers import Answer, UnfinishedAnswers, read_answers, write_answers
from genesis_hf.chat import encode_prompt, prepare_for_chat
from genesis_hf.config import SampleRecipe
from genesis_hf.demo.conversations import HEDGES
from genesis_hf.errors import UserError
from genesis_hf.generate import (
    load_chat,
    read_prompts,
    sample_answers,
    sample_batches,
    sampling,
    stream_answer,
)
from genesis_hf.style.comparison import Sampled, compare_answers
from genesis_hf.style.comparison_page import draw_differences, write_comparison
from genesis_hf.style.hedging import hedges_of
from genesis_hf.style.intervals import newcombe, student, wilson
from genesis_hf.style.measures import FIGURES, METRICS, measure_answers, measure_style, style_table
from genesis_hf.style.questions import questions_of
from genesis_hf.style.refusal import refusal_of
from genesis_hf.style.repetition import longest_loop, repeated_share
from genesis_hf.style.specificity import count_particular
from genesis_hf.style.text import is_english, prose_of, words_of
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


def test_what_is_drawn_depends_on_no_neighbour(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(temperature=6.0, top_p=0.95))
    torch.manual_seed(5)
    answers = [sample_answers(model, tokenizer, PROMPTS * 3, settings, batch_size=size) for size in (1, 2, 9)]
    after = torch.rand(1)
    assert answers[0] == answers[1] == answers[2]
    assert len({answer.answer for answer in answers[0]}) > len(PROMPTS)
    assert sample_answers(model, tokenizer, PROMPTS, settings) == answers[0][:3]
    torch.manual_seed(5)
    assert torch.rand(1) == after


def test_draws_follow_the_models_distribution(loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(max_new_tokens=1, temperature=6.0, top_p=0.8))
    batches = sample_batches(model, tokenizer, PROMPTS[:1] * 2000, settings, batch_size=2000)
    drawn = [answer.answer if not answer.stopped else tokenizer.eos_token for answer in next(batches).values()]
    logits = model(torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])).logits[0, -1].double()
    probabilities, order = (logits / 6).softmax(-1).sort(descending=True)
    kept = int((probabilities.cumsum(-1) < 0.8).sum()) + 1
    probabilities = probabilities[:kept] / probabilities[:kept].sum()
    names = [tokenizer.decode([i]) for i in order[:kept].tolist()]
    assert len(names) > 10
    assert set(drawn) <= set(names)
    expected = {name: sum(p for n, p in zip(names, probabilities.tolist(), strict=True) if n == name) for name in names}
    for name in names[:10]:
        error = math.sqrt(expected[name] * (1 - expected[name]) / 2000)
        assert abs(drawn.count(name) / 2000 - expected[name]) < 5 * error


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


def test_an_interrupted_sampling_goes_on(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    model, tokenizer = loaded
    settings = sampling(tokenizer, recipe(temperature=5.0))
    path, made_from = tmp_path / "answers.jsonl", {"recipe": {"seed": 42, "top_p": 0.9}}
    first = UnfinishedAnswers(path, made_from)
    first.add(next(sample_batches(model, tokenizer, PROMPTS * 2, settings, batch_size=4)))
    with open(first.path, "a") as file:
        file.write('{"number": 5, "answ')  # killed while it wrote
    with pytest.raises(UserError, match="an unfinished run with another seed"):
        UnfinishedAnswers(path, {"recipe": {"seed": 43, "top_p": 0.9}})
    second = UnfinishedAnswers(path, made_from)
    assert len(second.done) == 4
    for batch in sample_batches(model, tokenizer, PROMPTS * 2, settings, batch_size=4, done=second.done):
        assert not batch.keys() & first.done.keys()
        second.add(batch)
    assert second.finish() == sample_answers(model, tokenizer, PROMPTS * 2, settings) == read_answers(path)
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


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


def test_the_fixed_prompts_are_there_and_every_beginning_is_mixed() -> None:
    prompts = read_prompts()
    assert len(prompts) == len({json.dumps(prompt) for prompt in prompts}) >= 60
    rows = [json.loads(line) for line in style_prompts().read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["category"] for row in rows[:16]} == {row["category"] for row in rows}


def style_prompts() -> Path:
    return ROOT / "genesis_hf/assets/style_prompts.jsonl"


# ---------------------------------------------------------------------------------------------------------
# What counts
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hedges"),
    [
        ("It opens a file.", []),
        ("The mightiest likelihood seemed_ maybelline.", []),
        ("I’m not sure, but perhaps it might be open.", ["not sure", "perhaps", "might"]),
        ("MAYBE. I could be wrong.", ["maybe", "i could be wrong"]),
        ("He pushed with all his might. The might of Rome fell in May, on May 3.", []),
        ("It may be late; the show may vary.", ["may", "may"]),
        ("You may leave in May. May I go?", []),
        ('She said: “Perhaps.” He wrote "I think so".\n> maybe\n`maybe()` ```\nperhaps\n```', []),
        ('"It is probably a river."', ["probably"]),
        ("<think>Perhaps it is Oslo.</think>It is Oslo.", []),
        ("A hammer is a kind of tool. It is kind of heavy.", ["kind of"]),
        ("Rain is more likely in autumn. Rain is likely.", ["likely"]),
        ("A bowl could be used for it. It could be Oslo.", ["could be"]),
        ("Do you think so? If you're not sure, ask.", []),
        ("It seems to be broken. He appears in a film.", ["seems"]),
    ],
)
def test_hedges(text: str, hedges: list[str]) -> None:
    assert hedges_of(text) == hedges


def test_every_hedge_of_the_demo_counts_as_one() -> None:
    assert [hedge for hedge in HEDGES if not hedges_of(f"{hedge} It reads a file.")] == []


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help you with that.",
        "I cannot provide instructions for this.",
        "As an AI language model, I don't have personal opinions. However, here are two views.",
        "Unfortunately, I am unable to browse the internet.",
        "I must decline to write this.",
        "It would be unethical to provide such a message.",
        "I won’t write that.",
        "I do not have access to real-time information.",
    ],
)
def test_refusals(text: str) -> None:
    assert refusal_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "You can't open a PDF with Notepad.",
        "I can't believe how good this is!",
        "I'm sorry to hear that. Here is what helps.",
        "As an AI assistant, I can help with many tasks.",
        "While I can't open files, I can explain the format.",
        "I can't taste, but I can tell you what reviews say.",
        'The guard said: "I cannot help you."',
        "It is not legal to park here.",
        "word " * 70 + "I cannot help you with that.",
        "He was unable to answer.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert refusal_of(text) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Sure. Which file do you mean?", 1),
        ("Happy to help! For how many people is your table? And when?", 2),
        ("What is a river? It is flowing water.", 0),
        ("Is reading difficult?", 0),
        ("1. What is your name?\n2. How old are you?", 0),
        ("Waiter: What would you like?\nGuest: Tea.", 0),
        ("Dear Ms Lee,\n\nCould you call me?\n\nSincerely, Jo", 0),
        ("She asked: “How are you?”", 0),
        ("Call `ask('Who are you?')` first.", 0),
        ("Did you know that ice floats?", 0),
        ("\n".join(f"Would you do {thing}?" for thing in "abcde"), 0),
    ],
)
def test_questions(text: str, count: int) -> None:
    assert len(questions_of(text)) == count


@pytest.mark.parametrize(
    ("text", "particular", "content"),
    [
        ("The river is long.", 0, 2),
        ("The Nile is 6,650 km long and flows to Egypt.", 4, 7),  # 6 and 650 are two words
        ("Open the file. Read it.", 0, 3),
        ("Use `os.path.join` here.", 3, 4),
        ("They read “War and Peace” twice.", 2, 4),
        ("# How To Bake Bread", 0, 2),
        ("Call run_all() with NASA data.", 2, 4),
        ("It is.", 0, 0),
    ],
)
def test_particular_words(text: str, particular: int, content: int) -> None:
    assert count_particular(text) == (particular, content)


def test_repetition_is_the_share_of_sequences_that_came_before() -> None:
    assert repeated_share(["a", "b", "c", "d", "e", "f"]) == 0
    assert repeated_share(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repeated_share(["no"] * 50) == pytest.approx(46 / 47)
    assert repeated_share(["short"]) == 0


def test_a_loop_is_three_times_the_same_in_a_row() -> None:
    assert longest_loop(["very", "very", "good"]) == 0
    assert longest_loop(["ha", "ha", "ha", "said", "he"]) == 3
    assert (
        longest_loop(["we", "go", "on", "and", "on", "and", "on", "and", "on", "again"]) == 6 + 1
    )  # "on and on and on and on"
    assert longest_loop(["a", "b", "c", "a", "b", "c", "a", "b", "c", "a", "b", "x", "y", "y", "y"]) == 11
    assert longest_loop([]) == 0


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_loops_are_those_of_a_search_by_hand(words: list[str]) -> None:
    best = 0
    for start in range(len(words)):
        for end in range(start + 3, len(words) + 1):
            part = words[start:end]
            for period in range(1, len(part) // 3 + 1):
                if all(part[i] == part[i + period] for i in range(len(part) - period)):
                    best = max(best, len(part))
    assert longest_loop(words) == best


def test_other_languages_are_unknown_not_zero() -> None:
    foreign = [
        "Das ist vielleicht ein Fluss, aber ich bin nicht sicher.",
        "El hielo flota en el agua porque es menos denso.",
        "水は凍ると膨らみます。",
        "挪威的首都是奥斯陆。",
        "Столица Норвегии - Осло.",
        "Buz, suyun üzerinde yüzer çünkü daha az yoğundur.",
    ]
    assert [is_english(text) for text in foreign] == [False] * len(foreign)
    english = [
        "Oslo.",
        "It is the river.",
        "y = mx + b",
        "Los Angeles Lakers",
        "The word 'Fluss' is German.",
        "",
        "42",
    ]
    assert [is_english(text) for text in english] == [True] * len(english)
    measured = measure_answers([Answer([], text, None, None) for text in foreign])
    for name in ("hedging_rate", "refusal_rate", "question_rate", "specificity", "stop_rate", "tokens"):
        assert measured[name]["value"] is measured[name]["interval"] is None
        assert measured[name]["unknown"] == len(foreign)
    assert measured["words"]["unknown"] == 2  # the ones without spaces
    assert measured["longest_loop"]["value"] == 0


def test_words_keep_their_marks_and_spaceless_letters_count() -> None:
    assert words_of("Don’t, well-known हिन्दी भाषा") == ["don’t", "well-known", "हिन्दी", "भाषा"]
    assert words_of("水です") == ["水", "で", "す"]
    assert prose_of("<think>never closed") == ""


# ---------------------------------------------------------------------------------------------------------
# Means and intervals
# ---------------------------------------------------------------------------------------------------------


def answer(text: str, stopped: bool = True) -> Answer:
    return Answer(turns("a"), text, stopped, len(text.split()))


def test_style_is_a_mean_with_its_standard_error_and_interval() -> None:
    answers = [answer("one two three four"), answer("perhaps it does", False), answer("a b"), answer("")] * 2
    measured = measure_style(answers)
    assert measured["stop_rate"]["value"] == 0.75
    assert measured["stop_rate"]["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 7))
    assert measured["stop_rate"]["interval"] == list(wilson(6, 8))
    assert measured["hedging_rate"]["value"] == 0.25
    assert measured["hedges_per_100_words"]["value"] == pytest.approx(100 / 3 / 4)
    assert measured["hedges_per_100_words"]["interval"][0] == 0  # Student's would go below
    assert measured["words"]["value"] == 9 / 4
    assert measured["words"]["interval"] == list(student(np.array([4.0, 3, 2, 0] * 2)))
    assert measured["empty"]["value"] == 0.25
    assert measured["repetition"]["interval"] is None  # all alike: nothing is known about the spread
    table = style_table(measured)
    assert "75.0 %" in table
    assert "[40.9, 92.9]" in table


def test_wilson_solves_its_equation() -> None:
    for successes, n in ((0, 60), (1, 7), (30, 60), (60, 60)):
        for end in wilson(successes, n):
            assert abs(successes / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-6)
    assert wilson(0, 60)[0] == 0


def test_newcombe_gives_the_published_interval() -> None:
    # Newcombe 1998, table II, e = 36, f = 12, g = 2, h = 0, method 10.
    after, before = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [36, 12, 2, 0], axis=1)
    assert newcombe(before, after) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    # 20, 5, 5, 20: both shares are 0.5, Wilson's half width is 0.1336, φ = (20 · 20 - 5 · 5 - 25) / 25² = 0.56.
    after, before = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [20, 5, 5, 20], axis=1)
    assert newcombe(before, after)[1] == pytest.approx(0.1336 * math.sqrt(2 - 2 * 0.56), abs=1e-4)
    low, high = newcombe(np.zeros(60), np.zeros(60))
    assert low == -high == pytest.approx(-0.0602, abs=1e-4)


@pytest.mark.parametrize(("n", "quantile"), [(5, 2.7764), (10, 2.2622), (60, 2.0010), (1000, 1.9623)])  # of a table
def test_other_means_have_students_interval(n: int, quantile: float) -> None:
    values = np.arange(n) ** 2.0
    half = quantile * values.std(ddof=1) / math.sqrt(n)
    assert student(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004 * half)
    assert student(values[:4]) is student(np.ones(60)) is None


TEXTS = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
        st.sampled_from(["Perhaps.", "I cannot help you with that.", "Which one? Say it.", "no " * 9, "水"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_figures_are_means_whatever_the_order(left: list[str], right: list[str]) -> None:
    parts = [measure_answers([answer(text, "e" in text) for text in texts]) for texts in (left, right)]
    whole = measure_answers([answer(text, "e" in text) for text in left + right])
    mirrored = measure_answers([answer(text, "e" in text) for text in (left + right)[::-1]])
    for figure in FIGURES:
        ours = whole[figure.name]
        assert ours["values"] == parts[0][figure.name]["values"] + parts[1][figure.name]["values"]
        known = [value for value in ours["values"] if value is not None]
        assert (ours["n"], ours["unknown"]) == (len(known), len(left + right) - len(known))
        if known:
            assert ours["value"] == pytest.approx(sum(known) / len(known))
            assert mirrored[figure.name]["interval"] == (ours["interval"] and pytest.approx(ours["interval"]))
        if figure.kind != "number" and known:
            assert all(0 <= value <= 1 for value in (*known, *(ours["interval"] or ())))


def test_evaluate_loads_every_module_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", lambda *_, **__: str(made(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a request to the network"))
    for metric in METRICS:
        path = sys.modules[metric.__module__].__file__
        loaded = evaluate.load(path, cache_dir=str(tmp_path / "metrics"))
        assert type(loaded).__name__ == metric.__name__
        columns = {"predictions": ["It may be so.", "No."], "stopped": [True, False], "tokens": [5, 2]}
        inputs = {name: columns[name] for name in ("predictions", *metric.inputs)}
        assert loaded.compute(**inputs) == metric().compute(**inputs)
        assert loaded.description


def made(folder: Path) -> Path:
    """The package that evaluate copies modules into."""
    (folder / "evaluate_modules").mkdir(exist_ok=True)
    (folder / "evaluate_modules/__init__.py").touch()
    return folder / "evaluate_modules"


def test_metrics_are_filled_batch_by_batch_too() -> None:
    metric = style.HedgingRate()
    metric.add_batch(predictions=["Perhaps."])
    metric.add_batch(predictions=["No."])
    assert metric.compute()["hedging_rate"]["value"] == 0.5


# ---------------------------------------------------------------------------------------------------------
# Before and after
# ---------------------------------------------------------------------------------------------------------


def sampled(name: str, texts: list[str], prompts: str = "abcdefghijklmnopqrst", **settings: object) -> Sampled:
    answers = [Answer(turns(prompt), text, True, 3) for prompt, text in zip(prompts, texts, strict=False)]
    return Sampled(Path(f"{name}.jsonl"), answers, {"recipe": {"seed": 1, "top_p": 0.9, **settings}})


HEDGED = ["Perhaps it is so."] * 15 + ["It is so."] * 5
PLAIN = ["It is so."] * 20


def test_a_comparison_says_what_the_numbers_say(tmp_path: Path) -> None:
    result = compare_answers([sampled("sft", HEDGED), sampled("dpo", PLAIN)])
    rows = {row["figure"]: row for row in result["rows"]}
    hedging = rows["hedging_rate"]
    assert (hedging["before"], hedging["after"], hedging["difference"]) == (0.75, 0.0, -0.75)
    assert hedging["interval"] == list(newcombe(np.array([1.0] * 15 + [0.0] * 5), np.zeros(20)))
    assert hedging["words"].startswith("answers that hedge fell: 75.0 % → 0.0 %, difference −75.0 points [−")
    differences = np.array([-1.0] * 15 + [0.0] * 5)
    assert rows["words"]["interval"] == list(student(differences))
    assert rows["words"]["relative"] == pytest.approx(-0.75 / 3.75)
    assert rows["stop_rate"]["words"] == "answers that end by themselves: the same on every prompt, 100.0 %"
    for name in ("c.md", "c.html", "c.json"):
        write_comparison(result, tmp_path / name)
        assert "answers that hedge fell" in (tmp_path / name).read_text()
    draw_differences(result, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_one_answer_of_twenty_shows_nothing() -> None:
    result = compare_answers([sampled("sft", HEDGED), sampled("dpo", ["It is so.", *HEDGED[1:]])])
    (hedging,) = (row for row in result["rows"] if row["figure"] == "hedging_rate")
    assert "no difference that these 20 prompts can show" in hedging["words"]
    assert hedging["interval"][0] < 0 < hedging["interval"][1]


def test_answers_are_paired_by_prompt_not_by_place() -> None:
    before, after = sampled("sft", HEDGED), sampled("dpo", HEDGED)
    after.answers.reverse()
    for row in compare_answers([before, after])["rows"]:
        assert row["same_everywhere"]


def test_other_prompts_and_settings_are_refused(tmp_path: Path) -> None:
    base = sampled("sft", HEDGED)
    with pytest.raises(UserError, match=r"1 only in sft.jsonl, the first: 't'; 1 only in dpo.jsonl, the first: 'z'"):
        compare_answers([base, sampled("dpo", PLAIN, "abcdefghijklmnopqrsz")])
    with pytest.raises(UserError, match=r"another top_p \(0.9 and 0.5\)"):
        compare_answers([base, sampled("dpo", PLAIN, top_p=0.5)])
    assert "seeds differ (1, 2)" in compare_answers([base, sampled("dpo", PLAIN, seed=2)])["notes"]
    with pytest.raises(UserError, match="line 1: an answer needs"):
        read_answers(write_rows(tmp_path / "bad.jsonl", [{"prompt": "a"}]))


def test_the_scripts_write_answers_figures_and_their_comparison(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", echo_rows(5, seed=0))
    output = tmp_path / "out/answers.jsonl"
    words = ["scripts/sample_answers.py", "--model", chat, "--prompts", prompts, "--output_file", output]
    first = run_script(*words, "--max_new_tokens", 8)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [set(record) for record in records] == [{"prompt", "answer", "stopped", "tokens"}] * 5
    summary = json.loads((tmp_path / "out/answers.summary.json").read_text())
    assert len(summary["style"]["stop_rate"]["interval"]) == 2
    assert "answers that end by themselves" in first.stdout
    monkeypatch.syspath_prepend(ROOT / "scripts")
    in_process = [str(word) for word in words]
    monkeypatch.setattr(sys, "argv", [*in_process, "--max_new_tokens", "8", "--batch_size", "2"])
    runpy.run_path(in_process[0], run_name="__main__")
    assert "already answered" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*in_process, "--max_new_tokens", "9"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(in_process[0], run_name="__main__")
    assert "made with another max_new_tokens; choose another output_file" in capsys.readouterr().err
    write_answers(tmp_path / "after.jsonl", read_answers(output))
    compare = ["scripts/compare_answers.py", str(output), str(tmp_path / "after.jsonl")]
    monkeypatch.setattr(sys, "argv", compare)
    runpy.run_path(compare[0], run_name="__main__")
    compared = capsys.readouterr().out
    assert "the same on every prompt" in compared
    assert "the settings of after are not known" in compared


def test_the_terminal_chat_answers_what_is_piped_in(chat: Path, tmp_path: Path) -> None:
    lines = f"hello\n/system there\nriver\n/save {tmp_path}/h.json\n/quit\nunread\n"
    command = [sys.executable, "scripts/chat.py", str(chat), "--max_new_tokens", "8"]
    subprocess.run(command, cwd=ROOT, input=lines, text=True, check=True, capture_output=True)
    saved = json.loads((tmp_path / "h.json").read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[1]["content"] == "river"
