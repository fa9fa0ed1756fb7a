"""What is kept of synthetic conversations: every filter by what it drops and what it leaves, and what is written."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import UserError
from genesis_hf.synthesis.constitution import Constitution, load_constitution
from genesis_hf.synthesis.quality import curate
from genesis_hf.synthesis.quality.duplicates import GRAM, Duplicates
from genesis_hf.synthesis.recipe import QualitySettings

WORDS = "river stone bridge window letter garden number morning winter table paper engine ship road cloud".split()  # noqa: SIM905


def constitution() -> Constitution:
    """Two categories, of which one allows refusals, and a topic that no record has."""
    templates = {"templates": ["What about {topic}?"], "topics": ["ships", "roads", "towers"]}
    return load_constitution(
        {
            "principles": [{"name": "plain", "text": "Say what is so."}],
            "categories": [
                {"name": "talk", "share": 0.75, **templates},
                {"name": "safety", "share": 0.25, "refusals": True, **templates},
            ],
            "personas": ["a sailor", "a mason"],
            "languages": {"en": 0.5, "de": 0.5},
        }
    )


def sentence(number: int, words: int = 40) -> str:
    """English words that no other number's text has in the same order."""
    rng = random.Random(number)
    return f"In the {number}th year the " + " ".join(rng.choices(WORDS, k=words)) + "."


def record(index: int, answer: str | None = None, **changes: Any) -> dict[str, Any]:
    """A record that every filter lets through, with another answer or other keys."""
    messages = [
        {"role": "user", "content": f"What about number {index}?"},
        {"role": "assistant", "content": sentence(index) if answer is None else answer},
    ]
    asked = {"category": "talk", "topic": "ships", "persona": "a sailor", "language": "en", "thinking": False}
    return {"index": index, "messages": messages, **asked, "provider": "openai", "model": "some-model", **changes}


def write_records(path: Path, records: list[dict[str, Any]], end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in records) + end, encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curated(tmp_path: Path, records: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], dict[int, str]]:
    """The figures, and by number why a record was dropped."""
    figures = curate(
        write_records(tmp_path / "records.jsonl", records), tmp_path / "out", constitution(), QualitySettings(**changes)
    )
    kept = {row["index"] for row in read(tmp_path / "out/conversations.jsonl")}
    dropped = {row["index"]: row["reason"] for row in read(tmp_path / "out/dropped.jsonl")}
    assert kept | set(dropped) == {row["index"] for row in records}
    assert not kept & set(dropped)
    assert figures["kept"] == len(kept)
    assert sum(figures["dropped"].values()) == len(dropped)
    return figures, dropped


LONG = sentence(99, 300)
GERMAN = "Der Fluss fließt langsam durch das Tal, und am Abend sitzen die Leute am Ufer und erzählen sich Geschichten."


@pytest.mark.parametrize(
    ("answer", "changes", "reason"),
    [
        ("I'm sorry, but I can't help with that.", {}, "refusal"),
        ("I'm sorry, but I can't help with that.", {"category": "safety"}, None),
        ("The bridge is old. I hope this helps!", {}, "boilerplate"),
        ("As an AI language model, I like the bridge.", {}, "boilerplate"),
        ('He wrote "I hope this helps" on the letter.', {}, None),
        ("the river and the stone and " * 20, {}, "repetitive"),
        (GERMAN, {}, "language"),
        (GERMAN, {"language": "de"}, None),
        ("Ja, gern.", {}, None),
        ("Casarecce, gnocchi, tonnarelli, orecchiette, conchiglie, focaccia, grissini, ciabatta, piadina.", {}, None),
        ("   ", {}, "not trainable"),
        ("<think>What to say?</think>", {}, "empty"),
        ("def f(x):\n    return x\n", {}, None),
    ],
)
def test_each_filter_drops_what_it_is_for_and_nothing_else(
    tmp_path: Path, answer: str, changes: dict[str, Any], reason: str | None
) -> None:
    _, dropped = curated(tmp_path, [record(0), record(1, answer, **changes)])
    assert dropped == ({1: reason} if reason else {})


@pytest.mark.parametrize(
    ("answer", "setting"),
    [
        ("I'm sorry, but I can't help with that.", {"drop_refusals": False}),
        ("The bridge is old. I hope this helps!", {"drop_boilerplate": False}),
        (GERMAN, {"check_language": False}),
        ("the river and the stone and " * 20, {"max_answer_repetition": 1.0}),
    ],
)
def test_a_filter_can_be_turned_off(tmp_path: Path, answer: str, setting: dict[str, Any]) -> None:
    assert curated(tmp_path, [record(0), record(1, answer)], **setting)[1] == {}


def test_copies_are_dropped_and_the_first_one_is_kept(tmp_path: Path) -> None:
    copy = {"messages": record(3)["messages"]}
    near = LONG.replace("river", "stream", 1)
    records = [record(9, **copy), record(3), record(4, LONG), record(5, near), record(6, "Yes."), record(7, "Yes.")]
    _, dropped = curated(tmp_path, records)
    assert dropped == {9: "duplicate", 5: "near duplicate"}  # a short answer alone doesn't make two questions alike
    assert curated(tmp_path, records, near_duplicates=1.0)[1] == {9: "duplicate"}


