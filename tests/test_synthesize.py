"""`scripts/synthesize.py` against a server that fails as told: killed, stopped, started again."""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import NAMES, ChatServer, hash_of, words
from conftest import ROOT
from small_synthesis import CONSTITUTION, constitution, recipe

from genesis_hf.config import ConversationSource, recipe_dict
from genesis_hf.conversations.rows import read_rows
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.synthesis.constitution import constitution_sha256
from genesis_hf.synthesis.recipe import SynthesizeRecipe
from genesis_hf.synthesis.records import finished_numbers, read_lines
from genesis_hf.synthesis.synthesize import synthesize, verify

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["genesis_hf.synthesis.synthesize", "genesis_hf.synthesis.quality", "genesis_hf.synthesis.providers.openai"]
)
TENTH = {"500": 0.03, "429": 0.02, "drop": 0.005, "malformed": 0.01, "empty": 0.01, "cut": 0.015, "chat_tokens": 0.01}
"""Of the calls, what fails."""


def start(folder: Path, settings: SynthesizeRecipe, *arguments: str) -> BaseProcess:
    """`python scripts/synthesize.py`, in a process that has its imports already; what it says goes to a file."""
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(recipe_dict(settings)))
    argv = [str(ROOT / "scripts" / "synthesize.py"), "--config", str(config), *arguments]
    process = PROCESSES.Process(target=run_script, args=(argv, folder.with_suffix(".log")))
    process.start()
    return process


def run_script(argv: list[str], log: Path) -> None:
    # prepare_data.py starts the same server of forks with Ctrl-C held back
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(ROOT)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.path.insert(0, os.path.dirname(argv[0]))
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def run(folder: Path, settings: SynthesizeRecipe, *arguments: str) -> tuple[int, str]:
    """The script's exit code and all that it said."""
    process = start(folder, settings, *arguments)
    process.join()
    return process.exitcode, folder.with_suffix(".log").read_text()


def run_with_signal(
    folder: Path, settings: SynthesizeRecipe, server: ChatServer, number: signal.Signals, at: int
) -> tuple[int, str]:
    """As `run`; the script gets the signal while request `at` waits for its reply."""
    started: list[BaseProcess] = []
    server.reply = on_request(at, lambda: os.kill(started[0].pid, number))
    started.append(start(folder, settings))
    started[0].join()
    server.reply = words
    return started[0].exitcode, folder.with_suffix(".log").read_text()


def on_request(number: int, act: Callable[[], object]) -> Callable[[dict[str, Any]], str]:
    """Replies as usual, and does something while request `number` waits for its reply."""
    seen = 0

    def reply(body: dict[str, Any]) -> str:
        nonlocal seen
        seen += 1
        if seen == number:
            act()
        return words(body)

    return reply


# ---------------------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------------------


def test_a_thousand_conversations_killed_twice_with_a_tenth_of_the_calls_failing(tmp_path: Path) -> None:
    folder, concurrency = tmp_path / "run", 16
    topics = [f"the {a} of the {b}" for a in NAMES for b in NAMES]
    categories = [{"name": "all", "share": 1.0, "templates": ["{persona}: {topic}?", "{topic}, {persona}?"]}]
    changed = CONSTITUTION | {"categories": categories, "topics": topics, "turns": {1: 0.9, 2: 0.1}}
    finished: list[set[int]] = []
    journals: list[int] = []
    with ChatServer(TENTH) as server:
        settings = recipe(folder, server, constitution=changed, num_conversations=1000)
        settings.provider.concurrency = concurrency
        for requests in (300, 500):
            assert run_with_signal(folder, settings, server, signal.SIGKILL, requests)[0] == -signal.SIGKILL
            finished.append(finished_numbers(folder / "records.jsonl"))
            journals.append(len(server.bodies))
        code, said = run(folder, settings)
        assert code == 0, said

    records = list(read_lines(folder / "records.jsonl"))
    assert sorted(record["index"] for record in records) == list(range(1000))
    assert len({record["messages"][0]["content"] for record in records}) == 1000
    assert 0 < len(finished[0]) < len(finished[1]) < 1000

    # The journal has every call once, and no more was paid but what was in the air when the process was killed.
    calls = list(read_lines(folder / "calls.jsonl"))
    assert len({call["key"] for call in calls}) == len(calls)
    paid = sum(server.answered.values())
    assert len(calls) <= paid <= len(calls) + 2 * concurrency
    assert sum(record["usage"]["calls"] for record in records) == len(calls)

    # Once a record is finished, its question is asked by nobody.
    opening = {record["index"]: record["messages"][0]["content"] for record in records}
    for numbers, start in zip(finished, journals, strict=True):
        asked_later = json.dumps(server.bodies[start:])
        assert not [number for number in numbers if opening[number] in asked_later]

    assert verify(settings, constitution(**changed)) == (1000, {})
    assert server.rates == TENTH
    assert len(server.bodies) > len(calls) * 1.03


