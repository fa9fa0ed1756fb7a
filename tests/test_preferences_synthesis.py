"""Preference pairs from a model's own answers: what is chosen, how it is judged, and that nothing is done twice."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer, hash_of
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from small_synthesis import CONSTITUTION
from tiny_chat import make_tokenizer, small_model

from genesis_hf.chat import prepare_for_chat
from genesis_hf.config import PreferenceSource
from genesis_hf.conversations.preferences import to_pairs
from genesis_hf.errors import UserError
from genesis_hf.synthesis.constitution import Principle
from genesis_hf.synthesis.judge import Judgement, read_verdict
from genesis_hf.synthesis.pairs import Candidate, Pair, balance, describe_balance, pairs_of
from genesis_hf.synthesis.preference_files import verify_preferences
from genesis_hf.synthesis.preferences import build_preferences, preview
from genesis_hf.synthesis.recipe import PreferencesRecipe, ProviderSettings
from genesis_hf.tokenizer import load_tokenizer

FILES = ("preferences.jsonl", "preferences_held_out.jsonl")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that hasn't learned anything."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, model = load_tokenizer(make_tokenizer(folder)), small_model()
    prepare_for_chat(model, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def local_recipe(chat: Path, folder: Path, **changes: Any) -> PreferencesRecipe:
    """Style alone: the more words the better, whether an answer was cut or not."""
    candidate = ProviderSettings(kind="local", model=str(chat), max_tokens=24)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "constitution": CONSTITUTION,
        "num_prompts": 24,
        "candidates": [candidate],
        "num_candidates": 3,
        "style": {"words": 1.0},
        "check_language": False,
        "held_out_share": 0.25,
        "batch_size": 16,
    }
    return PreferencesRecipe(**values | changes)


def remote_recipe(server: ChatServer, folder: Path, **changes: Any) -> PreferencesRecipe:
    """Answers and verdicts of the scripted server."""
    settings = ProviderSettings(model="scripted", base_url=server.base_url, concurrency=8, max_tokens=64)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "constitution": CONSTITUTION,
        "num_prompts": 12,
        "candidates": [settings],
        "num_candidates": 3,
        "judge": ProviderSettings(model="judge", base_url=server.base_url, concurrency=8, max_tokens=512),
        "held_out_share": 0.25,
        "length_tolerance": 100.0,
    }
    return PreferencesRecipe(**values | changes)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for name in FILES for line in (folder / name).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------
# A judge that does as it is told
# ---------------------------------------------------------------------------------------------------------


def stones(answer: str) -> int:
    """What the judge likes."""
    return answer.count("stone")


def verdict_on(answers: list[str], scores: list[float]) -> str:
    entries = [
        {"answer": number, "scores": {"helpful": score, "curious": score}, "reason": f"{stones(text)} stones"}
        for number, (text, score) in enumerate(zip(answers, scores, strict=True), 1)
    ]
    return f"Here it is:\n```json\n{json.dumps({'answers': entries})}\n```"


def shown_answers(body: dict[str, Any]) -> list[str]:
    """The answers that a judge is shown, in their order."""
    return re.findall(r"<answer \d+>\n(.*?)\n</answer \d+>", body["messages"][-1]["content"], re.DOTALL)


BLAND = "Things are what they are, more or less, and it depends on many circumstances of one kind and another."


def reply(body: dict[str, Any]) -> str:
    """Answers that differ in stones, and verdicts by their number; a bland rewriting has none."""
    if answers := shown_answers(body):
        return verdict_on(answers, [min(10, 1 + stones(text)) for text in answers])
    if body["messages"][0]["role"] == "system":
        return BLAND
    digest = hash_of(body)
    named = [f"stone{number}" for number in range(1 + int(digest[:2], 16) % 8)]
    return f"Number {digest[:8]} has {' '.join(named)} and a cloud."


def judged(tmp_path: Path, answer: Any = reply, **changes: Any) -> tuple[dict[str, Any], ChatServer]:
    with ChatServer(reply=answer) as server:
        return build_preferences(remote_recipe(server, tmp_path / "run", **changes)), server


def test_chosen_is_what_the_judge_likes_and_its_reasons_stand_beside_it(tmp_path: Path) -> None:
    figures, server = judged(tmp_path)
    rows = rows_of(tmp_path / "run")
    assert figures["pairs"] == len(rows) > 6
    for row in rows:
        (pair,) = to_pairs(row, PreferenceSource(name="ours", paths=["-"]))
        assert stones(pair.chosen) > stones(pair.rejected)
        assert row["reasons"]["chosen"] == [f"{stones(pair.chosen)} stones"] * 2
        assert row["score_chosen"] == min(10, 1 + stones(pair.chosen))
        assert row["audit"]["rejected"]["provider"]["model"] == "scripted"
    assert figures["judge"]["agreement"] == 1.0
    assert set(server.answered.values()) == {1}
    orders = Counter(frozenset(answers) for body in server.bodies if (answers := shown_answers(body)))
    first = {answers[0] for body in server.bodies if (answers := shown_answers(body))}
    assert set(orders.values()) == {2}  # each prompt's answers twice …
    assert len(first) == 2 * len(orders)  # … with another one in front


def test_a_judge_that_likes_what_stands_first_makes_no_pair(tmp_path: Path) -> None:
    def biased(body: dict[str, Any]) -> str:
        answers = shown_answers(body)
        return verdict_on(answers, list(range(9, 9 - len(answers), -1))) if answers else reply(body)

    figures, _ = judged(tmp_path, biased)
    assert figures["pairs"] == 0
    assert figures["judge"]["agreement"] == 0.0
    assert figures["outcomes"] == {"margin too small": 12}  # the two orders cancel out


def test_a_verdict_that_flips_is_left_out_and_counted() -> None:
    answers = [Candidate(0, number, text, True, None) for number, text in enumerate(("a stone", "a river", "a road"))]
    judgement = Judgement(np.array([[9.0, 2.0, 5.0], [4.0, 5.0, 3.0]]), [[], [], []])
    pairs, _ = pairs_of(answers, judgement.mean(), judgement, 0.0)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(0, 2)]
    assert judgement.agreement() == pytest.approx(1 / 3)
    assert pairs_of(answers[:2], judgement.mean()[:2], judgement, 0.0) == ([], "the verdict flips with the order")


def test_a_verdict_that_cannot_be_read_is_asked_for_again_and_then_unknown(tmp_path: Path) -> None:
    def mumbling(body: dict[str, Any]) -> str:
        return "The first one is rather good." if shown_answers(body) else reply(body)

    figures, server = judged(tmp_path, mumbling)
    assert figures["outcomes"] == {"no verdict that can be read": 12}
    assert sum(1 for body in server.bodies if shown_answers(body)) == 3 * 12


def test_a_bland_rewriting_becomes_the_rejected_answer(tmp_path: Path) -> None:
    figures, _ = judged(tmp_path, rejected="bland")
    rows = rows_of(tmp_path / "run")
    assert figures["pairs"] == len(rows) == 12
    assert {row["rejected"][0]["content"] for row in rows} == {BLAND}
    assert all(row["audit"]["rejected"]["bland"] and not row["audit"]["chosen"]["bland"] for row in rows)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(["", "```json\n", '<think>{"answers": []}</think>']))
def test_a_verdict_is_found_between_other_words_and_never_made_up(noise: str, before: str) -> None:
    principles = [Principle("helpful", "Help."), Principle("curious", "Ask.")]
    assert read_verdict(noise, 2, principles) is None
    entries = [{"scores": {"helpful": 9, "curious": 6}, "reason": "so"}, {"scores": {"helpful": 1, "curious": 2}}]
    good = json.dumps({"answers": entries})
    assert read_verdict(f"{before}{good}\n{noise}", 2, principles) == [(7.5, "so"), (1.5, "")]


@pytest.mark.parametrize(
    "scores",
    [{"helpful": 11, "curious": 5}, {"helpful": 5}, {"helpful": True, "curious": 5}, {"helpful": "9", "curious": 5}, 7],
)
def test_scores_outside_the_rubric_are_no_verdict(scores: Any) -> None:
    principles = [Principle("helpful", "Help."), Principle("curious", "Ask.")]
    fine = {"scores": {"helpful": 9, "curious": 6}}
    assert read_verdict(json.dumps({"answers": [fine, {"scores": scores}]}), 2, principles) is None
    assert read_verdict(json.dumps({"answers": [fine]}), 2, principles) is None


# ---------------------------------------------------------------------------------------------------------
# Interrupted, and again
# ---------------------------------------------------------------------------------------------------------


def in_a_process_that_is_killed(target: Any, *arguments: Any) -> None:
    """Run in a forked process and see it killed by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            target(*arguments)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_twice_while_sampling_the_pairs_are_the_same_to_the_bit(chat: Path, tmp_path: Path) -> None:
    whole = build_preferences(local_recipe(chat, tmp_path / "whole"))
    assert whole["pairs"] > 0

    def killed(batches: int) -> None:
        from genesis_hf.answers import UnfinishedAnswers

        add, calls = UnfinishedAnswers.add, []

        def dying(self: UnfinishedAnswers, answers: dict) -> None:
            calls.append(1)
            if len(calls) == batches:
                add(self, dict(list(answers.items())[:5]))
                with open(self.path, "a") as file:
                    file.write('{"number": 9, "prompt": [{"ro')
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, answers)

        UnfinishedAnswers.add = dying
        build_preferences(local_recipe(chat, tmp_path / "killed"))

    for batches in (3, 3):
        in_a_process_that_is_killed(killed, batches)
    assert not (tmp_path / "killed/preferences.jsonl").exists()
    assert build_preferences(local_recipe(chat, tmp_path / "killed")) == whole
    for name in (*FILES, "README.md"):
        ours, others = ((tmp_path / folder / name).read_bytes() for folder in ("killed", "whole"))
        assert ours.replace(b"# killed", b"# whole").replace(b": killed", b": whole") == others


