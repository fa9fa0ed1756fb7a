"""The playground in a browser: streaming, stopping, two models at once, probabilities, milestones."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Watched, browser_page, needs_chromium
from small_playground import ENDLESS, STEPS, make_models, serving

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with serving(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Watched]:
    """The page, loaded once."""
    with browser_page() as watched:
        watched.page.set_default_timeout(20_000)
        watched.page.goto(address)
        watched.page.wait_for_selector("#text textarea")
        yield watched


@pytest.fixture
def watched(browser: Watched) -> Iterator[Watched]:
    """Whatever a test does, nothing outside is asked and nothing complained of; it leaves an empty conversation."""
    yield browser
    browser.page.get_by_role("tab", name="Chat").click()
    if browser.page.locator("#stop").is_enabled():
        browser.page.click("#stop")
    browser.page.wait_for_selector("#send:enabled")
    browser.page.click("#clear")
    browser.page.wait_for_function("document.querySelectorAll('#conversation .turn').length == 0")
    browser.page.wait_for_function("document.querySelector('#status').innerText.trim() == ''")
    assert browser.outside == []
    # Gradio's client says so of what it still waited for when the page is left.
    assert [error for error in browser.errors if not error.startswith("AbortError")] == []


def open_tab(page: object, name: str, max_new_tokens: int, temperature: float = 0.7, seed: str = "") -> None:
    page.get_by_role("tab", name=name).click()
    for setting, value in (("max_new_tokens", max_new_tokens), ("temperature", temperature)):
        page.fill(f"#{setting} input[type=number]", str(value))
        page.press(f"#{setting} input[type=number]", "Tab")
    page.fill("#seed input, #seed textarea", seed)


def choose(page: object, field: str, name: str) -> None:
    page.click(f"{field} input")
    page.locator(f"{field} [role=option]", has_text=name).or_(
        page.locator("ul[role=listbox]:visible [role=option]", has_text=name)
    ).first.click()


def ask(page: object, text: str) -> None:
    page.fill("#text textarea", text)
    page.click("#send")


def get_greedy_answer(page: object, model: str, text: str, max_new_tokens: int) -> None:
    """A whole answer of the likeliest tokens, cut at its bound."""
    open_tab(page, "Chat", max_new_tokens=max_new_tokens, temperature=0)
    choose(page, "#model", model)
    ask(page, text)
    wait_for_text(page, "#status", f"{max_new_tokens} tokens")
    wait_for_text(page, "#status", "greedy · cut at max_new_tokens")
    page.wait_for_selector("#send:enabled")


def wait_for_text(page: object, element: str, text: str) -> str:
    page.wait_for_function(
        "([element, text]) => document.querySelector(element)?.innerText.includes(text)", arg=[element, text]
    )
    return page.inner_text(element)


def test_a_conversation_is_streamed_and_remembered(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Chat", max_new_tokens=12, seed="5")
    choose(page, "#model", "chat")
    ask(page, "hello <b>there</b> {{1+1}} ${1+1}")
    wait_for_text(page, "#status", "cut at max_new_tokens")
    first = page.inner_text("#conversation .turn.assistant")
    assert page.inner_text("#conversation .turn.user") == "hello <b>there</b> {{1+1}} ${1+1}"
    assert page.input_value("#text textarea") == ""
    assert page.locator("#conversation .token").count() == 12
    ask(page, "river")
    page.wait_for_function("document.querySelectorAll('#conversation .turn').length == 4")
    wait_for_text(page, "#status", "cut at max_new_tokens")
    page.click("#undo")
    page.wait_for_function("document.querySelectorAll('#conversation .turn').length == 2")
    assert page.input_value("#text textarea") == "river"
    page.click("#retry")
    page.wait_for_function("document.querySelectorAll('#conversation .token').length == 12")
    assert page.inner_text("#conversation .turn.assistant") == first  # with the same seed


def test_stop_ends_an_answer_where_it_is(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Chat", max_new_tokens=ENDLESS // 2, temperature=0)
    choose(page, "#model", "chat")
    ask(page, "hello")
    page.wait_for_function("document.querySelectorAll('#conversation .token').length > 20")
    assert all(page.locator(button).is_disabled() for button in ("#send", "#retry", "#undo", "#clear"))
    wait_for_text(page, "#status", "tokens")
    page.fill("#text textarea", "stone")  # which the answer, still growing, leaves alone
    before = page.locator("#conversation .token").count()
    page.wait_for_function(f"document.querySelectorAll('#conversation .token').length > {before}")
    assert page.input_value("#text textarea") == "stone"
    page.click("#stop")
    open_tab(page, "Chat", max_new_tokens=3)
    wait_for_text(page, "#status", "stopped")
    page.click("#send")  # which would wait for ever behind the first one, were that still going on
    page.wait_for_function("document.querySelector('#status').innerText.startsWith('3 tokens')")
    turns = page.locator("#conversation .turn").all_inner_texts()
    assert turns[0] == "hello"
    assert len(turns[1]) > 20
    assert turns[2] == "stone"


def test_a_long_answer_stays_in_its_box_and_is_followed(watched: Watched) -> None:
    page = watched.page
    get_greedy_answer(page, "chat", "hello", max_new_tokens=600)
    box, message = (page.locator(name).bounding_box() for name in ("#conversation", "#text"))
    assert box["y"] + box["height"] <= message["y"]
    last = page.locator("#conversation .token").last.bounding_box()
    assert box["y"] < last["y"] < box["y"] + box["height"]


def test_arrow_keys_go_through_the_tokens(watched: Watched) -> None:
    page = watched.page
    get_greedy_answer(page, "step 30", "hello there", max_new_tokens=4)
    page.focus("#conversation .conversation")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".why:visible")
    assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1


def test_pointing_at_a_token_shows_its_probability(watched: Watched) -> None:
    page = watched.page
    get_greedy_answer(page, "step 30", "hello there", max_new_tokens=4)
    token = page.locator("#conversation .token").first
    assert page.locator(".why:visible").count() == 0
    token.hover()
    page.wait_for_selector(".why:visible")
    probability, *lines = page.inner_text(".why").strip().split("\n")
    rows = [line.split("\t") for line in lines if line]
    assert len(rows) == 5
    assert rows[0][1] == probability  # greedy: the likeliest one
    assert re.fullmatch(r"[<\d. ]+%", probability)


def test_two_models_answer_side_by_side(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Side by side", max_new_tokens=6)
    choose(page, "#left", "step 10")
    page.get_by_role("button", name="Once upon a time").locator("visible=true").click()
    page.wait_for_function("document.querySelector('#compare-text textarea').value == 'Once upon a time'")
    page.click("#compare-send")
    for side in ("left", "right"):
        wait_for_text(page, f"#{side}-status", "cut at max_new_tokens")
        assert page.locator(f"#{side}-tokens .token").count() == 6
    assert page.inner_text("#left-tokens") != page.inner_text("#right-tokens")
    seeds = [re.search(r"seed \d+", page.inner_text(f"#{side}-status"))[0] for side in ("left", "right")]
    assert seeds[0] == seeds[1]


def test_a_broken_model_says_so_and_the_other_goes_on(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Side by side", max_new_tokens=5)
    choose(page, "#left", "broken")
    page.fill("#compare-text textarea", "hello")
    page.click("#compare-send")
    wait_for_text(page, "#left-status", "can't be loaded")
    wait_for_text(page, "#right-status", "5 tokens")
    assert "/" not in page.inner_text("#left-status").replace("models/broken", "")  # where it lies is nobody's business


def test_one_prompt_through_all_milestones(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "How it evolved", max_new_tokens=5)
    page.fill("#evolve-text textarea", "hello")
    page.click("#evolve-send")
    page.wait_for_function("document.querySelectorAll('#milestones .note').length == 3")
    wait_for_text(page, "#milestones", f"step {STEPS[-1]}")
    page.wait_for_function("document.querySelector('#milestones').innerText.split('greedy').length == 4")
    assert page.locator("#milestones h4").all_inner_texts() == [f"step {step}" for step in STEPS]


def test_what_cannot_be_answered_is_refused_in_words(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Chat", max_new_tokens=5)
    choose(page, "#model", "step 10")
    for text, complaint in (("", "write something"), ("x" * 16001, "16,001 characters"), ("stone " * 80, "room for")):
        ask(page, text)
        wait_for_text(page, "#status .refused", complaint)
        assert page.input_value("#text textarea") == text
    open_tab(page, "Chat", max_new_tokens=5, seed="abc")
    ask(page, "hello")
    wait_for_text(page, "#status .refused", "seed must be from 0")


def test_a_page_loaded_again_has_what_was_trained_meanwhile(watched: Watched, address: str, root: Path) -> None:
    page, run = watched.page, root / "trunk" / "checkpoints"
    later = run / f"step_{STEPS[-1] + 10:09d}"
    shutil.copytree(run / f"step_{STEPS[-1]:09d}", later)
    page.goto(address)
    page.wait_for_selector("#text textarea")
    choose(page, "#model", f"step {STEPS[-1] + 10}")
    shutil.rmtree(later)
    ask(page, "hello")
    wait_for_text(page, "#status .refused", "was deleted meanwhile")
    page.goto(address)
    page.wait_for_selector("#text textarea")


def test_a_phone_shows_the_conversation_first(watched: Watched, address: str) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 844})
    watched.page.goto(address)
    watched.page.wait_for_selector(".sidebar:not(.open)", state="attached")
    watched.page.wait_for_selector("#text textarea")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