def test_records_are_the_same_whether_killed_or_not(tmp_path: Path) -> None:
    def made(folder: Path) -> list[dict[str, Any]]:
        return sorted(read_lines(folder / "records.jsonl"), key=lambda record: record["index"])

    changes = {"revisions": 1, "constitution": CONSTITUTION | {"turns": {1: 0.5, 2: 0.5}, "languages": {"de": 1.0}}}
    with ChatServer() as server:
        for name, at in (("whole", None), ("killed", 150)):
            settings = recipe(tmp_path / name, server, **changes)
            if at:
                assert run_with_signal(tmp_path / name, settings, server, signal.SIGKILL, at)[0] == -signal.SIGKILL
            code, said = run(tmp_path / name, settings)
            assert code == 0, said
    assert made(tmp_path / "whole") == made(tmp_path / "killed")
    # 40 first questions put into German, one call for each further one, 3 for each answer.
    turns = sum(record["turns"] for record in made(tmp_path / "whole"))
    assert sum(record["usage"]["calls"] for record in made(tmp_path / "whole")) == turns + 3 * turns


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_takes_what_is_in_the_air_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server)
        code, said = run_with_signal(folder, settings, server, number, at=17)
        assert code == 128 + number
        assert f"stopped by {number.name}; the same command goes on" in said
        assert "Traceback" not in said
        # All that was paid is in the journal.
        assert len(list(read_lines(folder / "calls.jsonl"))) == len(server.bodies) < 40
        code, said = run(folder, settings)
        assert code == 0
        assert "40 of 40 conversations" in said
        assert len(server.bodies) == len(set(map(hash_of, server.bodies))) == 40


# ---------------------------------------------------------------------------------------------------------
# What went wrong, in a line
# ---------------------------------------------------------------------------------------------------------


def test_conversations_that_fail_are_tried_at_the_end_and_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server)
        server.reply = lambda body: "" if "the clock" in str(body["messages"]) else words(body)
        code, said = run(folder, settings)
        hopeless = {failure["index"] for failure in read_lines(folder / "failures.jsonl")}
        assert code == 2
        assert f"error: {40 - len(hopeless)} of 40 conversations (" in said
        assert f"the same command tries the other {len(hopeless)} again" in said
        assert "answer-1: the answer is empty, 3 times" in said
        assert Counter(f["index"] for f in read_lines(folder / "failures.jsonl")) == dict.fromkeys(hopeless, 2)
        # What is there can be trained on.
        assert len((folder / "conversations.jsonl").read_text().splitlines()) > 0
        asked = len(server.bodies)
        server.reply = words
        code, said = run(folder, settings)
        assert code == 0, said
        assert len(server.bodies) == asked + len(hopeless)


def test_a_provider_that_fails_all_the_time_ends_the_run(tmp_path: Path) -> None:
    with ChatServer({"400": 1.0}) as server:
        code, said = run(tmp_path / "run", recipe(tmp_path / "run", server, num_conversations=64))
        assert code == 2
        assert "20 failed in a row, the last one: scripted at" in said
        assert len(server.bodies) < 40


@pytest.mark.parametrize(("fault", "said"), [("401", "is refused (401)"), ("404", "no such model or address")])
def test_a_provider_that_refuses_ends_the_run_and_work_is_kept(tmp_path: Path, fault: str, said: str) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server)
        server.reply = on_request(11, lambda: server.rates.update({fault: 1.0}))
        code, output = run(folder, settings)
        assert code == 2
        assert output.count("error:") == 1
        assert said in output
        assert "Traceback" not in output
        assert 0 < len(finished_numbers(folder / "records.jsonl")) < 40
        server.rates, server.reply = {}, words
        assert run(folder, settings)[0] == 0
    assert finished_numbers(folder / "records.jsonl") == set(range(40))


