import json

import pytest
from conftest import run_script

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.evaluation.results import Evaluation
from genesis_hf.report import as_html, as_markdown, collect, findings, results_rows, sample_pairs


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
        {"step": s, "loss": 8 - s / 10, "learning_rate": 1e-3, "tokens_seen": s * 100, "tokens_per_second": 5e3}
        for s in range(1, 6)
    ]
    pretrain.append({"step": 5, "held_out": {"code": {"loss": 3.0, "bits_per_byte": 1.7}}})
    write_text(tmp_path / "pretrain/metrics.jsonl", "".join(json.dumps(r) + "\n" for r in pretrain) + '{"step": 6, "lo')
    write_text(tmp_path / "dpo/metrics.jsonl", json.dumps({"step": 1, "loss": 0.69}) + "\n")
    share = {"value": 0.5, "stderr": 0.03}
    held_out = {
        "before": {"ranked": share, "ranked_per_token": share},
        "after": {"ranked": {"value": 0.95, "stderr": 0.01}, "ranked_per_token": share},
        "implicit_reward": {"value": 0.97, "stderr": 0.01},
    }
    write_text(tmp_path / "dpo/summary.json", json.dumps({"phase": "dpo", "held_out": held_out}))
    for name, hedged in (("sft", 0.25), ("dpo", 0.01)):
        prompt = [{"role": "user", "content": "What is <b>?"}]
        write_text(
            tmp_path / f"samples/{name}.jsonl",
            json.dumps({"prompt": prompt, "answer": f"<i>{name} says", "stopped": 1}),
        )
        style = {"stop_rate": {"value": 0.98, "stderr": 0.01}, "hedging_rate": {"value": hedged, "stderr": 0.01}}
        write_text(tmp_path / f"samples/{name}.summary.json", json.dumps({"style": style}))
    write_text(tmp_path / "stages/one.json", json.dumps({"seconds": 90.0, "peak_memory_gib": 1.5}))
    return tmp_path


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


def test_the_page_is_one_file_that_asks_for_nothing(road):
    material = collect([road])
    page = as_html(material)
    assert "&lt;i&gt;sft says" in page
    assert "<i>sft says" not in page
    assert page.count("<svg") == 1  # a run of a single step has no curve
    for address in "http://", "https://":
        assert f'src="{address}' not in page
        assert f'href="{address}' not in page
    text = as_markdown(material)
    assert "| pretrain | 5" in text
    assert "| all   | 1.5" in text
    assert sample_pairs(material)[0] == ("What is <b>?", [("sft", "<i>sft says"), ("dpo", "<i>dpo says")])


def test_the_script_writes_both_files_and_names_mistakes(road, tmp_path):
    run_script("scripts/report.py", road)
    assert (road / "report.html").exists()
    assert (road / "report.md").exists()
    result = run_script("scripts/report.py", tmp_path / "none", check=False)
    assert result.returncode == 2
    assert "no such folder" in result.stderr
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report"):
        collect([tmp_path / "empty"])
