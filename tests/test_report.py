import json
from pathlib import Path

import pytest
from conftest import run_script

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.evaluation.results import Evaluation
from genesis_hf.report.material import collect
from genesis_hf.report.pages import as_html, as_markdown, sample_text, write_report
from genesis_hf.report.results import findings, results_rows
from genesis_hf.report.samples import sample_pairs
from genesis_hf.report.trouble import warnings

SCRIPT = "<script>alert(1)</script>"


def provenance(task, day=1):
    return {
        "date": f"2026-01-0{day}",
        "task_version": 1,
        "config_sha256": "c",
        "num_fewshot": 0,
        "limit": None,
        "data_sha256": task,
    }


def score(value, stderr=0.02, chance=None, higher=True, **extra):
    return {"value": value, "stderr": stderr, "chance": chance, "n": 200, "higher_is_better": higher, **extra}


def write_lines(path, records, end=""):
    write_text(path, "".join(json.dumps(record) + "\n" for record in records) + end)


def pretrain_lines(steps=5, **extra):
    return [
        {"step": s, "loss": 8 - s / 10, "learning_rate": 1e-3, "tokens_seen": s * 100, "tokens_per_second": 50, **extra}
        for s in range(1, steps + 1)
    ]


@pytest.fixture
def road(tmp_path):
    """Run files of a demo-like folder: a pretraining, an SFT, a DPO, two evaluations, two sets of answers."""
    for day, name, bits, accuracy in ((1, "base", 1.6, 0.55), (2, "dpo", 1.9, 0.26)):
        evaluation = Evaluation(name, name, tmp_path / "evaluation" / name)
        yardstick = {"name": "xz -9", "value": 1.85}
        evaluation.add(
            "held_out/code",
            {"bits_per_byte": score(bits, higher=False, yardstick=yardstick)},
            [],
            provenance("code", day),
        )
        evaluation.add("order", {"acc": score(accuracy, chance=0.25)}, [], provenance("order", day))
        evaluation.output_dir.mkdir(parents=True)
        evaluation.write()
    pretrain = [
        *pretrain_lines(mixture={"code": 0.7, "prose": 0.3}, records={"code": {"documents": 12, "excluded": 3}}),
        {"step": 5, "held_out": {"code": {"loss": 3.0, "bits_per_byte": 1.7}}},
    ]
    write_lines(tmp_path / "pretrain/metrics.jsonl", pretrain, '{"step": 6, "lo')
    write_text(
        tmp_path / "pretrain/recipe.yaml",
        "max_steps: 5\nlearning_rate: 0.001\nsources: [{name: code, weight: 3}, {name: prose, weight: 1}]\n",
    )
    write_lines(tmp_path / "dpo/metrics.jsonl", [{"step": 1, "loss": 0.69}])
    share = {"value": 0.5, "stderr": 0.03}
    held_out = {
        "before": {"ranked": share, "ranked_per_token": share},
        "after": {"ranked": {"value": 0.95, "stderr": 0.01}, "ranked_per_token": share},
        "implicit_reward": {"value": 0.97, "stderr": 0.01},
    }
    summary = {"phase": "dpo", "model": "runs/my/base", "steps": 1, "held_out": held_out}
    write_text(tmp_path / "dpo/summary.json", json.dumps(summary))
    for name, hedged in (("sft", 0.25), ("dpo", 0.01)):
        prompt = [{"role": "user", "content": "What is <b>?"}]
        write_lines(
            tmp_path / f"samples/{name}.jsonl", [{"prompt": prompt, "answer": f"<i>{name} says", "stopped": True}]
        )
        style = {"stop_rate": {"value": 0.98, "stderr": 0.01}, "hedging_rate": {"value": hedged, "stderr": 0.01}}
        write_text(tmp_path / f"samples/{name}.summary.json", json.dumps({"style": style}))
    write_text(tmp_path / "stages/one.json", json.dumps({"seconds": 90.0, "peak_memory_gib": 1.5}))
    return tmp_path


