"""A short run of the benchmark that kills training again and again."""

import json

from conftest import run_script


def test_killed_runs_end_as_if_left_alone(tmp_path):
    figures_file = tmp_path / "figures.json"
    arguments = ("--kills", 9, "--steps", 30, "--output_file", figures_file)
    output = run_script("benchmarks/chaos.py", *arguments).stdout
    assert "no row lost or repeated" in output
    figures = json.loads(figures_file.read_text())
    assert sum(figures["kills"].values()) == 9
    for place in ("while shards are written", "between shards and manifest", "before the rename"):
        assert figures["kills"][place] >= 1
    assert figures["processes"] == [1, 2, 1]
    assert figures["largest_loss_difference"] <= 1e-5
