"""Comparison: words that follow from the numbers, and none where the numbers are not of the same thing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf.config import CompareRecipe
from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import comparison, distinct_names, load_evaluation
from genesis_hf.evaluation.results import Evaluation
from genesis_hf.evaluation.tables import markdown, plus_minus, write_comparison
from genesis_hf.uncertainty import against_base, against_chance, holm, linearize, p_value, standard_error

SETTINGS = {
    "task_version": 1.0,
    "config_sha256": "c0ffee",
    "data_sha256": "da7a",
    "num_fewshot": 0,
    "limit": None,
    "lm_eval": "0.4.13",
    "apply_chat_template": False,
    "chat_template_sha256": None,
    "bos_token_added": False,
    "compute_dtype": "float32",
    "prefix_token": "</s>",
}


def share(right: int, n: int, chance: float | None) -> tuple[dict, list[int]]:
    """An accuracy of `right` in `n` as evaluation.json holds it, and its items."""
    items = [1] * right + [0] * (n - right)
    entry = {"value": right / n, "stderr": standard_error(np.array(items, float)), "chance": chance, "n": n}
    return {**entry, "higher_is_better": True}, items


def write_model(folder: Path, scores: dict[str, tuple[dict, list[int]]], keep_items: bool = True, **changes) -> Path:
    evaluation = Evaluation(folder.name, folder.name, folder)
    for task, (entry, items) in scores.items():
        lines = [{"metric": "acc", "aggregation": "mean", "values": items}] if keep_items else []
        evaluation.add(task, {"acc": entry}, lines, {**SETTINGS, **changes})
    evaluation.write()
    return folder


def rows(*folders: Path) -> dict[tuple[str, str], dict]:
    result = comparison([load_evaluation(folder) for folder in folders])
    return {(row["task"], row["model"]): row for row in result["rows"]}


@pytest.mark.parametrize(
    ("value", "n", "chance", "words"),
    [
        # Published by a reference run, with the sets' own sizes; it read `above random` off the second.
        (0.25, 2376, 0.25, "not distinguishable from chance"),
        (0.488, 1267, 0.5, "not distinguishable from chance"),
        # 0.56 on PIQA's 1,838 would have been something: 0.06 / sqrt(0.56 · 0.44 / 1837) = 5.2.
        (0.56, 1838, 0.5, "above chance by 5.2 standard errors"),
        (0.44, 1838, 0.5, "below chance by 5.2 standard errors"),
    ],
)
def test_words_follow_from_the_numbers(value: float, n: int, chance: float, words: str) -> None:
    entry, _ = share(round(value * n), n, chance)
    assert against_chance(entry) == words


def test_all_wrong_is_below_chance_though_the_sample_has_no_spread() -> None:
    entry, _ = share(0, 100, 0.25)
    assert entry["stderr"] == 0
    assert against_chance(entry) == "below chance by 5.8 standard errors"  # 0.25 / sqrt(0.25 · 0.75 / 100)
    assert against_chance({**entry, "chance": None}) == ""


def test_paired_test_sees_what_two_errors_hide(tmp_path: Path) -> None:
    base, items = share(500, 1000, 0.5)
    better = [*items[:500], *([1] * 30), *items[530:]]
    entry = share(530, 1000, 0.5)[0]
    write_model(tmp_path / "base", {"t": (base, items)})
    write_model(tmp_path / "sft", {"t": (entry, better)})
    write_model(tmp_path / "blind", {"t": (entry, better)}, keep_items=False)
    found = rows(tmp_path / "base", tmp_path / "sft", tmp_path / "blind")
    assert "against_base" not in found["t", "base"]
    paired, unpaired = (found["t", name]["against_base"] for name in ("sft", "blind"))
    assert paired["paired"]
    assert paired["difference"] == pytest.approx(0.03)
    assert paired["stderr"] == pytest.approx(np.std([1] * 30 + [0] * 970, ddof=1) / math.sqrt(1000))
    assert paired["words"] == "better than base (p < 0.0001, paired)"
    assert not unpaired["paired"]
    assert unpaired["words"].startswith("not distinguishable from base (p = 0.18")


def test_lower_is_better_for_losses(tmp_path: Path) -> None:
    base = {"value": 2.0, "stderr": 0.01, "chance": None, "n": 50, "higher_is_better": False}
    assert against_base({**base, "value": 1.9}, base, "base")["words"].startswith("better than base")
    assert against_base({**base, "value": 2.1}, base, "base")["words"].startswith("worse than base")
    assert "nothing can be said" in against_base({**base, "stderr": None}, base, "base")["words"]
    assert "the same as base" in against_base(base, base, "base", np.zeros(50))["words"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task_version", 2.0, "task version (1.0 and 2.0)"),
        ("num_fewshot", 5, "number of shots (0 and 5)"),
        ("limit", 100.0, "limit (None and 100.0)"),
        ("data_sha256", "ba5e", "data (da7a and ba5e)"),
        ("config_sha256", "ba5e", "task definition (c0ffee and ba5e)"),
        ("lm_eval", "0.4.9", "version of lm-eval (0.4.13 and 0.4.9)"),
        ("apply_chat_template", True, "chat template applied (False and True)"),
        ("chat_template_sha256", "ba5e", "chat template (None and ba5e)"),
        ("bos_token_added", True, "BOS added (False and True)"),
        ("compute_dtype", "bfloat16", "dtype (float32 and bfloat16)"),
    ],
)
def test_unlike_runs_are_refused(tmp_path: Path, key: str, value: object, words: str) -> None:
    write_model(tmp_path / "a", {"t": share(5, 10, 0.5), "same": share(5, 10, 0.5)})
    write_model(tmp_path / "b", {"t": share(5, 10, 0.5)}, **{key: value})
    with pytest.raises(UserError) as raised:
        rows(tmp_path / "a", tmp_path / "b")
    assert f"t was not measured alike in a and b: {words} differ" in str(raised.value)


def test_unlike_runs_are_refused_where_the_first_lacks_the_task(tmp_path: Path) -> None:
    write_model(tmp_path / "a", {"other": share(5, 10, 0.5)})
    write_model(tmp_path / "b", {"t": share(5, 10, 0.5)})
    write_model(tmp_path / "c", {"t": share(5, 10, 0.5)}, num_fewshot=5)
    with pytest.raises(UserError, match=r"in b and c: number of shots"):
        rows(tmp_path / "a", tmp_path / "b", tmp_path / "c")


def test_what_may_differ_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "a", {"t": share(5, 10, 0.5)})
    write_model(tmp_path / "b", {"t": share(5, 10, 0.5)}, prefix_token="<|im_end|>")
    text = markdown(comparison([load_evaluation(tmp_path / name) for name in "ab"]))
    assert "Note: prefix_token differs (a: </s>, b: <|im_end|>)." in text


def test_script_prints_and_writes(tmp_path: Path) -> None:
    a = write_model(tmp_path / "base" / "final", {"t": share(300, 1000, 0.25), "only<a>": share(5, 10, None)})
    b = write_model(tmp_path / "sft" / "final", {"t": share(400, 1000, 0.25)})
    page = tmp_path / "out" / "compare.html"
    done = run_script("scripts/compare.py", a, b / "evaluation.json", "--output_file", page)
    assert "above chance by 3.4 standard errors" in done.stdout
    assert "| 0.400 ± 0.015 | 0.25" in done.stdout
    assert "better than base (p < 0.0001, paired)" in done.stdout
    assert "<td>only&lt;a&gt;</td>" in page.read_text()
    assert "better than base" in page.read_text()


def test_json_holds_the_numbers(tmp_path: Path) -> None:
    a = write_model(tmp_path / "a", {"t": share(300, 1000, 0.25)})
    b = write_model(tmp_path / "b", {"t": share(400, 1000, 0.25)})
    write_comparison(comparison([load_evaluation(a), load_evaluation(b)]), tmp_path / "c.json")
    row = json.loads((tmp_path / "c.json").read_text())["rows"][1]
    assert (row["value"], row["chance"], row["against_base"]["difference"]) == (0.4, 0.25, pytest.approx(0.1))


def test_words_count_all_tests_in_the_table(tmp_path: Path) -> None:
    """Of twenty scores at chance one stands out by itself: alone it would be called better, among the others not."""
    base = {f"t{i}": share(500, 1000, 0.5) for i in range(20)}
    lucky = {**base, "t7": share(535, 1000, 0.5)}
    write_model(tmp_path / "base", base, keep_items=False)
    write_model(tmp_path / "sft", lucky, keep_items=False)
    alone = against_chance(lucky["t7"][0])
    assert alone == "above chance by 2.2 standard errors"
    found = rows(tmp_path / "base", tmp_path / "sft")
    row = found["t7", "sft"]
    assert row["against_chance"].startswith("not distinguishable from chance (above chance by 2.2 standard errors")
    assert row["against_base"]["p_adjusted"] == 1
    result = comparison([load_evaluation(tmp_path / name) for name in ("base", "sft")])
    assert "the words against chance count 40 tests (Holm's method)" in result["notes"]
    assert "the words against base count 20 tests (Holm's method)" in result["notes"]


@given(st.lists(st.floats(0, 1) | st.none(), max_size=20))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    known = sorted((p, a) for p, a in zip(p_values, adjusted, strict=True) if p is not None)
    assert all(p <= a <= min(1, p * len(known)) for p, a in known)
    assert [a for _, a in known] == sorted(a for _, a in known)
    assert [p is None for p in p_values] == [a is None for a in adjusted]


def test_holm_of_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plot_is_drawn(tmp_path: Path, kind: str) -> None:
    a = write_model(tmp_path / "a", {"t": share(300, 1000, 0.25), "u": share(5, 10, None)})
    b = write_model(tmp_path / "b", {"t": share(400, 1000, 0.25)})
    file = tmp_path / f"c.{kind}"
    write_comparison(comparison([load_evaluation(a), load_evaluation(b)]), file)
    start = file.read_bytes()
    assert start.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [file]


def test_mistakes_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation there"):
        load_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"must end with .md, .html or .json"):
        CompareRecipe(models=["a"], output_file="x.pdf")
    with pytest.raises(UserError, match=r"must end with .png or .svg"):
        CompareRecipe(models=["a"], plot="x.pdf")


def test_names_tell_folders_apart() -> None:
    assert distinct_names([Path("/r/base/final"), Path("/r/sft/final")]) == ["base", "sft"]
    assert distinct_names([Path("/r/x/eval/a"), Path("/r/y/eval/a")]) == ["x/eval/a", "y/eval/a"]
    assert distinct_names([Path("/r/a"), Path("/r/a")]) == ["a (1)", "a (2)"]


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.35214, 0.0107, "0.352 ± 0.011"),
        (3360048.2, 251234.0, "3,360,048 ± 251,234"),
        (1.25, None, "1.25 ± ?"),
        (0, 0, "0 ± 0"),
        (5e26, 4.4e26, "5e+26 ± 4.4e+26"),
    ],
)
def test_scores_are_written_to_their_error(value: float, stderr: float | None, text: str) -> None:
    assert plus_minus(value, stderr) == text


# ---------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------

NATS = st.lists(st.tuples(st.floats(-50, -0.1), st.integers(1, 100)), min_size=2, max_size=30)


@given(NATS)
@settings(max_examples=100, deadline=None)
def test_linearized_scores_average_to_the_score(items: list[tuple[float, int]]) -> None:
    losses, weights = [-loss for loss, _ in items], [weight for _, weight in items]
    rate = sum(losses) / sum(weights)
    assert linearize("bits_per_byte", items).mean() == pytest.approx(rate / math.log(2))
    assert linearize("weighted_perplexity", items).mean() == pytest.approx(math.exp(rate))
    log_likelihoods = [loss / 10 for loss, _ in items]
    expected = math.exp(-sum(log_likelihoods) / len(items))
    assert linearize("perplexity", log_likelihoods).mean() == pytest.approx(expected)
    assert linearize("median", log_likelihoods) is None


def test_standard_errors_are_those_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(20, 200, 400)
    losses = weights * rng.normal(1.5, 0.3, 400)
    draws = rng.integers(0, 400, (4000, 400))
    for aggregation, items, score in (
        ("bits_per_byte", np.stack([-losses, weights], 1), lambda i: losses[i].sum() / weights[i].sum() / math.log(2)),
        ("weighted_perplexity", np.stack([-losses, weights], 1), lambda i: np.exp(losses[i].sum() / weights[i].sum())),
        ("perplexity", -losses / weights, lambda i: np.exp((losses / weights)[i].mean())),
        ("mean", losses, lambda i: losses[i].mean()),
    ):
        bootstrapped = np.std([score(draw) for draw in draws])
        assert standard_error(linearize(aggregation, items)) == pytest.approx(bootstrapped, rel=0.05)


def test_p_value_is_the_two_sided_normal_one() -> None:
    assert p_value(1.959964) == pytest.approx(0.05, abs=1e-6)
    assert p_value(-1.959964) == pytest.approx(0.05, abs=1e-6)
    assert p_value(0) == 1
