import functools
import http.server
import shutil
import threading

import pytest
from browser import browser_page, needs_chromium
from conftest import run_script
from small_dashboard import append, record, served, write_run
from small_runs import small_recipe, write_recipe

from genesis_hf.dashboard.board import Board
from genesis_hf.dashboard.page import data_file, watch_static, write_static
from genesis_hf.training.metrics import MetricsWriter

pytestmark = needs_chromium

LOSS_STEPS = """() => {
    const plot = [...document.querySelectorAll(".panel")].find((p) => p.querySelector("h3").textContent === "Loss");
    const drawn = plot && plot.querySelector(".plot").data;
    return drawn ? drawn.filter((trace) => trace.name).map((trace) => [...trace.x]) : [];
}"""
"""What stands along the axis of each curve in the loss panel."""


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests of this file."""
    with browser_page() as watched:
        watched.page.set_default_timeout(60_000)
        yield watched


@pytest.fixture
def page(chromium):
    """A page at a desk, which asks nothing outside and complains of nothing."""
    yield chromium.page
    chromium.page.goto("about:blank")
    said = (chromium.outside[:], chromium.errors[:])
    chromium.outside.clear()
    chromium.errors.clear()
    assert said == ([], [])


def drawn(page):
    """Wait until there is a curve."""
    page.wait_for_selector(".panel .plot .main-svg")


def last_step(page, step):
    """Wait until the first loss curve ends there."""
    page.wait_for_function(f"(step) => ({LOSS_STEPS})()[0]?.at(-1) === step", arg=step)


def look(page):
    """Have the page ask its server now, as it does when its tab is turned to."""
    page.evaluate('document.dispatchEvent(new Event("visibilitychange"))')


def test_a_real_training_is_watched_to_its_end(corpus, tokenizer_folder, tmp_path, page):
    heldout = [{"name": "prose", "paths": [str(corpus / "heldout.jsonl")]}]
    extras = {"logging_steps": 1, "save_steps": 6, "eval_sources": heldout, "eval_steps": 6, "eval_rows": 2}
    values = small_recipe(corpus, tokenizer_folder, tmp_path / "runs/tiny", sample_prompts=["The river"], **extras)
    recipe = write_recipe({**values, "sample_max_new_tokens": 4}, tmp_path / "recipe.yaml")
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", watch=True) as server:
        page.goto(server.url)
        page.wait_for_selector("#empty:visible")  # the dashboard may be there first
        training = threading.Thread(target=run_script, args=("scripts/pretrain.py", "--config", recipe))
        training.start()
        page.wait_for_selector("text=tiny")
        last_step(page, 12)
        training.join()
        page.wait_for_selector(".state.finished")
    assert page.inner_text("tbody").startswith("tiny")
    assert page.locator("#samples li").count() == 2
    assert "Held-out bits per byte" in page.inner_text("#panels")
    assert "Checkpoints on disk: 6, 12." in page.inner_text("#kept")


def test_curves_grow_and_are_taken_back(tmp_path, page):
    run = write_run(tmp_path / "run")
    with served(run) as server:
        page.goto(server.url)
        drawn(page)
        last_step(page, 50)
        assert page.inner_text(".state") == "running"
        assert "until" in page.inner_text("tbody")
        append(run / "metrics.jsonl", record(51), record(52, loss=None), record(53))
        server.board.read_all()
        look(page)
        last_step(page, 53)
        page.wait_for_selector("#events >> text=not finite")
        MetricsWriter(run, is_main=True, resumed_step=30)
        server.board.read_all()
        look(page)
        last_step(page, 30)


def test_what_is_in_run_files_is_text_and_nothing_else(tmp_path, page):
    nasty = "</script><img src=x onerror='window.broken=1'><b>%{x}</b>"
    run = write_run(tmp_path / "<i>run<script>alert(1)<")
    append(run / "events.jsonl", {"step": 30, "event": nasty[:40], "text": nasty})
    append(run / "samples.jsonl", {"step": 30, "samples": [{"prompt": nasty, "continuation": nasty}]})
    append(run / "metrics.jsonl", record(51, mixture={nasty: 1.0}, **{nasty: 1.0}))
    write_static(Board([run]), tmp_path / "page.html")
    with served(run) as server:
        for address in (server.url, f"file://{tmp_path}/page.html"):
            page.goto(address)
            drawn(page)
            page.select_option("#prompt", index=1)
            assert page.inner_text("#asked") == nasty
            assert nasty in page.inner_text("#events")
            assert "<i>run<script>alert(1)<" in page.inner_text("tbody")
            page.click("#more summary")
            page.locator("#mixture .plot .main-svg").first.scroll_into_view_if_needed()
            page.hover("#mixture .plot", position={"x": 300, "y": 100})
            page.wait_for_selector("#mixture .hoverlayer text")
            assert page.evaluate("window.broken") is None
            assert page.locator("main img, main i i, main script").count() == 0


def test_runs_are_laid_over_each_other_and_switched_off(tmp_path, page):
    for name in ("one", "two"):
        write_run(tmp_path / name, steps=40 if name == "one" else 60)
    with served(tmp_path) as server:
        page.goto(server.url)
        drawn(page)
        assert sorted(len(x) for x in page.evaluate(LOSS_STEPS)) == [40, 60]
        page.get_by_label("one", exact=True).focus()
        page.keyboard.press("Space")
        page.wait_for_function(f"() => ({LOSS_STEPS})().length === 1")
        assert page.evaluate("document.activeElement.dataset.run") == "one"
        page.select_option("#focus", "one")
        assert "step 20" in page.inner_text("#samples")
        page.reload()  # what was switched off and chosen stays
        drawn(page)
        page.wait_for_function(f"() => ({LOSS_STEPS})().length === 1")
        assert page.input_value("#focus") == "one"
        page.get_by_label("one", exact=True).check()
        swatches = "[...document.querySelectorAll('.run')].map((run) => run.style.getPropertyValue('--swatch'))"
        before = page.evaluate(swatches)
        shutil.rmtree(tmp_path / "one")
        append(write_run(tmp_path / "dpo") / "metrics.jsonl", {"step": 51, "rewards/chosen": 1.0})
        (tmp_path / "dpo/recipe.yaml").unlink()
        server.board.search()
        server.board.read_all()
        look(page)
        page.wait_for_selector("text=Loss, preferences")  # not in one picture with a pretraining's
        page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 2")
        assert sorted(page.evaluate(swatches)) == sorted(before)  # the free colour is the next one's
        assert page.locator("#key li").count() == 2
        server.board.failed[tmp_path / "two"] = "OSError: broken"
        look(page)
        page.wait_for_selector("text=can't be read: OSError: broken")


def test_the_value_that_was_logged_can_be_read_and_a_constant_is_a_line(tmp_path, page):
    lines = [record(s, loss=8.0 if s == 500 else 3.0, mfu=0.4) for s in range(1, 901)]
    append(tmp_path / "run/metrics.jsonl", *lines, record(901, loss=None, mfu=0.4))
    write_static(Board([tmp_path / "run"]), tmp_path / "page.html")
    page.goto(f"file://{tmp_path}/page.html")
    drawn(page)
    page.evaluate(
        """() => {
            const plot = document.querySelector(".plot");
            Plotly.Fx.hover(plot, [{ curveNumber: plot.data.findIndex((t) => t.name), pointNumber: 499 }]);
        }"""
    )
    page.wait_for_selector(".hoverlayer >> text=/8 {2}\\(smoothed 3\\.[0-9]+\\)/")
    assert "not finite" in page.inner_text("tbody")
    page.locator("text=Model FLOPs utilisation").scroll_into_view_if_needed()
    page.wait_for_function(
        """() => {
            const card = [...document.querySelectorAll(".panel")].find((p) => p.textContent.startsWith("Model FLOPs"));
            const plot = card.querySelector(".plot");
            return plot.layout && plot.layout.yaxis.range[0] < 0.35 && plot.layout.yaxis.range[1] > 0.45;
        }"""
    )


def test_axes_smoothing_and_colours(tmp_path, page):
    with served(write_run(tmp_path / "run")) as server:
        page.goto(server.url)
        drawn(page)
        page.check("#axis input[value=tokens]", force=True)
        last_step(page, 50_000)
        page.check("#axis input[value=hours]", force=True)
        page.wait_for_function(f"() => Math.abs(({LOSS_STEPS})()[0].at(-1) - 100 / 3600) < 1e-4")
        page.check("#logx")
        page.check("#logy")
        kinds = "['xaxis', 'yaxis'].map((a) => document.querySelector('.panel.wide .plot').layout[a].type)"
        assert page.evaluate(kinds) == ["log", "log"]
        page.locator("#smooth").fill("100")
        assert "over 8 records" in page.inner_text("#smoothed")
        smooth = "document.querySelector('.panel.wide .plot').data.filter((t) => t.name)[0].y"
        raw = [2 + 8 / step**0.5 for step in range(1, 51)]
        assert page.evaluate(smooth)[0] == pytest.approx(raw[0], rel=1e-5)
        assert page.evaluate(smooth)[-1] > raw[-1] + 0.05  # a mean over a falling curve lies above it
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.reload()  # what was set is remembered
        drawn(page)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate(kinds) == ["log", "log"]


def test_zooming_into_a_long_run_fetches_its_details(tmp_path, page):
    lines = [record(s, loss=50.0 if s == 13_001 else 3.0 + s % 2) for s in range(1, 20_001)]
    append(tmp_path / "run/metrics.jsonl", *lines)
    with served(tmp_path / "run") as server:
        page.goto(server.url)
        drawn(page)
        last_step(page, page.evaluate(LOSS_STEPS)[0][-1])
        assert len(page.evaluate(LOSS_STEPS)[0]) < 1200
        window = page.inner_text("#smoothed")
        page.evaluate(
            "Plotly.relayout(document.querySelector('.plot'), {'xaxis.range[0]': 12990, 'xaxis.range[1]': 13010})"
        )
        page.wait_for_function(f"() => ({LOSS_STEPS})()[0].includes(13001)")
        ranges = "[...document.querySelectorAll('.plot')].filter((p) => p.layout).map((p) => p.layout.xaxis.range)"
        assert [12990, 13010] in page.evaluate(ranges)
        first = "document.querySelector('.plot').data.find((trace) => trace.name).y[0]"
        assert page.evaluate(first) == pytest.approx(3.5, abs=0.1)  # smoothing goes on from what was before
        assert page.inner_text("#smoothed") == window
        page.click("#whole")
        page.wait_for_function(f"() => ({LOSS_STEPS})()[0].length > 800")


def test_a_phone_shows_it_all_without_scrolling_sideways(tmp_path, page):
    long = "x" * 300
    run = write_run(tmp_path / "a-run-with-a-very-long-name-indeed-longer-than-a-phone-is-wide")
    append(run / "events.jsonl", {"step": 30, "event": "skipped", "text": long})
    append(run / "samples.jsonl", {"step": 30, "samples": [{"prompt": long, "continuation": long}]})
    append(run / "metrics.jsonl", record(51, mixture={f"source-{long[:40]}-{i}": 0.05 for i in range(20)}))
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    with served(run) as server:
        page.goto(server.url)
        drawn(page)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.locator("#sampled").scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        widths = page.evaluate(
            "[...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().right)"
        )
        assert max(widths) <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(tmp_path):
    """A plain web server of the folder, as anybody may have one; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_of_its_own_shows_everything(tmp_path, page):
    write_static(Board([write_run(tmp_path / "run")]), tmp_path / "run/dashboard.html")
    shutil.move(tmp_path / "run/dashboard.html", tmp_path / "alone.html")
    page.goto(f"file://{tmp_path}/alone.html")
    drawn(page)
    last_step(page, 50)
    assert "as of" in page.inner_text("#pulse")


