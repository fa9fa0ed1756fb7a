"""The page: what is on it, and what happens when somebody asks."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from genesis_hf.chat import Message
from genesis_hf.errors import UserError
from genesis_hf.playground.answering import Desk
from genesis_hf.playground.catalogue import Entry, trunks
from genesis_hf.playground.recipe import PlaygroundRecipe
from genesis_hf.playground.sampling import BOUNDS, Sampling
from genesis_hf.playground.shelf import Shelf
from genesis_hf.playground.token_page import answer_begun, conversation_markup, note

QUESTIONS = ["What is a prime number?", "Write a function that adds two numbers.", "Why is the sky blue?"]
BEGINNINGS = ["Once upon a time", "def read_lines(path):", "The capital of France is"]

LEGEND = "Colour: how unlikely the model found a token. Point at one for its probability and the likeliest ones."

Update = dict[str, Any]


class Answers:
    """What the page's buttons do: generators that refuse in words, never with a traceback."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def say(self, text: str, history: Any, key: str, mode: str, system: str, *values: Any) -> Iterator[tuple]:
        """Answer what was typed: the box, the conversation, how it is shown, a line about the answer."""
        box: Any = ""  # emptied once: what is being typed while an answer grows stays
        try:
            turns = turns_of(history)
            messages = self.desk.conversation(system, turns, text)
            asked = [*turns, {"role": "user", "content": text}]
            begun = conversation_markup(asked)
            for answer, markup, line in self.desk.converse(key, messages, mode, values):
                yield (
                    box,
                    [*asked, {"role": "assistant", "content": answer}],
                    begun + answer_begun() + markup,
                    line,
                )
                box = gr.skip()
        except UserError as error:
            yield text, gr.skip(), gr.skip(), note(str(error), "refused")

    def retry(self, history: Any, *rest: Any) -> Iterator[tuple]:
        """Answer the last question again."""
        text, turns, _, _ = take_back(history)
        for _, *others in self.say(text, turns, *rest):
            yield gr.skip(), *others  # what was being typed meanwhile stays

    def compare(
        self, text: str, left: str, right: str, mode: str, system: str, *values: Any
    ) -> Iterator[tuple[str, str, str, str, str]]:
        """Two models on one prompt: tokens and a line of each, and what is wrong with the prompt."""
        try:
            messages = self.desk.conversation(system, [], text)
            for (a, about_a), (b, about_b) in self.desk.beside([left, right], messages, mode, values):
                yield a, about_a, b, about_b, ""
        except UserError as error:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), note(str(error), "refused")

    def evolve(self, text: str, trunk: str, greedy: bool, *values: Any) -> Iterator[tuple[str, str]]:
        """One prompt through the milestones of a trunk."""
        try:
            messages = self.desk.conversation("", [], text)
            milestones = trunks([*self.desk.shelf.entries.values()])
            if not isinstance(trunk, str) or trunk not in milestones:
                raise UserError("no run with more than one checkpoint is chosen; choose one of the list")
            keys = [entry.key for entry in milestones[trunk]]
            values = (0, *values[1:]) if greedy else values
            for rows in self.desk.evolve(keys, messages, values):
                yield rows, ""
        except UserError as error:
            yield gr.skip(), note(str(error), "refused")


def turns_of(history: Any) -> list[Message]:
    """The conversation as plain messages; it comes from the browser, so that anything may be in it.

    Raises:
        UserError: it is no conversation of texts.
    """
    turns = []
    for turn in history if isinstance(history, list) else []:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(content, str) or role not in ("user", "assistant"):
            raise UserError("this conversation holds something other than text: start a new one")
        turns.append({"role": role, "content": content})
    return turns


def take_back(history: Any) -> tuple[str, list[Message], str, str]:
    """The last question into the box, the conversation before it, how that is shown, and no line."""
    try:
        turns = turns_of(history)
    except UserError:  # which only another program than the page can send
        turns = []
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    text = "" if last is None else turns[last]["content"]
    return text, turns[:last], conversation_markup(turns[:last]), ""


# ---------------------------------------------------------------------------------------------------------
# Layout
# ---------------------------------------------------------------------------------------------------------