def grams(texts: list[str]) -> set[tuple[str, ...]]:
    """Word 5-grams, written down the plain way."""
    found = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        whole = {tuple(words)} if words else set()
        found |= {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)} or whole
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.95]))
def test_only_what_is_as_alike_as_said_counts_as_a_copy(seed: int, threshold: float) -> None:
    """LSH's own guesses never decide; of what is far above the threshold it misses nothing."""
    rng = random.Random(seed)
    texts: dict[int, list[str]] = {}
    duplicates = Duplicates(threshold, texts.__getitem__)
    for number in range(12):
        words = rng.choices(WORDS, k=rng.choice([2, 5, 60]))
        if texts and rng.random() < 0.7:
            words = rng.choice(list(texts.values()))[1].split()
            for _ in range(rng.randrange(4)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
        text = [f"Question {seed}?", " ".join(words)]
        similar = {
            other: len(grams(text) & grams(earlier)) / len(grams(text) | grams(earlier))
            for other, earlier in texts.items()
        }
        found = duplicates.find_or_add(number, text)
        if found is None:
            assert not any(value == 1 or value > threshold + 0.15 for value in similar.values())
            texts[number] = text
        else:
            assert found[1] == pytest.approx(similar[found[0]])
            assert found[1] >= threshold


def test_an_item_of_an_evaluation_set_is_found_in_question_and_answer(tmp_path: Path) -> None:
    item = "The quick lighthouse keeper counted seventeen grey seals on the northern rocks before breakfast on Sunday"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": item, "answer": "B"}) + "\n")
    asked = record(2)
    asked["messages"][0]["content"] = f"Is this so: {item.lower()}?"
    figures, dropped = curated(
        tmp_path, [record(0), record(1, f"I read that {item}."), asked], evaluation_sets=[str(tmp_path / "exam.jsonl")]
    )
    assert dropped == {1: "contaminated", 2: "contaminated"}
    assert figures["evaluation_items"] == 1
    assert "exam.jsonl, record 1" in read(tmp_path / "out/dropped.jsonl")[0]["details"]


def test_the_result_does_not_depend_on_the_order_in_which_answers_came(tmp_path: Path) -> None:
    records = [record(index, LONG if index % 5 == 0 else None) for index in range(30)]
    results = []
    for place, rows in enumerate((records, records[::-1])):
        folder = tmp_path / str(place)
        folder.mkdir()
        curated(folder, rows)
        results.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert results[0] == results[1]
    assert len(results[0]) == 5


def test_half_a_last_line_is_no_record_and_any_other_damage_is_named(tmp_path: Path) -> None:
    path = write_records(tmp_path / "records.jsonl", [record(0), record(1)], end='\n{"index": 2, "mess')
    assert curate(path, tmp_path / "out", constitution(), QualitySettings())["records"] == 2
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(UserError, match=r"records.jsonl, line 1: no JSON object with a number `index`"):
        curate(path, tmp_path / "out", constitution(), QualitySettings())
    path.write_text("")
    with pytest.raises(UserError, match="not one record"):
        curate(path, tmp_path / "out", constitution(), QualitySettings())


def test_a_run_that_fails_leaves_the_files_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curated(tmp_path, [record(0), record(1)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    more = write_records(tmp_path / "records.jsonl", [record(index) for index in range(9)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genesis_hf.synthesis.quality.diversity.Diversity.figures", full)
    monkeypatch.setattr("genesis_hf.synthesis.quality.lines.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        curate(more, tmp_path / "out", constitution(), QualitySettings())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_shares_coverage_and_lengths_are_what_was_kept(tmp_path: Path) -> None:
    records = [
        record(index, topic=["ships", "roads"][index % 2], language="de" if index == 0 else "en") for index in range(8)
    ]
    records += [record(8, "I'm sorry, but I can't help with that."), record(9, category="safety", persona="a mason")]
    figures, _ = curated(tmp_path, records, check_language=False)
    assert figures["shares"]["category"]["talk"] == {"asked": 0.75, "written": 9, "kept": 8}
    assert figures["shares"]["language"]["de"] == {"asked": 0.5, "written": 1, "kept": 1}
    assert figures["coverage"]["topics"] == {
        "asked": 6, "found": 3, "missing": ["safety: roads", "safety: towers", "talk: towers"]
    }  # fmt: skip
    assert figures["coverage"]["personas"] == {"asked": 2, "found": 2}
    words = [len(row["messages"][1]["content"].split()) for row in read(tmp_path / "out/conversations.jsonl")]
    assert figures["lengths"]["mean"] == pytest.approx(sum(words) / len(words))
    assert sum(figures["lengths"]["histogram"]["counts"]) == len(words) == figures["openings"]["answers"]


def test_distinct_n_counts_each_sequence_once(tmp_path: Path) -> None:
    figures, _ = curated(tmp_path, [record(0, "one two one two"), record(1, "one two three")])
    assert figures["distinct"]["distinct_1"] == pytest.approx(3 / 7)
    assert figures["distinct"]["distinct_2"] == pytest.approx(3 / 5)  # one two, two one, two three
    assert figures["openings"]["most_common"][0] == {"words": "one two one two", "answers": 1}


def test_what_is_kept_can_be_trained_on_and_its_card_read(tmp_path: Path) -> None:
    curated(tmp_path, [record(index) for index in range(3)], license="cc-by-4.0")
    for row in read(tmp_path / "out/conversations.jsonl"):
        assert to_messages(row) == row["messages"]
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == ["en"]
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "conversations.jsonl"}]
    assert "some-model | 3 |" in card.text


def test_the_report_shows_samples_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    records = [record(index) for index in range(30)]
    records[7]["messages"][1]["content"] = "<script>alert('the tower')</script> and the river"
    curated(tmp_path, records)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.count("<blockquote>") == 20
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