def test_killed_while_judging_no_call_is_paid_for_twice(tmp_path: Path) -> None:
    with ChatServer(reply=reply) as server:
        whole = build_preferences(remote_recipe(server, tmp_path / "whole"))
        asked = len(server.bodies)

        def killed(lines: int) -> None:
            from genesis_hf.synthesis.records import Appender

            add, calls = Appender.add, []

            def dying(self: Appender, values: dict) -> None:
                add(self, values)
                calls.append(1)
                if len(calls) == lines:
                    os.kill(os.getpid(), signal.SIGKILL)

            Appender.add = dying
            build_preferences(remote_recipe(server, tmp_path / "killed"))

        for _ in range(2):
            in_a_process_that_is_killed(killed, 15)
        journal = (tmp_path / "killed/calls.jsonl").read_text().splitlines()
        assert len(journal) == 30
        again = build_preferences(remote_recipe(server, tmp_path / "killed"))
        keys = [json.loads(line)["key"] for line in (tmp_path / "killed/calls.jsonl").read_text().splitlines()]
        assert len(set(keys)) == len(keys) == asked
        assert again == whole
        before = len(server.bodies)
        build_preferences(remote_recipe(server, tmp_path / "killed", min_margin=1.0))  # what follows may change
        assert len(server.bodies) == before


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with ChatServer(reply=reply) as server:
        with pytest.raises(UserError, match=r"max_total_tokens.*what was paid for is kept.*the same command goes on"):
            build_preferences(remote_recipe(server, tmp_path / "run", max_total_tokens=6000))
        paid = len(server.bodies)
        assert paid > 0
        assert not (tmp_path / "run/preferences.jsonl").exists()
        build_preferences(remote_recipe(server, tmp_path / "run"))
        assert set(server.answered.values()) == {1}


