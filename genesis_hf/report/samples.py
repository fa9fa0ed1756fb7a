"""What models wrote: continuations through training, and answers of several models side by side."""

import json
from collections.abc import Iterator

from genesis_hf.answers import Answer
from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import distinct_names
from genesis_hf.report.log import mapping
from genesis_hf.report.material import Material, Training
from genesis_hf.report.tables import Rows, count
from genesis_hf.style.comparison import Sampled, compare_answers
from genesis_hf.style.comparison_page import HEADER, table

SHOWN_STEPS = 5
"""Steps at which a prompt's continuations are shown."""

SHOWN_PROMPTS = 4

SHOWN_ANSWERS = 8
"""Questions of a report; the terminal shows half as many."""

LONGEST_TEXT = 1200
"""Characters of an answer or continuation."""


def continuations(run: Training) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(prompt, [(step, text), …]) of a training's first prompts, from its first samples to its last."""
    records = run.samples
    if not records:
        return
    places = sorted({round(i * (len(records) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    for number in range(min(SHOWN_PROMPTS, len(records[-1]["samples"]))):
        prompt = prompt_text(mapping(records[-1]["samples"][number]).get("prompt", ""))
        answers = []
        for record in (records[place] for place in places):
            found = next((s for s in record["samples"] if prompt_text(mapping(s).get("prompt", "")) == prompt), None)
            if found is not None:
                text = found.get("continuation", found.get("answer", ""))
                answers.append((f"step {count(record['step'])}", shortened(str(text))))
        yield prompt, answers


def prompt_text(prompt: object) -> str:
    """The last message of a conversation, or the text itself."""
    if isinstance(prompt, list) and prompt:
        return str(mapping(prompt[-1]).get("content", ""))
    return str(prompt)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def style_rows(material: Material) -> Rows:
    """How answers changed from the first model sampled, where all answered the same prompts."""
    sampled = [Sampled(s.path, [as_answer(a) for a in s.answers], {}) for s in material.samples if s.answers]
    if len(sampled) < 2:
        return [list(HEADER)]
    try:
        return [list(HEADER), *map(list, table(compare_answers(sampled)))]
    except UserError:  # other prompts: nothing to compare
        return [list(HEADER)]


def as_answer(record: dict) -> Answer:
    prompt = record["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Answer(messages, record["answer"], record.get("stopped"), record.get("tokens"))


def sample_pairs(material: Material, count: int = SHOWN_ANSWERS // 2) -> list[tuple[str, list[tuple[str, str]]]]:
    """(question, [(model, answer), …]) of prompts that all sampled models answered: evenly spread, none hand-picked."""
    sampled = [sample for sample in material.samples if sample.answers]
    if not sampled:
        return []
    answers = [{json.dumps(a["prompt"]): a for a in sample.answers} for sample in sampled]
    shared = [key for key in answers[0] if all(key in other for other in answers)]
    chosen = shared[:: max(1, len(shared) // count)][:count]
    names = distinct_names([sample.path.resolve().with_suffix("") for sample in sampled])
    return [
        (
            prompt_text(json.loads(key)),
            [(n, shortened(a[key]["answer"])) for n, a in zip(names, answers, strict=True)],
        )
        for key in chosen
    ]