# ---------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------


def test_results_stand_side_by_side_with_chance_and_yardstick(road):
    rows = {row[0]: row[1:] for row in results_rows(collect([road]))}
    assert rows[""] == ["base", "dpo", "chance or yardstick"]
    assert rows["held_out/code bits_per_byte ↓"] == ["1.600 ± 0.020", "1.900 ± 0.020", "xz -9: 1.85"]
    assert rows["order acc ↑"] == ["0.550 ± 0.020", "0.260 ± 0.020", "0.25"]
    assert rows["answers that hedge ↓"] == ["–", "1.0% ± 1.0%", "–"]
    assert rows["held-out pairs ranked right ↑"] == ["50.0% ± 3.0%", "95.0% ± 1.0%", "50.0%"]


def test_findings_follow_from_the_figures(road):
    said = "\n".join(findings(collect([road])))
    assert "base has 1.600 bits per byte, 13.5% below xz -9's 1.850" in said
    assert "order acc, base" in said
    assert "order acc, dpo" not in said  # half a standard error above chance


def test_a_miss_is_said_as_such(road):
    path = road / "evaluation/base/evaluation.json"
    path.write_text(path.read_text().replace('"value": 1.6,', '"value": 2.0,'))
    assert "8.1% ABOVE xz -9's 1.850" in "\n".join(findings(collect([road])))


def test_scores_that_can_not_be_compared_still_stand_under_a_warning(road):
    path = road / "evaluation/dpo/evaluation.json"
    path.write_text(path.read_text().replace('"num_fewshot": 0', '"num_fewshot": 5'))
    material = collect([road])
    rows = {row[0]: row[1:] for row in results_rows(material)}
    assert rows["order acc ↑"][:2] == ["0.550 ± 0.020", "0.260 ± 0.020"]
    assert findings(material)[0].startswith("WARNING, these scores can't be compared")
    assert "number of shots (0 and 5)" in findings(material)[0]
    assert as_html(material).count("can&#39;t be compared") == 1  # said once, at the top


def test_differences_stand_with_holms_p(road):
    page = as_markdown(collect([road]))
    assert "### Against base: of 2 scores 0 better, 2 worse" in page
    line = next(line for line in page.splitlines() if line.startswith("| order") and "dpo" in line)
    assert "-0.290 ± 0.028" in line
    assert "worse than base" in line


# ---------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_for_nothing(road):
    material = collect([road])
    page = as_html(material)
    assert "&lt;i&gt;sft says" in page
    assert "<i>sft says" not in page
    assert 'aria-label="loss, nats a token"' in page
    assert page.count('aria-label="loss') == 1  # a run of a single step has no curve
    for address in "http://", "https://", "//":
        assert f'src="{address}' not in page
        assert f'href="{address}' not in page
    assert "url(http" not in page


def test_markdown_holds_the_same_tables(road):
    material = collect([road])
    text = as_markdown(material)
    assert "| pretrain | pretraining | 5" in text
    assert "| all   | 1.5" in text
    assert "| code   | 75.00% | 70.00%" in text
    assert sample_pairs(material)[0] == ("What is <b>?", [("sft", "<i>sft says"), ("dpo", "<i>dpo says")])
    assert "> What is <b>?" in sample_text(material)
    assert "<b>" not in text
    assert "&lt;b>?" in text