def test_a_budget_ends_the_run_with_a_line_and_more_of_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server, max_total_tokens=2000)
        code, said = run(folder, settings)
        assert code == 2
        assert "max_total_tokens: " in said
        assert "what is made is kept, the same command goes on" in said
        spent = sum(call["tokens"] for call in read_lines(folder / "calls.jsonl"))
        assert spent <= 2000
        asked = len(server.bodies)
        assert run(folder, settings)[0] == 2
        assert len(server.bodies) == asked
        assert run(folder, settings, "--max_total_tokens", "100000")[0] == 0
        assert len(server.bodies) == 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max_cost", "0"], "max_cost is 0.0: nothing can be asked"),
        (["--max_total_tokens", "0"], "max_total_tokens is 0: nothing can be asked"),
        (["--max_cost", "1"], "max_cost needs prices"),
        (["--num_conversations", "100000"], "'reasoning' is asked for 60,000 conversations and has 72 combinations"),
        (["--num_conversation", "10"], "did you mean `num_conversations`?"),
        (["--provider.kind", "vllm"], "it must be one of openai, anthropic, local"),
        (["--provider.api_key_env", "NOT_SET_ANYWHERE"], "the environment variable NOT_SET_ANYWHERE is not set"),
        (["--provider.max_retries", "0"], "nobody answers at http://127.0.0.1:9/v1: is the server running?"),
        (["--constitution", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--verify", "true"], "records.jsonl: no such file"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    settings = recipe(tmp_path / "run")
    settings.provider.base_url = "http://127.0.0.1:9/v1"
    code, output = run(tmp_path / "run", settings, *arguments)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output
    assert sum(line.startswith("error:") for line in output.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------
# What is made
# ---------------------------------------------------------------------------------------------------------


def test_more_conversations_later_keep_the_first_and_another_seed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server, num_conversations=10)
        synthesize(settings, constitution())
        first = (folder / "records.jsonl").read_bytes()
        settings.num_conversations = 25
        settings.provider.concurrency = 2
        assert synthesize(settings, constitution()).made == 25
        assert (folder / "records.jsonl").read_bytes().startswith(first)
        assert len(server.bodies) == 25
        settings.seed, settings.provider.model = 43, "other"
        with pytest.raises(UserError, match="holds records made with another seed, model;"):
            synthesize(settings, constitution())
        with pytest.raises(UserError, match="constitution_sha256"):
            synthesize(settings, constitution(turns={2: 1.0}))
        assert len(server.bodies) == 25


def test_a_record_says_where_it_comes_from_and_training_reads_it(tmp_path: Path) -> None:
    changes = {"categories": [c | {"thinking": 0.5} for c in CONSTITUTION["categories"]], "turns": {2: 1.0}}
    read = constitution(**changes)
    with ChatServer() as server:
        settings = recipe(tmp_path, server, constitution=CONSTITUTION | changes, revisions=2)
        settings.provider.prompt_price = settings.provider.completion_price = 1.0
        result = synthesize(settings, read)
    records = list(read_lines(tmp_path / "records.jsonl"))
    assert result.made == len(records) == 40
    calls = {call["key"]: call for call in read_lines(tmp_path / "calls.jsonl")}
    assert sum(record["cost"] for record in records) == pytest.approx(sum(call["cost"] for call in calls.values()))
    assert f"${sum(record['cost'] for record in records):.2f}" in result.spent
    for record in records:
        _, answer, question, last = record["messages"]
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 2
        assert question["content"] == calls[f"{record['index']}/question-2"]["text"]
        assert record["provider"] == "openai"
        assert record["model"] == "scripted"
        assert record["settings"]["temperature"] == 0.8
        assert record["constitution_sha256"] == constitution_sha256(read)
        assert record["usage"]["calls"] == 1 + 2 * (1 + 2 * 2)
        # Each answer is revised by one principle, then by the other, from the draft to what stands in the messages.
        chain = [entry for entry in record["revisions"] if entry["turn"] == 1]
        assert [entry["principle"] for entry in chain] == record["principles"]
        assert chain[0]["revised"] == chain[1]["draft"] != chain[0]["draft"]
        assert chain[1]["revised"] == answer["content"]
        for text in (answer["content"], last["content"]):
            assert ("<think>" in text) == record["thinking"]
            assert not record["thinking"] or text.startswith("<think>\n")
    assert {record["thinking"] for record in records} == {True, False}
    rows = read_rows(ConversationSource(name="made", paths=[str(tmp_path / "records.jsonl")]))
    assert [to_messages(rows[number][1]) for number in range(40)] == [record["messages"] for record in records]


def test_instructions_hold_the_categorys_principles_and_nothing_of_them_is_recorded(tmp_path: Path) -> None:
    categories = [
        {"name": "one", "share": 0.5, "templates": ["What is {topic}?"], "principles": ["curious"]},
        {"name": "two", "share": 0.5, "templates": ["{topic}?"]},
    ]
    with ChatServer() as server:
        settings = recipe(tmp_path, server, num_conversations=8)
        synthesize(settings, constitution(categories=categories, languages={"fr": 1.0}))
    answers = [body["messages"] for body in server.bodies if "keep to these" in body["messages"][0]["content"]]
    for system, user in answers:
        assert "Be curious." in system["content"]
        assert "Write in French." in system["content"]
        assert "persona" not in system["content"]
        assert ("Use a sieve." in system["content"]) == ("Look it up." in system["content"])
        assert user["content"].startswith("Answer ")  # what the user's player made of the first question
    assert Counter("Be helpful." in system["content"] for system, _ in answers) == {True: 4, False: 4}
    assert "principle" not in json.dumps([r["messages"] for r in read_lines(tmp_path / "records.jsonl")])


def test_an_answer_that_needs_no_change_is_not_revised(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str:
        return "Nothing to change" if "review" in body["messages"][0]["content"] else words(body)

    with ChatServer(reply=reply) as server:
        synthesize(recipe(tmp_path, server, num_conversations=5, revisions=1), constitution())
        assert len(server.bodies) == 10
    for record in read_lines(tmp_path / "records.jsonl"):
        assert record["revisions"][0]["revised"] is None
        assert record["revisions"][0]["draft"] == record["messages"][1]["content"]


@pytest.mark.parametrize(
    ("thinking", "text", "kept"),
    [
        (0.0, "<think>\nHm.\n</think>\n\nYes.", "Yes."),
        (1.0, "<think>Hm.</think>Yes.", "<think>\nHm.\n</think>\n\nYes."),
        (1.0, "Yes.", None),
        (1.0, "<think></think>Yes.", None),
        (0.0, "<think>Hm.</think>", None),
        (0.0, "<think>Hm. Yes.", None),
        (1.0, "<think>Hm.</think>Yes.<think>Or no.</think>", None),
        (0.0, "Yes.</think>No.", None),
    ],
)
def test_thoughts_stand_where_training_reads_them_or_the_answer_is_asked_for_again(
    tmp_path: Path, thinking: float, text: str, kept: str | None
) -> None:
    good = "<think>\nAgain.\n</think>\n\nGood." if thinking else "Good."
    replies = iter([text, good])
    categories = [{"name": "one", "share": 1.0, "templates": ["What is {topic}?"], "thinking": thinking}]
    with ChatServer(reply=lambda body: next(replies)) as server:
        synthesize(recipe(tmp_path, server, num_conversations=1), constitution(categories=categories))
    (record,) = read_lines(tmp_path / "records.jsonl")
    assert record["messages"][1]["content"] == (kept or good)


def test_verify_names_every_record_that_was_touched(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server, num_conversations=10)
        assert run(folder, settings)[0] == 0
    assert run(folder, settings, "--verify", "true") == (
        0,
        "10 of 10 records follow from the constitution and the seed\n",
    )
    records = sorted(read_lines(folder / "records.jsonl"), key=lambda record: record["index"])
    records[2]["messages"][1]["content"] += "!"
    records[3]["messages"][0]["content"] += "!"
    records[4]["persona"] = "a ghost"
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, records[5]]))
    code, said = run(folder, settings, "--verify", "true")
    assert code == 1
    assert said.splitlines() == [
        "6 of 10 records follow from the constitution and the seed",
        "record 2: another sha256",
        "record 3: another sha256, messages[0]",
        "record 4: another persona",
        "record 5: another index (there twice)",
    ]


