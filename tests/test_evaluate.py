"""Evaluation: lm-eval's own figures, each with its error and chance level, kept until something changes."""

import importlib.util
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import LIBRARIES, launch, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import byte_tokenizer, random_model
from small_runs import write_recipe

from genesis_hf.config import EvaluateRecipe, Source, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.evaluation import evaluate as evaluate_module
from genesis_hf.evaluation.batch_size import fitting_batch_size
from genesis_hf.evaluation.bits_per_byte import bits_per_byte, cut, xz_bits_per_byte
from genesis_hf.evaluation.compare import comparison, load_evaluation
from genesis_hf.evaluation.evaluate import evaluate
from genesis_hf.evaluation.results import read_items
from genesis_hf.evaluation.sanity import warnings
from genesis_hf.export import resolve_model, write_llama_folder
from genesis_hf.files import hash_items
from genesis_hf.uncertainty import against_chance, linearize, standard_error

TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_last_word": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    tokenizer_dir = tmp_path_factory.mktemp("tokenizer")
    write_llama_folder(random_model(tied=True), byte_tokenizer(tokenizer_dir), folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks over generated items, half of the choices of two, half of four answers, and a group of two."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    words = ["river", "stone", "under", "bright", "cloud", "seven", "old"]
    rows = {name: [] for name in TASKS}
    for number in range(40):
        text = " ".join(rng.choices(words, k=rng.randint(4, 12)))
        choices = rng.sample(words, 2 if number % 2 else 4)
        rows["tiny_choice"].append(
            {"question": text, "choices": choices, "answer": rng.randrange(len(choices)), "text": text}
        )
        rows["tiny_last_word"].append({"text": text})
        rows["tiny_rolling"].append({"text": text})
    for name, body in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test"
        (folder / f"{name}.yaml").write_text(f"{head}{body}metadata: {{version: 1.0}}\n")
    (folder / "group.yaml").write_text(
        "group: tiny_group\ntask: [tiny_choice, tiny_last_word]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 1.0}\n"
    )
    return folder


def recipe(folder: Path, /, **changes: object) -> EvaluateRecipe:
    values = {"model": ["x"], "tasks": list(TASKS), "include_path": str(folder), "batch_size": 8}
    return EvaluateRecipe(**{**values, **changes})


@pytest.fixture(scope="module")
def evaluated(model: Path, tasks: Path, corpus: Path) -> dict:
    held_out = [Source(name="prose", paths=[str(corpus / "heldout.jsonl")])]
    return evaluate(model, recipe(tasks, held_out_sources=held_out))


def test_figures_are_those_of_lm_evals_own_command_line(model: Path, tasks: Path, tmp_path: Path, evaluated: dict):
    names = "tiny_choice,tiny_rolling"  # perplexity's error is bootstrapped there, which takes long
    arguments = ["--model", "hf", "--model_args", f"pretrained={model}", "--tasks", names, "--include_path", tasks]
    arguments += ["--device", "cpu", "--batch_size", "8", "--output_path", tmp_path]
    run_script("-m", "lm_eval", *arguments, warm=LIBRARIES)
    (file,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    compared = 0
    for task in names.split(","):
        for metric, entry in evaluated["tasks"][task].items():
            assert entry["value"] == pytest.approx(theirs[task][f"{metric},none"], rel=1e-6)
            if task == "tiny_choice":
                assert entry["stderr"] == pytest.approx(theirs[task][f"{metric}_stderr,none"], rel=1e-6)
            compared += 1
    assert compared == 5


def test_chance_is_the_mean_of_one_over_the_choices(evaluated: dict) -> None:
    choice = evaluated["tasks"]["tiny_choice"]["acc"]
    assert choice["chance"] == pytest.approx((20 / 2 + 20 / 4) / 40)
    assert abs(choice["value"] - choice["chance"]) < 4 * choice["stderr"]  # the model knows nothing
    assert choice["n"] == 40
    assert evaluated["tasks"]["tiny_last_word"]["acc"]["chance"] is None
    assert evaluated["tasks"]["tiny_rolling"]["bits_per_byte"]["chance"] is None
    assert not evaluated["tasks"]["tiny_rolling"]["bits_per_byte"]["higher_is_better"]


def test_rolling_task_and_held_out_loss_agree(model: Path, tasks: Path, evaluated: dict, tmp_path: Path) -> None:
    source = Source(name="same", paths=[str(tasks / "tiny_rolling.jsonl")])
    result = evaluate(model, recipe(tasks, tasks=[], held_out_sources=[source]), tmp_path)
    ours = result["tasks"]["held_out/same"]["bits_per_byte"]
    theirs = evaluated["tasks"]["tiny_rolling"]["bits_per_byte"]
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert ours["stderr"] == pytest.approx(theirs["stderr"], rel=1e-4)


def test_held_out_stands_beside_its_yardstick(evaluated: dict, corpus: Path) -> None:
    entry = evaluated["tasks"]["held_out/prose"]["bits_per_byte"]
    text = [json.loads(line)["text"] for line in (corpus / "heldout.jsonl").read_text().splitlines()]
    assert entry["bytes"] == sum(len(t.encode()) for t in text)
    assert entry["yardstick"] == {"name": "xz -9", "value": xz_bits_per_byte(text)}
    assert entry["loss"] * entry["tokens"] / entry["bytes"] / math.log(2) == pytest.approx(entry["value"])


def test_items_give_the_scores(model: Path, evaluated: dict) -> None:
    items = read_items(model)
    for (task, metric), line in items.items():
        entry = evaluated["tasks"][task][metric]
        scores = linearize(line["aggregation"], line["values"])
        assert scores.mean() == pytest.approx(entry["value"], rel=1e-6)
        assert standard_error(scores) == pytest.approx(entry["stderr"])
    assert {task for task, _ in items} == {*TASKS, "held_out/prose"}


def test_provenance_of_every_task(evaluated: dict) -> None:
    for task in evaluated["tasks"]:
        provenance = evaluated["provenance"][task]
        for key in ("task_version", "config_sha256", "data_sha256", "num_fewshot", "compute_dtype", "date"):
            assert provenance[key] is not None
        assert provenance["model_sha256"] == evaluated["model_sha256"]
        assert provenance["bos_token_added"] is False
        assert provenance["prefix_token"] == "</s>"


def test_results_are_kept_until_something_changes(
    model: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loads = []
    load = evaluate_module.load_lm
    monkeypatch.setattr(evaluate_module, "load_lm", lambda *args: loads.append(1) or load(*args))
    one = recipe(tasks, tasks=["tiny_choice"], limit=10)
    first = evaluate(model, one, tmp_path)
    assert first["tasks"]["tiny_choice"]["acc"]["n"] == 10
    capsys.readouterr()
    assert evaluate(model, one, tmp_path) == first
    assert "kept from" in capsys.readouterr().out
    assert len(loads) == 1
    evaluate(model, recipe(tasks, tasks=["tiny_choice", "tiny_rolling"], limit=10), tmp_path)
    assert len(loads) == 2
    second = evaluate(model, recipe(tasks, tasks=["tiny_choice"], limit=20), tmp_path)
    assert second["tasks"]["tiny_choice"]["acc"]["n"] == 20
    assert "tiny_rolling" in second["tasks"]
    evaluate(model, recipe(tasks, tasks=["tiny_choice"], limit=20, use_cache=False), tmp_path)
    assert len(loads) == 4
    data = tasks / "tiny_choice.jsonl"
    original = data.read_text()
    data.write_text(original.replace("river", "brook"))
    changed = evaluate(model, recipe(tasks, tasks=["tiny_choice"], limit=20), tmp_path)
    data.write_text(original)
    assert len(loads) == 5
    key = "data_sha256"
    assert changed["provenance"]["tiny_choice"][key] != second["provenance"]["tiny_choice"][key]


def test_a_task_with_functions_hashes_alike_in_every_process(tmp_path: Path) -> None:
    def load(source: str) -> object:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("task_functions", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.doc_to_text

    one, same, other = (load(f"def doc_to_text(doc):\n    return {value}\n") for value in (1, 1, 2))
    assert hash_items([{"f": one}]) == hash_items([{"f": same}]) != hash_items([{"f": other}])


def test_group_is_scored_over_its_tasks_items(model: Path, tasks: Path, tmp_path: Path) -> None:
    result = evaluate(model, recipe(tasks, tasks=["tiny_group"]), tmp_path)
    parts = [result["tasks"][name]["acc"] for name in ("tiny_choice", "tiny_last_word")]
    group = result["tasks"]["tiny_group"]["acc"]
    assert group["value"] == pytest.approx(sum(part["value"] for part in parts) / 2)
    assert group["n"] == 80
    assert group["chance"] is None  # a part has none
    values = [v for name in ("tiny_choice", "tiny_last_word") for v in read_items(tmp_path)[name, "acc"]["values"]]
    assert group["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(80))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["tiny_choise"]}, "no task 'tiny_choise'; did you mean `tiny_choice`"),
        ({"include_path": "nowhere"}, "include_path nowhere: no such folder"),
        ({"tasks": ["broken"]}, "task broken can't be loaded"),
        ({"tasks": [], "held_out_sources": [Source(name="none", paths=["nowhere/*.jsonl"])]}, "no file matches"),
    ],
)
def test_mistakes_name_themselves(model: Path, tasks: Path, tmp_path: Path, changes: dict, words: str) -> None:
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: nowhere.jsonl}\n"
    )
    values = {"include_path": str(tmp_path if changes.get("tasks") == ["broken"] else tasks), **changes}
    with pytest.raises(UserError, match=words):
        evaluate(model, recipe(tasks, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_found(model: Path, tmp_path: Path) -> None:
    assert resolve_model(str(model)) == model
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        resolve_model(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        resolve_model("no/such/model")
    with pytest.raises(UserError, match="neither a folder nor a model of the Hub"):
        resolve_model("nobody/nothing")


def test_recipe_takes_models_and_tasks_in_a_row() -> None:
    words = ["--model", "a,b", "--tasks", "piqa,mmlu", "--limit", "0.5", "--batch_size", "auto"]
    (parsed,) = parse_recipe(EvaluateRecipe, argv=words)
    assert (parsed.model, parsed.tasks) == (["a", "b"], ["piqa", "mmlu"])
    assert (parsed.limit, parsed.batch_size) == (0.5, "auto")
    with pytest.raises(UserError, match="batch_size"):
        parse_recipe(EvaluateRecipe, argv=[*words, "--batch_size", "many"])
    with pytest.raises(UserError, match="nothing to evaluate"):
        parse_recipe(EvaluateRecipe, argv=["--model", "a"])


# ---------------------------------------------------------------------------------------------------------
# A model that knows nothing
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every token has the same probability after every text."""
    folder = tmp_path_factory.mktemp("models") / "uniform"
    model = random_model(tied=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    write_llama_folder(model, byte_tokenizer(tmp_path_factory.mktemp("tokenizer")), folder)
    return folder


def write_choices(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test"
    (folder / f"{name}.yaml").write_text(f"{head}{TASKS['tiny_choice']}metadata: {{version: 1.0}}\n")


def test_ties_are_shared_not_given_to_the_first(uniform: Path, tmp_path: Path) -> None:
    """All choices as long: lm-eval takes the first, which is right as often as the authors put it first."""
    choices = ["aa", "bb", "cc", "dd"]
    answers = [0] * 5 + [1] * 25 + [2] * 30 + [3] * 40
    rows = [{"question": f"q{i}", "choices": choices, "answer": answer} for i, answer in enumerate(answers)]
    write_choices(tmp_path / "tasks", "even", rows)
    found = evaluate(uniform, recipe(tmp_path / "tasks", tasks=["even"]), tmp_path)["tasks"]["even"]["acc"]
    assert found["value"] == 0.05  # lm-eval's own
    assert found["ties"] == 1
    assert found["value_ties_shared"] == found["by_length"] == found["chance"] == 0.25
    assert against_chance(found) == "not distinguishable from chance"
    (note,) = comparison([load_evaluation(tmp_path)])["notes"][:1]
    assert "100% of the items of even are ties" in note
    assert "0.050; shared they make 0.250" in note
    assert against_chance({**found, "value_ties_shared": found["value"], "by_length": None}).startswith("below chance")


def test_length_alone_is_told_from_knowledge(uniform: Path, tmp_path: Path) -> None:
    """The right answer is the longest: a model of equal probabilities takes the shortest, and is mostly wrong."""
    rows = [{"question": f"q{i}", "choices": ["a", "bb", "cccc"], "answer": 2} for i in range(60)]
    rows += [{"question": f"r{i}", "choices": ["aaa", "b", "cc"], "answer": 1} for i in range(6)]
    write_choices(tmp_path / "tasks", "long", rows)
    found = evaluate(uniform, recipe(tmp_path / "tasks", tasks=["long"]), tmp_path)["tasks"]["long"]
    acc, norm = found["acc"], found["acc_norm"]
    assert acc["value"] == acc["by_length"] == pytest.approx(6 / 66)
    assert acc["chance"] == pytest.approx(1 / 3)
    assert against_chance(acc).startswith("not distinguishable from a choice by length alone (0.091; below chance by")
    # With the space before it a choice of n letters has n + 1 tokens: the longest has the most letters a token.
    assert norm["value"] == norm["by_length"] == pytest.approx(60 / 66)
    assert against_chance({**acc, "value": 0.9, "value_ties_shared": 0.9}).startswith("above chance by")


def test_several_processes_share_items_and_text(
    model: Path, tasks: Path, corpus: Path, evaluated: dict, tmp_path: Path
) -> None:
    values = {"model": [str(model)], "tasks": ["tiny_group"], "include_path": str(tasks), "batch_size": 8}
    values["held_out_sources"] = [{"name": "prose", "paths": [str(corpus / "heldout.jsonl")]}]
    write_recipe({**values, "output_dir": str(tmp_path / "out")}, tmp_path / "recipe.yaml")
    done = launch("ddp_2gpu", "scripts/evaluate.py", "--config", tmp_path / "recipe.yaml")
    assert done.stdout.count("1 of 1: tiny_group, 80 items") == 1
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for task in ("tiny_choice", "tiny_last_word", "held_out/prose"):
        assert found["provenance"][task]["processes"] == 2
        for metric, entry in evaluated["tasks"][task].items():
            assert found["tasks"][task][metric]["value"] == pytest.approx(entry["value"], rel=1e-4)
            assert found["tasks"][task][metric]["n"] == entry["n"]


def test_figures_are_held_against_the_training_loss(model: Path, tasks: Path, corpus: Path, tmp_path: Path) -> None:
    held_out = [Source(name="prose", paths=[str(corpus / "heldout.jsonl")])]
    settings = {"tasks": ["tiny_last_word"], "held_out_sources": held_out}
    lost = evaluate(model, recipe(tasks, **settings, training_loss=0.5), tmp_path)
    assert any("the training loss was 0.50 nats a token, held-out text (prose) costs" in w for w in warnings(lost))
    assert json.loads((tmp_path / "evaluation.json").read_text())["suspects"] == lost["suspects"]
    sound = evaluate(model, recipe(tasks, **settings, training_loss=50.0), tmp_path)
    assert not any("training loss" in line for line in warnings(sound))


def test_strict_ends_with_a_code(model: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = ("--model", model, "--tasks", "tiny_last_word", "--include_path", tasks, "--training_loss", "0.5")
    done = run_script("scripts/evaluate.py", *arguments, "--output_dir", tmp_path, "--strict", "true", check=False)
    assert done.returncode == 1
    assert "WARNING: the figures of" in done.stdout
    assert "tiny_last_word's perplexity of" in done.stdout


def test_batch_size_is_what_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = random_model(tied=True, vocab_size=50_000).config

    def fitting(free: int, length: int, processes: int = 1) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        return fitting_batch_size(config, length, torch.device("cpu"), processes)

    assert fitting(10**6, 2048) == 1
    assert fitting(10**12, 2048) == 64
    some = fitting(10**10, 512)
    assert 1 < some < 64
    assert fitting(10**10, 1024) == some // 2
    assert fitting(10**10, 512, processes=2) == some // 2


def test_dry_run_needs_no_model() -> None:
    done = run_script("scripts/evaluate.py", "--model", "nowhere", "--tasks", "hellaswag,mmlu", "--dry_run", "true")
    assert "- hellaswag" in done.stdout


# ---------------------------------------------------------------------------------------------------------
# Bits per byte
# ---------------------------------------------------------------------------------------------------------


@given(length=st.integers(0, 200), window=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_every_token_is_scored_once_with_half_a_window_before_it(length: int, window: int) -> None:
    ids, eos = list(range(1, length + 1)), 0
    scored = []
    for piece in cut(0, ids, eos, window):
        assert len(piece.input_ids) == len(piece.targets) <= window
        assert piece.targets[:-1] == piece.input_ids[1:]
        first = piece.targets[-piece.scored]
        assert first == 1 or len(piece.targets) - piece.scored >= window // 2
        scored += piece.targets[-piece.scored :]
    assert scored == ids


def test_bits_per_byte_is_the_loss_over_the_bytes(tmp_path: Path) -> None:
    model, tokenizer = random_model(tied=True), byte_tokenizer(tmp_path)
    documents = ["short", "naïve </s> 👩‍👧 text", "a longer document " * 5]
    nats, size = 0.0, 0
    for text in documents:
        raw = text.encode()  # the tokenizer has a token a byte, so `</s>` in a text must be four
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(letters(raw))]])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= logits.gather(-1, ids[0, 1:, None]).sum().item()
        size += len(raw)
    found = bits_per_byte(model, tokenizer, documents, sequence_length=128, batch_size=2)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert (found["bytes"], found["tokens"]) == (size, size)
    other = bits_per_byte(model, tokenizer, documents, sequence_length=128, batch_size=3)
    assert other["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-6)
    windows = bits_per_byte(model, tokenizer, documents, sequence_length=32)
    assert windows["tokens"] == size
    assert windows["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=0.1)


def letters(raw: bytes) -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [bytes_to_unicode()[byte] for byte in raw]