def test_behind_a_web_server_it_follows_latest_json(tmp_path, chromium, page, web, monkeypatch):
    monkeypatch.setattr("genesis_hf.dashboard.page.LATEST_SECONDS", 0.2)
    run = write_run(tmp_path / "50% #1?")
    write_static(Board([run]), tmp_path / "page.html")
    with page.expect_response(lambda response: "latest.json" in response.url) as answer:
        page.goto(f"{web}/page.html")
    assert answer.value.status == 404  # not there yet
    drawn(page)
    writer = MetricsWriter(run, is_main=True, resumed_step=50)
    writer.write(record(55, loss=None))
    page.wait_for_selector("tbody >> text=not finite")
    writer.write(record(60, loss=1.25))
    last_step(page, 60)
    assert "1.2500" in page.inner_text("tbody")
    assert "60 of 100" in page.inner_text("tbody")
    assert all("404" in error for error in chromium.errors)
    chromium.errors.clear()


def test_data_that_are_rewritten_arrive_even_in_a_file(tmp_path, page):
    run, path = write_run(tmp_path / "run"), tmp_path / "page.html"

    def wait(seconds):
        if "runs" not in page.url and not page.url.startswith("file:"):
            page.goto(f"file://{path}")
            drawn(page)
            last_step(page, 50)
            append(run / "metrics.jsonl", record(51))
            return
        assert data_file(path).exists()
        last_step(page, 51)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_static(Board([run]), path, 1, wait)