def test_the_folder_remembers_its_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ChatServer() as server:
        settings = recipe(folder, server, num_conversations=3, env={"MY_API_KEY": "sk-secret", "A": "b"})
        synthesize(settings, constitution())
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert kept["constitution"] == asdict(constitution())
    assert kept["env"] == {"MY_API_KEY": "(not stored)", "A": "b"}
    again = SynthesizeRecipe(**kept | {"env": {}, "provider": settings.provider, "constitution": kept["constitution"]})
    assert run(folder, again, "--verify", "true")[0] == 0


def test_a_run_shows_its_key_to_nobody_but_the_server(tmp_path: Path) -> None:
    folder, key = tmp_path / "run", "sk-very-secret-7d1f"
    with ChatServer() as server:
        settings = recipe(folder, server, env={"TEST_API_KEY": key})
        settings.provider.api_key_env = "TEST_API_KEY"
        server.reply = on_request(20, lambda: server.rates.update({"401": 1.0}))
        code, said = run(folder, settings)
        assert code == 2
        assert "the key in TEST_API_KEY is refused (401)" in said
        server.rates = {}
        code, more = run(folder, settings)
        assert code == 0
        assert server.keys == {f"bearer {key}"}
    written = [path.read_text() for path in folder.iterdir()]
    assert len(written) > 8
    assert not [text for text in [said, more, *written] if key in text]


def test_a_dry_run_shows_prompts_and_writes_nothing(tmp_path: Path) -> None:
    code, said = run(tmp_path / "run", recipe(tmp_path / "run"), "--dry_run", "true")
    assert code == 0
    assert "num_conversations: 40" in said
    assert said.count("\n#   ") == 5
    assert not (tmp_path / "run").exists()