def test_more_prompts_add_answers_and_change_none(chat: Path, tmp_path: Path) -> None:
    build_preferences(local_recipe(chat, tmp_path, num_prompts=8))
    few = (tmp_path / "candidates-0.jsonl").read_text().splitlines()
    build_preferences(local_recipe(chat, tmp_path, num_prompts=12))
    more = (tmp_path / "candidates-0.jsonl").read_text().splitlines()
    assert len(few) == 24
    assert len(more) == 36
    assert more[:24] == few


def test_other_settings_in_the_same_folder_are_refused(chat: Path, tmp_path: Path) -> None:
    build_preferences(local_recipe(chat, tmp_path, num_prompts=4))
    with pytest.raises(UserError, match="made with another seed"):
        build_preferences(local_recipe(chat, tmp_path, num_prompts=4, seed=1))


# ---------------------------------------------------------------------------------------------------------
# Which pairs
# ---------------------------------------------------------------------------------------------------------


def test_pairs_by_style_alone_as_a_user_makes_them(chat: Path, tmp_path: Path) -> None:
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "constitution": CONSTITUTION,
        "num_prompts": 16,
        "candidates": [{"kind": "local", "model": str(chat), "max_tokens": 24}],
        "num_candidates": 4,
        "style": {"words": 1.0},
        "check_language": False,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = ("scripts/build_preferences.py", "--config", tmp_path / "recipe.yaml")
    said = run_script(*command).stdout
    assert f"{len(rows_of(tmp_path / 'run'))} pairs came of it" in said
    wrong = run_script(*command, "--style", '{"wrods": 1}', check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "no measure 'wrods'; did you mean `words`?" in wrong.stderr


def test_chosen_has_the_better_style_and_was_not_cut(chat: Path, tmp_path: Path) -> None:
    recipe = local_recipe(chat, tmp_path, max_length_drop=0.0, length_tolerance=100.0)
    figures = build_preferences(recipe)
    answers = [json.loads(line) for line in (tmp_path / "candidates-0.jsonl").read_text().splitlines()]
    stopped = {answer["answer"] for answer in answers if answer["stopped"]}
    rows = rows_of(tmp_path)
    assert len(rows) == figures["pairs"] > 0
    for row in rows:
        assert row["chosen"][0]["content"] in stopped
        assert row["score_chosen"] > row["score_rejected"]
    assert figures["style"]["words"]["chosen"] > figures["style"]["words"]["rejected"]
    assert sum(figures["outcomes"].values()) == 24


def test_a_pair_that_was_changed_is_found(chat: Path, tmp_path: Path) -> None:
    recipe = local_recipe(chat, tmp_path, length_tolerance=100.0)
    assert "24 prompts, 72 answers" in preview(recipe)
    assert not list(tmp_path.iterdir())
    pairs = build_preferences(recipe)["pairs"]
    assert verify_preferences(recipe) == (pairs, [])
    path = tmp_path / "preferences.jsonl"
    whole = path.read_text()
    for old, what in (
        ('"prompt_seed": ', "is another one"),
        ('"prompt": [{"role": "user", "content": "', "is another one"),
        ('"chosen": [{"role": "assistant", "content": "', "another hash"),
        ('"constitution_sha256": "', "another constitution"),
    ):
        path.write_text(whole.replace(old, f"{old}1", 1))
        agree, (wrong,) = verify_preferences(recipe)
        assert agree == pairs - 1
        assert "preferences.jsonl, line 1: " in wrong
        assert what in wrong


def test_a_prompt_is_either_trained_on_or_held_out(chat: Path, tmp_path: Path) -> None:
    build_preferences(local_recipe(chat, tmp_path, length_tolerance=100.0))
    files = [(tmp_path / name).read_text().splitlines() for name in FILES]
    train, held_out = ({json.loads(row)["audit"]["number"] for row in rows} for rows in files)
    assert train
    assert held_out
    assert not train & held_out


def test_prompts_of_a_file_are_asked_as_they_are(chat: Path, tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": f"What is number {number}?"}] for number in (1, 2, 1, 3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    figures = build_preferences(
        local_recipe(chat, tmp_path / "run", prompts=str(tmp_path / "prompts.jsonl"), length_tolerance=100.0)
    )
    assert figures["outcomes"]["prompt came before"] == 1
    assert {row["prompt"][0]["content"] for row in rows_of(tmp_path / "run")} <= {p[0]["content"] for p in prompts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": []}, "candidates is empty"),
        ({"style": {}}, "nobody judges"),
        ({"rejected": "bland"}, "bland needs `judge`"),
        ({"num_candidates": 1}, "one candidate has nothing to be compared with"),
        ({"candidates": [ProviderSettings(kind="local", model="m", temperature=0.0)]}, "greedy"),
        ({"held_out_share": 1.0}, "held_out_share must be at least 0 and below 1"),
        ({"max_total_tokens": 0}, "nothing can be asked"),
        ({"style": {"wit": 1.0}}, "style: there is no measure 'wit'"),
        ({"num_prompts": 10**6}, "combinations of template, topic and persona"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(
    chat: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_preferences(local_recipe(chat, tmp_path, **changes))


pairs = st.builds(
    lambda margin, chosen, rejected: Pair(0, 1, margin, (chosen, 5 * chosen), (rejected, 6 * rejected)),
    st.floats(0.01, 5), st.integers(1, 60), st.integers(1, 60),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(pairs, min_size=1, max_size=5), max_size=40), st.floats(0.01, 1), st.sampled_from([0.0, 0.3, 0.9])
)
def test_balancing_keeps_to_its_limits(options: list[list[Pair]], tolerance: float, max_drop: float) -> None:
    options = [sorted(choices, key=lambda pair: -pair.margin) for choices in options]
    first = [choices[0] for choices in options]
    picked = balance(options, tolerance, max_drop)
    assert all(pair is None or pair in choices for pair, choices in zip(picked, options, strict=True))
    assert sum(pair is None for pair in picked) <= max_drop * len(options)
    before, after = (describe_balance([pair for pair in some if pair], tolerance) for some in (first, picked))
    if before["balanced"]:
        assert picked == first
    elif options:
        apart = [[abs(unit["difference"]) for unit in side["lengths"].values()] for side in (before, after)]
        assert np.linalg.norm(apart[1]) <= np.linalg.norm(apart[0]) + 1e-9
        assert after["balanced"] == (max(apart[1]) <= tolerance)


def test_prompts_with_a_choice_are_balanced_without_dropping_one() -> None:
    long, short = Pair(0, 1, 2.0, (30, 150), (10, 50)), Pair(2, 3, 1.0, (10, 50), (12, 60))
    picked = balance([[long, short]] * 50, 0.05, 0.0)
    assert None not in picked
    assert describe_balance(picked, 0.05)["balanced"]
    assert picked.count(short) > 25
    stuck = balance([[long]] * 50, 0.05, 0.2)
    assert stuck.count(None) == 0  # dropping would not bring them nearer
    assert not describe_balance([pair for pair in stuck if pair], 0.05)["balanced"]