def test_nothing_of_a_run_becomes_markup(road):
    """Names, recipe, events, samples and tasks are whatever stands in files from elsewhere."""
    run = road / f"a|b {SCRIPT.replace('/', '')}"
    (road / "pretrain").rename(run)
    write_text(
        run / "recipe.yaml",
        f"max_steps: 5\nlearning_rate: 1\nseed: '{SCRIPT}'\nsources: [{{name: '{SCRIPT}'}}]\nmodel: '$x^{{{SCRIPT}$'\n",
    )
    mixture = {f"_{SCRIPT}$": 1.0}
    bits = [{SCRIPT: {"bits_per_byte": 2.0 / step}} for step in range(1, 6)]
    lines = [{**line, "held_out": bits[i]} for i, line in enumerate(pretrain_lines(mixture=mixture))]
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "events.jsonl", [{"step": 2, "event": SCRIPT, "text": f"a|b {SCRIPT}", "time": 1.0}])
    write_lines(
        run / "samples.jsonl", [{"step": s, "samples": [{"prompt": SCRIPT, "continuation": SCRIPT}]} for s in (2, 4)]
    )
    write_text(road / "tokenizer/fertility.json", json.dumps({SCRIPT: {"bytes_per_token": 3.0}}))
    for name in ("base", "dpo"):
        path = road / f"evaluation/{name}/evaluation.json"
        path.write_text(path.read_text().replace('"order"', json.dumps(f"--> {SCRIPT} $_")))
    material = collect([road])
    page, text = as_html(material), as_markdown(material)
    for made in (page, text):
        assert "<script" not in made
        assert made.count("&lt;script>alert") + made.count("&lt;script&gt;alert") > 10
    head = next(line for line in text.splitlines() if line.startswith("| run "))
    row = next(line for line in text.splitlines() if line.startswith("| a\\|b"))
    assert row.replace("\\|", "").count("|") == head.count("|")


def test_secrets_of_a_recipe_are_not_shown(road):
    recipe = "max_steps: 5\nlearning_rate: 1\nhub_token: hf_aaa\nenv: {HF_TOKEN: hf_bbb, NCCL_P2P_DISABLE: '1'}\n"
    write_text(road / "pretrain/recipe.yaml", recipe)
    write_text(road / "other/recipe.yaml", recipe.replace("hf_", "hf_x") + "sources: []\n")
    material = collect([road])
    made = as_html(material) + as_markdown(material)
    assert "hf_" not in made


# ---------------------------------------------------------------------------------------------------------
# Runs as they are found
# ---------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_or_crashed_is_said_to_be_unfinished(road):
    path = road / "pretrain/recipe.yaml"
    path.write_text(path.read_text().replace("max_steps: 5", "max_steps: 80"))
    said = "\n".join(warnings(collect([road])))
    assert "pretrain has not finished: step 5 of 80, last line written 20" in said
    assert "dpo has not finished" not in said


def test_a_run_without_a_single_line_has_a_page(tmp_path):
    write_text(tmp_path / "run/recipe.yaml", "max_steps: 5\nlearning_rate: 1\nsources: [{name: a}]\n")
    material = collect([tmp_path])
    assert warnings(material) == [
        "run: no step has been logged; it was stopped before its first line, or has just begun."
    ]
    assert "| run | pretraining | unknown of 5" in as_markdown(material)
    assert "run: too few logged steps for curves." in as_html(material)


def test_what_went_wrong_in_a_run_heads_the_page(road):
    lines = pretrain_lines(skipped_steps=3, spikes=2, repeated_since={"code": 4})
    lines[2]["loss"] = None
    for line, bits in zip(lines, (2.0, 1.5, 1.6, 1.7, 1.8), strict=True):
        line["held_out"] = {"code": {"bits_per_byte": bits}}
    write_lines(road / "pretrain/metrics.jsonl", lines[:4])
    with open(road / "pretrain/metrics.jsonl", "a") as file:
        file.write("garbage\n" + json.dumps(lines[4]) + "\n")
    events = [{"step": 2, "event": kind, "text": "it", "time": 1.7e9} for kind in ("rollback", "rollback", "resumed")]
    write_lines(road / "pretrain/events.jsonl", events)
    write_text(road / "base/parity.json", json.dumps({"formats_compared": {"onnx": {"agrees": False}}}))
    write_text(road / "evaluation/dpo/evaluation.json", "{")
    material = collect([road])
    said = "\n".join(warnings(material))
    for words in (
        "base: onnx does not compute what the live model computes",
        "1 lines of metrics.jsonl could not be read",
        "the loss of 1 of 5 logged steps is not finite",
        "3 updates were skipped, 2 for a loss spike",
        "checkpoint after a loss spike, 2 ×",
        "source code repeats since step 4",
        "held-out code ends at 1.800 bits per byte, but had 1.500 near step 2",
        "evaluation/dpo/evaluation.json could not be read",
    ):
        assert words in said
    text = as_markdown(material)
    assert text.index("Look at this first") < text.index("Before and after")
    assert "| pretrain | 2        | 1       |" in text
    assert "2023-11-14 22:13" in text