def build_page(find: Callable[[], list[Entry]], recipe: PlaygroundRecipe) -> gr.Blocks:
    """The app over a catalogue, which is looked for anew by every browser that opens it: a training may go on beside
    it. Models are loaded when somebody asks them.

    Raises:
        UserError: there is no model.
    """
    entries = find()
    shelf = Shelf(entries, recipe.max_models_in_memory)
    answers = Answers(Desk(shelf, recipe.max_new_tokens_limit, recipe.max_prompt_chars))
    choices = choices_of(entries)
    with gr.Blocks(title="Playground", analytics_enabled=False, fill_height=True) as page:
        with gr.Sidebar(width=330, open=True):
            gr.Markdown("# Playground\nTalk to checkpoints.", elem_id="title")
            mode = gr.Radio(
                [("as it was trained", "auto"), ("chat", "chat"), ("raw text", "raw")],
                value="auto",
                label="Prompt as",
                elem_id="mode",
            )
            system = gr.Textbox(label="System prompt", lines=2, max_lines=6, placeholder="none", elem_id="system")
            values = sampling_settings(recipe)
        settings = [mode, system, *values]
        writing = {
            "concurrency_id": "writing",
            "concurrency_limit": recipe.concurrency,
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        best = best_of(entries)
        with gr.Tab("Chat", elem_id="chat-tab"):
            models = [chat_tab(answers, choices, best, settings, writing)]
        with gr.Tab("Side by side", elem_id="compare-tab"):
            models += compare_tab(answers, choices, best, settings, writing)
        with gr.Tab("How it evolved", elem_id="evolve-tab"):
            trunk = evolve_tab(answers, [*trunks(entries)], values, writing)

        def look_again(*chosen: str | None) -> list[Update]:
            with suppress(UserError):  # all are gone: what is there no more says so when it is asked
                shelf.update(find())
            found = [*shelf.entries.values()]
            if found == entries:
                return [gr.skip()] * len(chosen)
            names = [*trunks(found)]
            listed, best = choices_of(found), best_of(found)
            keys = [gr.update(choices=listed, value=kept(key, shelf.entries, best)) for key in chosen[:-1]]
            return [*keys, gr.update(choices=names, value=kept(chosen[-1], names, next(iter(names), None)))]

        lists = [*models, trunk]
        page.load(look_again, lists, lists, **light())
        # On a phone the settings would cover everything.
        page.load(None, js="() => { if (innerWidth < 768) document.querySelector('.sidebar .toggle-button').click() }")
    return page.queue(max_size=recipe.queue_size, api_open=False, default_concurrency_limit=recipe.concurrency)


def choices_of(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Labels and keys, for a list."""
    return [(entry.label, entry.key) for entry in entries]


def best_of(entries: Sequence[Entry]) -> str:
    """The last one with a chat format, which is what came of all the others."""
    return next((entry.key for entry in reversed(entries) if entry.chat), entries[-1].key)


def kept(key: str | None, known: Collection[str], otherwise: str | None) -> str | None:
    """What was chosen, if it is still there."""
    return key if key in known else otherwise


def sampling_settings(recipe: PlaygroundRecipe) -> list[gr.components.Component]:
    """A control for each field of `Sampling`, in their order."""
    usual, controls = Sampling(), []
    steps = {"temperature": 0.05, "top_p": 0.01, "top_k": 1, "repetition_penalty": 0.01, "max_new_tokens": 1}
    notes = {"temperature": "0: always the likeliest token", "top_k": "0: all tokens"}
    for name, step in steps.items():
        low, high = BOUNDS[name]
        value = getattr(usual, name)
        if name == "max_new_tokens":
            high = recipe.max_new_tokens_limit
            value = min(value, high)
        controls.append(gr.Slider(low, high, value, step=step, label=name, info=notes.get(name), elem_id=name))
    # Gradio's field for numbers makes a 0 of nothing.
    controls.append(gr.Textbox(label="seed", info="empty: another one each time", max_lines=1, elem_id="seed"))
    return controls


def chat_tab(answers: Answers, choices: list, best: str, settings: list, writing: Update) -> gr.Dropdown:
    """A conversation with one model; its list of models."""
    key = gr.Dropdown(choices, value=best, label="Model", elem_id="model", filterable=len(choices) > 8)
    # The browser keeps the conversation: however many come, the server holds none.
    history = gr.JSON([], visible=False)
    # A box with bounds of its own scrolls inside them; the page's script keeps its end in sight.
    shown = gr.HTML(conversation_markup([]), min_height="52vh", max_height="52vh", elem_id="conversation")
    with gr.Row():
        text = gr.Textbox(
            label="Message",
            placeholder="Write something; Enter sends it",
            show_label=False,
            max_lines=8,
            scale=8,
            min_width=100,
            elem_id="text",
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=64, elem_id="send")
        stop = stop_button("stop")
    status = gr.HTML(elem_id="status")
    with gr.Row():
        again, back, clear = (
            gr.Button(name, size="sm", scale=0, min_width=90, elem_id=name.lower())
            for name in ("Retry", "Undo", "Clear")
        )
    examples((*QUESTIONS, *BEGINNINGS), text)
    gr.HTML(note(LEGEND))
    outputs, rest = [text, history, shown, status], [key, *settings]
    starts = [text.submit, send.click, again.click]
    others = [send, again, back, clear]
    while_answering(starts, others, stop)
    asked = gr.on(starts[:2], answers.say, [text, history, *rest], outputs, **writing)
    retried = again.click(answers.retry, [history, *rest], outputs, **writing)
    afterwards([asked, retried], others, stop, [status])
    back.click(take_back, history, outputs, **light())
    clear.click(lambda: ("", [], conversation_markup([]), ""), None, outputs, **light())
    return key


def compare_tab(answers: Answers, choices: list, best: str, settings: list, writing: Update) -> list[gr.Dropdown]:
    """Two models on one prompt; their lists of models."""
    with gr.Row():
        text = gr.Textbox(label="Prompt", lines=2, max_lines=10, scale=8, elem_id="compare-text")
        with gr.Column(scale=1, min_width=130):
            send = gr.Button("Ask both", variant="primary", elem_id="compare-send")
            stop = stop_button("compare-stop")
    examples((*QUESTIONS[:2], *BEGINNINGS), text)
    refused = gr.HTML(elem_id="compare-refused")
    keys, shown = [], []
    with gr.Row():
        for side, choice in (("left", choices[0][1]), ("right", best)):
            with gr.Column(min_width=280):
                keys.append(gr.Dropdown(choices, value=choice, show_label=False, elem_id=side))
                shown += [gr.HTML(elem_id=f"{side}-tokens", elem_classes="answer"), gr.HTML(elem_id=f"{side}-status")]
    gr.HTML(note(LEGEND))
    inputs = [text, *keys, *settings]
    while_answering([text.submit, send.click], [send], stop)
    asked = gr.on([text.submit, send.click], answers.compare, inputs, [*shown, refused], **writing)
    afterwards([asked], [send], stop, [shown[1], shown[3]])
    return keys


def evolve_tab(answers: Answers, names: list[str], values: list, writing: Update) -> gr.Dropdown:
    """One prompt through the checkpoints of a run; its list of runs with more than one."""
    with gr.Row():
        text = gr.Textbox(label="Text to go on with", lines=2, max_lines=10, scale=6, elem_id="evolve-text")
        trunk = gr.Dropdown(names, value=next(iter(names), None), label="Run", scale=2, min_width=220, elem_id="trunk")
        with gr.Column(scale=1, min_width=100):
            send = gr.Button("Show", variant="primary", elem_id="evolve-send")
            stop = stop_button("evolve-stop")
    greedy = gr.Checkbox(True, label="always the likeliest token (else the settings, with one seed for all)")
    examples(BEGINNINGS, text)
    refused = gr.HTML(elem_id="evolve-refused")
    rows = gr.HTML(elem_id="milestones")
    gr.HTML(note(LEGEND))
    inputs = [text, trunk, greedy, *values]
    while_answering([text.submit, send.click], [send], stop)
    asked = gr.on([text.submit, send.click], answers.evolve, inputs, [rows, refused], **writing)
    afterwards([asked], [send], stop, [rows])
    return trunk


def stop_button(elem_id: str) -> gr.Button:
    """A button that is of use only while an answer is written."""
    return gr.Button("Stop", variant="stop", scale=1, min_width=64, interactive=False, elem_id=elem_id)


def while_answering(starts: Sequence[Any], asks: Sequence[gr.Button], stop: gr.Button) -> None:
    """From a question on, until its answer has ended: no other can be sent, which Gradio would drop without a word, nor
    the conversation be changed, which the answer's next update would undo.

    To be called before the events that answer, which are handled in the order in which they are made.
    """
    buttons = json.dumps(pressable([False] * len(asks) + [True]))
    gr.on(starts, None, None, [*asks, stop], js=f"() => {buttons}", api_visibility="private")


def afterwards(answering: Sequence[Any], asks: Sequence[gr.Button], stop: gr.Button, lines: Sequence[gr.HTML]) -> None:
    """When answers end, by themselves, refused or by Stop, others can be asked for; a line that still speaks of one
    that is being written says that it was stopped."""
    stop.click(None, cancels=list(answering))
    buttons = json.dumps(pressable([True] * len(asks) + [False]))
    script = f"(...lines) => [...{buttons}, ...lines.map((line) => stoppedLine(line))]"
    for event in answering:
        event.then(None, [*lines], [*asks, stop, *lines], js=script, api_visibility="private")


def pressable(which: Sequence[bool]) -> list[Update]:
    """Updates of buttons, for the browser's script."""
    return [{"__type__": "update", "interactive": on} for on in which]


def examples(texts: Sequence[str], box: gr.Textbox) -> None:
    """Prompts to begin with; a click puts one into a box, to be sent or changed."""
    shown = gr.Dataset(components=[box], samples=[[text] for text in texts], label="Examples")
    shown.click(lambda sample: sample[0], shown, box, **light())


def light() -> Update:
    """How an event is handled that loads no model."""
    return {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
