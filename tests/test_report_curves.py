import json

import pytest
from browser import browser_page, needs_chromium
from test_report import SCRIPT, pretrain_lines, write_lines

from genesis_hf.config import write_text
from genesis_hf.report.charts import training_charts
from genesis_hf.report.curve import Curve
from genesis_hf.report.log import read_log
from genesis_hf.report.material import collect
from genesis_hf.report.pages import as_html, write_report


def test_a_curve_keeps_extremes_and_little_else():
    curve = Curve()
    for step in range(200_000):
        curve.add(step, {77_777: 9.0, 123_456: -3.0}.get(step, 2.0 + step % 2 / 10))
    steps, values = curve.line()
    assert len(values) <= 1000
    assert max(values) == 9.0
    assert min(values) == -3.0
    assert steps == sorted(steps)
    assert abs(steps[values.index(9.0)] - 77_777) < 500
    _, smooth = curve.smooth()
    assert max(smooth) < 2.3


def test_a_short_curve_is_drawn_as_it_is():
    curve = Curve()
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0)):
        curve.add(step, value)
    assert curve.line() == ([10, 20, 30], [3.0, 1.0, 2.0])


def test_a_log_is_read_to_the_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = pretrain_lines(4, data_wait_share=0.25, memory_gib=1.5)
    lines[1]["loss"], lines[2]["loss"] = None, float("nan")
    write_lines(path, lines, '{"step": 5, "loss": 2')
    log = read_log(path, [])
    assert (log.lines, log.not_finite, log.unreadable) == (4, 2, 0)
    assert log.seconds == pytest.approx(4 * 100 / 50)
    assert log.waited == pytest.approx(0.25)
    assert (log.tokens, log.memory_gib, log.joules) == (400, 1.5, None)
    assert len(log.curves["loss"]) == 2
    assert read_log(tmp_path / "none", []).lines == 0


def test_a_long_run_gives_a_small_page(tmp_path):
    loss = "".join(
        f'{{"step": {s}, "loss": {2 + s % 7 / 10}, "grad_norm": {1 + s % 5}, "learning_rate": 1e-4}}\n'
        for s in range(1, 30_001)
    )
    write_text(tmp_path / "run/metrics.jsonl", loss + '{"step": 30001, "loss": 77.0}\n')
    write_lines(
        tmp_path / "run/events.jsonl",
        [{"step": s, "event": "skipped", "text": "skipped", "time": 1.0} for s in range(1, 3000)],
    )
    material = collect([tmp_path])
    assert material.trainings[0].log.lines == 30_001
    page = as_html(material)
    assert len(page) < 300_000
    assert "the newest 100 of 2,999" in page


def test_each_of_many_sources_has_a_look_of_its_own(tmp_path):
    names = [f"source_{i}" for i in range(9)]
    lines = [
        {**line, "held_out": {name: {"bits_per_byte": 2 - i / 9} for name in names}}
        for i, line in enumerate(pretrain_lines(3))
    ]
    write_lines(tmp_path / "run/metrics.jsonl", lines)
    charts = {chart.title: chart for chart in training_charts(collect([tmp_path]).trainings[0])}
    assert len({key for key, _ in charts["held-out bits per byte"].keys}) == 9


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    run = root / "a_pretraining_with_a_rather_long_name"
    bits = [{"prose": {"bits_per_byte": 2 - s / 50}} for s in range(40)]
    lines = [
        {**line, "grad_norm": 1.0, "mixture": {"prose": 0.5, SCRIPT: 0.5}, "held_out": bits[i]}
        for i, line in enumerate(pretrain_lines(40))
    ]
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "events.jsonl", [{"step": 20, "event": "rollback", "text": SCRIPT * 5, "time": 1.7e9}])
    write_text(
        run / "recipe.yaml",
        f"max_steps: 99\nlearning_rate: 1\nsources: [{{name: prose}}, {{name: '{SCRIPT}'}}]\nseed: 1\n",
    )
    samples = [{"prompt": "x" * 300, "continuation": f"<img src=x onerror=alert(1)> {'word ' * 60}"}]
    write_lines(run / "samples.jsonl", [{"step": step, "samples": samples} for step in (10, 40)])
    sources = {f"source_{i}": {"bytes_per_token": 3.0 + i} for i in range(3)}
    write_text(root / "tokenizer/fertility.json", json.dumps(sources))
    return write_report(collect([root]), root / "report.html")


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_in_a_browser(page_file, width, dark):
    with browser_page(width=width, dark=dark) as watched:
        page = watched.page
        page.goto(page_file.as_uri())
        titles = page.locator("h2").all_inner_texts()
        assert titles[:3] == ["Look at this first", "Training", "Data"]
        assert {"Tokenizer", "Samples", "Costs", "Events", "Settings"} <= set(titles)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg.chart").count() == 6
        sizes = page.locator("svg.chart").evaluate_all("all => all.map(svg => svg.getBoundingClientRect().width)")
        assert min(sizes) > 250
        # Axis text in the page's own ink: readable in the dark.
        ink = page.locator("svg.chart text").first.evaluate("text => getComputedStyle(text).fill")
        assert ink == page.evaluate("getComputedStyle(document.body).color")
        links = page.locator("nav a")
        links.last.click()
        assert page.evaluate("location.hash") == "#settings"
        assert page.locator("details").count() == 0 or page.locator("summary").first.is_visible()
        assert (watched.outside, watched.errors) == ([], [])