def test_files_with_something_else_in_them_cost_their_own_part(road):
    path = road / "evaluation/base/evaluation.json"
    path.write_text(path.read_text().replace('"value": 0.55', '"value": "high"'))
    write_text(road / "pretrain/summary.json", json.dumps(["no", "object"]))
    write_lines(
        road / "pretrain/events.jsonl", [{"step": 2, "event": ["x"], "text": None, "time": "now"}, {"step": "y"}]
    )
    text = as_markdown(collect([road]))
    scores = text[text.index("## Before and after") :]
    assert "evaluation/base is left out of this part: TypeError" in scores
    assert "| order acc ↑ " in scores  # the other model's
    assert "pretrain/summary.json could not be read: not a JSON object" in text
    assert "| pretrain | pretraining | 5" in text
    assert "| 2    | ['x'] | None | unknown" in text


def test_a_fork_costs_only_what_it_did_itself(tmp_path):
    lines = [
        {"step": s, "loss": 3.0, "tokens_seen": 50 * 1000 + 200 * (s - 50), "tokens_per_second": 100, "mfu": 0.4}
        for s in (60, 70, 80)
    ]
    write_lines(tmp_path / "fork/metrics.jsonl", lines)
    write_text(tmp_path / "fork/fork.json", json.dumps({"run": "runs/trunk", "step": 50}))
    run = collect([tmp_path]).trainings[0]
    assert run.log.seconds == 30 * 200 / 100
    text = as_markdown(collect([tmp_path]))
    costs = text[text.index("## Costs") :]
    assert [cell.strip() for cell in costs.splitlines()[6].split("|")][1:5] == ["fork", "30", "6k", "1.0 min"]
    assert "fork of runs/trunk: its first 50 steps and about 50k tokens are that run's" in costs


def test_one_odd_run_costs_its_own_part(road):
    odd = road / "odd"
    lines = [
        '{"step": 1, "loss": 2, "\\ud83d": 1, "mixture": {"\\ud83d": 0.5, "b": 0.5}}',
        '{"step": 2, "loss": NaN, "skipped_steps": "many", "mixture": {"\\ud83d": 0.5, "b": 0.5}}',
        '{"step": 3, "loss": 1' + "0" * 400 + "}",
        '{"step": 4, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"step": 1e300, "loss": 2}',
    ]
    write_text(odd / "metrics.jsonl", "\n".join(lines) + "\n")
    write_text(odd / "recipe.yaml", "max_steps: [1\n")
    write_text(odd / "summary.json", '{"steps": "many", "held_out": 5}')
    write_text(odd / "events.jsonl", '{"step": 1, "event": "x", "text": "\\ud83d", "time": 1e30}\n')
    write_text(odd / "samples.jsonl", '{"step": 1, "samples": [{"prompt": "a", "continuation": "\\ud83d b"}]}\n')
    (odd / "gone.json").symlink_to(road / "nowhere")
    page = write_report(collect([road]), road / "report.html")
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "odd/recipe.yaml could not be read: line 2: not valid YAML" in text
    assert "odd: 2 lines of metrics.jsonl could not be read" in text
    assert "odd is left out of this part" in text[text.index("## Before and after") : text.index("## Training")]
    assert "| order acc ↑ " in text
    assert "> *step 1*: ? b" in text
    assert "| pretrain | pretraining | 5" in text
    assert "cannot be made" not in text


