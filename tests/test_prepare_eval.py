"""Evaluation sets in their authors' forms become tasks that lm-eval's own definitions read."""

import csv
import gzip
import json
from pathlib import Path

import pytest
import yaml
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from genesis_hf.errors import UserError
from genesis_hf.evaluation import set_forms
from genesis_hf.evaluation.harness import find_tasks, load_task
from genesis_hf.evaluation.task_files import prepare_tasks

ARC = {
    "id": "x",
    "question": {"stem": "What is wet?", "choices": [{"text": "ice", "label": "1"}, {"text": "water", "label": "2"}]},
    "answerKey": "2",
}
HELLASWAG = {"activity_label": "Rowing", "endings": ["a.", "b.", "c.", "d."], "label": 2}


def write_lines(path: Path, rows: list, compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)


def write_sets(folder: Path) -> Path:
    """A few records of each set, in a form that its authors or llm-foundry use."""
    write_lines(folder / "hellaswag_val.jsonl", [{**HELLASWAG, "ctx": "A man rows. the boat", "ind": 0}] * 3)
    write_lines(folder / "piqa" / "valid.jsonl.gz", [{"goal": "g", "sol1": "one", "sol2": "two"}] * 3, compressed=True)
    (folder / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n")
    blank = {"qID": "q", "sentence": "Ann saw Bo so _ left.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    write_lines(folder / "winogrande" / "dev.jsonl", [blank] * 3)
    write_lines(folder / "winogrande" / "train_s.jsonl", [blank] * 2)
    write_lines(folder / "arc" / "ARC-Challenge-Test.jsonl", [ARC] * 3)
    in_context = {"query": "Question: What is wet?", "choices": ["ice", "water"], "gold": 1}
    write_lines(folder / "foundry" / "arc_easy.jsonl", [in_context] * 3)
    write_lines(folder / "foundry" / "arc_challenge.jsonl", [in_context] * 9)
    write_lines(folder / "lambada_test.jsonl", [{"text": "one two three"}] * 3)
    (folder / "mmlu" / "test").mkdir(parents=True)
    (folder / "mmlu" / "dev").mkdir()
    for part, rows in (("test", 3), ("dev", 5)):
        with open(folder / "mmlu" / part / f"anatomy_{part}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["Where, then?", "here", "there", "no", "yes", "B"]] * rows)
    with open(folder / "TruthfulQA.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Type", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"])
        writer.writerow(["x", "Why?", "Because", "Because; So", "Never; Always"])
    write_lines(folder / "blimp" / "transitive.jsonl", [{"sentence_good": "I eat.", "sentence_bad": "I eats."}] * 3)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def prepared(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "tasks"
    done = run_script("scripts/prepare_eval.py", "--source_dir", sets, "--output_dir", folder)
    assert "arc_challenge         3 items" in done.stdout  # the authors' own file, not the in-context one
    assert "no data for: gsm8k, openbookqa, boolq, copa" in done.stdout
    return folder


def test_every_task_is_read_by_lm_evals_own_definition(prepared: Path) -> None:
    names = ["hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge", "lambada_openai", "mmlu", "blimp"]
    names.append("truthfulqa_mc1")
    manager = find_tasks(names, str(prepared))
    tasks = {name: task for top in names for name, task in load_task(manager, top)["tasks"].items()}
    assert set(tasks) == {*names, "mmlu_anatomy", "blimp_transitive"} - {"mmlu", "blimp"}
    first = {name: next(iter(task.eval_docs)) for name, task in tasks.items()}

    def asked(name: str) -> tuple:
        task = tasks[name]
        return task.doc_to_text(first[name]), task.doc_to_choice(first[name]), task.doc_to_target(first[name])

    assert asked("hellaswag") == ("Rowing: A man rows. The boat", ["a.", "b.", "c.", "d."], 2)
    assert asked("piqa") == ("Question: g\nAnswer:", ["one", "two"], 0)
    assert asked("winogrande") == (1, ["Ann saw Bo so Ann", "Ann saw Bo so Bo"], "left.")
    for name in ("arc_easy", "arc_challenge"):
        assert asked(name) == ("Question: What is wet?\nAnswer:", ["ice", "water"], 1)
    assert asked("mmlu_anatomy")[0] == "Where, then?\nA. here\nB. there\nC. no\nD. yes\nAnswer:"
    assert asked("mmlu_anatomy")[2] == 1
    assert asked("truthfulqa_mc1")[1:] == (["Because", "Never", "Always"], 0)
    assert asked("blimp_transitive") == ("", ["I eat.", "I eats."], 0)
    lambada = tasks["lambada_openai"]
    assert (lambada.doc_to_text(first["lambada_openai"]), lambada.doc_to_target(first["lambada_openai"])) == (
        "one two",
        " three",
    )
    assert len(list(tasks["mmlu_anatomy"].fewshot_docs())) == 5
    assert len(list(tasks["winogrande"].fewshot_docs())) == 2


def test_examples_never_come_from_the_item_itself(prepared: Path) -> None:
    values = yaml.safe_load((prepared / "hellaswag.yaml").read_text())
    assert (values["test_split"], values["fewshot_split"], values["validation_split"]) == ("test", "test", None)


@given(
    shared=st.lists(st.sampled_from(["the", "old", "Ann", "saw"]), min_size=1, max_size=5).map(" ".join),
    options=st.lists(
        st.sampled_from(["Ann", "Anna", "the boat", "the boy", "Bo"]), min_size=2, max_size=2, unique=True
    ),
)
def test_in_context_sentences_come_back_whole(shared: str, options: list[str]) -> None:
    beginnings = [f"{shared} {option}" for option in options]
    row = set_forms.winogrande({"context_options": beginnings, "continuation": "left.", "gold": 0})
    blank = row["sentence"].index("_")
    assert [row["sentence"][:blank] + row[key] for key in ("option1", "option2")] == beginnings
    assert row["sentence"][blank + 1 :].strip() == "left."


def test_other_in_context_forms() -> None:
    passage = {"query": "Passage: P.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}
    assert set_forms.boolq(passage) == {"passage": "P.", "question": "is it", "label": 1}
    cause = {"query": "He ran, because", "choices": ["It rained.", "It shone."], "gold": 0}
    assert set_forms.copa(cause)["premise"] == "He ran."
    sum_ = {"context": "1 + 1?", "chain_of_thought": "It is 2.", "answer": "2"}
    assert set_forms.gsm8k(sum_) == {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    assert set_forms.split_unfinished("How to row. Sit down. Take the oars.") == (
        "How to row. Sit down. Take the oars.",
        "",
    )


def test_mistakes_name_themselves(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'helaswag' is not one of .*; did you mean `hellaswag`"):
        prepare_tasks(sets, tmp_path / "out", ["helaswag"])
    with pytest.raises(UserError, match="no file of gsm8k there"):
        prepare_tasks(sets, tmp_path / "out", ["gsm8k"])
    with pytest.raises(UserError, match="no such folder"):
        prepare_tasks(tmp_path / "nowhere", tmp_path / "out")
    bad = tmp_path / "bad"
    write_lines(bad / "hellaswag_val.jsonl", [{**HELLASWAG, "ctx": "x"}, {**HELLASWAG, "ctx": "x", "label": 7}])
    with pytest.raises(UserError, match=r"hellaswag_val.jsonl, record 2: no form of hellaswag .*label 7"):
        prepare_tasks(bad, tmp_path / "out", ["hellaswag"])
    write_lines(bad / "piqa" / "valid.jsonl", [{"goal": "g", "sol1": "one", "sol2": "two"}] * 3)
    (bad / "piqa" / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(UserError, match="2 labels for the 3 records"):
        prepare_tasks(bad, tmp_path / "out", ["piqa"])