def test_linked_folders_are_found_once(road, tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    (folder / "a").symlink_to(road / "pretrain")
    (folder / "b").symlink_to(road / "pretrain")
    (folder / "up").symlink_to(folder.parent)
    assert [run.folder for run in collect([folder]).trainings] == [road / "pretrain"]


def test_a_folder_of_exports_has_a_page(tmp_path):
    figures = {"max_logit_difference": 0.0, "agrees": True}
    write_text(tmp_path / "base/parity.json", json.dumps({"formats_compared": {"llama": figures}}))
    assert "## Exports" in as_markdown(collect([tmp_path]))


def test_several_trunks_are_told_apart_and_their_differences_named(tmp_path):
    for name, rate in (("one", 1e-3), ("two", 2e-3)):
        run = tmp_path / name / "pretrain"
        write_lines(run / "metrics.jsonl", pretrain_lines(30))
        sources = f"[{{name: code, weight: {rate * 1000:g}}}]"
        write_text(run / "recipe.yaml", f"max_steps: 30\nlearning_rate: {rate}\nseed: 1\nsources: {sources}\n")
    material = collect([tmp_path / "one", tmp_path / "two", tmp_path])
    assert [run.name for run in material.trainings] == ["one/pretrain", "two/pretrain"]
    text = as_markdown(material)
    differences = text[text.index("Where the runs of pretraining differ") : text.index("### pretraining\n")]
    assert "learning_rate" in differences
    assert "sources.code.weight" in differences
    assert "seed" not in differences
    page = as_html(material)
    assert 'aria-label="pretraining: smoothed losses"' in page
    assert page.count('aria-label="loss, nats a token"') == 2


def test_folders_are_found_from_below_and_checkpoints_left_out(road, monkeypatch):
    write_lines(road / "pretrain/checkpoints/step_000000005/metrics.jsonl", pretrain_lines())
    inside = road / "checkpoints_of_mine/x"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert [run.name for run in collect([Path("../../pretrain")]).trainings] == ["pretrain"]
    assert len(collect([Path("../..")]).trainings) == 2


def test_samples_through_training_and_energy_across_resumes(road):
    run = road / "pretrain"
    lines = pretrain_lines()
    for line, joules in zip(lines, (40.0, 90.0, 95.0, 3.6e6, 7.2e6), strict=True):
        line["energy_joules"] = joules  # resumed after step 2, with more at its first line than before
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "events.jsonl", [{"step": 2, "event": "resumed", "text": "resumed", "time": 1.0}])
    samples = [
        {"step": s, "samples": [{"prompt": "A river", "continuation": f"at {s}"}]} for s in (*range(1, 200), 207)
    ]
    write_lines(run / "samples.jsonl", samples)
    material = collect([road])
    assert material.trainings[0].log.joules == 7.2e6 + 90.0
    text = as_markdown(material)
    assert "2 kWh" in text
    assert "not recorded" in text  # by the DPO
    assert "> *step 1*: at 1" in text
    assert "> *step 207*: at 207" in text
    assert text.count("> *step ") == 5


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def test_the_script_writes_both_files_and_names_mistakes(road, tmp_path):
    said = run_script("scripts/report.py", road).stdout
    assert "report: " in said
    assert (road / "report.html").exists()
    assert (road / "report.md").exists()
    for arguments, words in (
        ([tmp_path / "none"], "no such folder"),
        ([road, "--output_file", tmp_path / "x.pdf"], "must end with .html"),
        ([road, "--output_file", tmp_path / "dpo/metrics.jsonl/x.html"], "a folder of its path is a file"),
    ):
        result = run_script("scripts/report.py", *arguments, check=False)
        assert result.returncode == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    (tmp_path / "x.html").mkdir()
    with pytest.raises(UserError, match=r"x\.html can't be written: Is a directory"):
        write_report(collect([road]), tmp_path / "x.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report"):
        collect([tmp_path / "empty"])
