"""lm-eval tasks over held-out text: three multiple-choice ones, a last word in LAMBADA's form, bits per byte."""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genesis_hf.config import write_text
from genesis_hf.demo.conversations import Fact
from genesis_hf.demo.corpus import Document, size

CHOICES = 4
ITEMS = 200
MIN_ITEMS = 20
"""A task with fewer items is left out: its standard error would say nothing."""
PAGES = 60
PAGE_BYTES = 2_048
CONTEXT = (140, 220)
CONTINUATION = (40, 90)
PASSAGE = (240, 360)
"""Characters, at least and at most."""
MAX_SPREAD = 0.15
"""How much longer than the shortest of its options the longest may be."""
MIN_WORDS = 5
"""Of a continuation whose words are put in another order."""
REPEATED_WORD = re.compile(r"(?<= )[^\W\d_]{4,}(?=[\s.,;:!?)]|$)")

TASKS: dict[str, dict[str, Any]] = {
    "demo_continuation": {
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "demo_last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "demo_bits_per_byte": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}
TASKS["demo_signature"] = TASKS["demo_word_order"] = TASKS["demo_continuation"]
"""By name: what lm-eval's YAML says beyond where the data is."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """A context and what truly follows it; joined they stand so in the document."""

    context: str
    continuation: str
    document: int
    kind: str


def make_tasks(held_out: dict[str, list[Document]], facts: list[Fact], seed: str) -> dict[str, list[Item]]:
    """The items of every task by the task's name; a task that the text gives too few items for is left out.

    Args:
        held_out: held-out documents by kind of text (code, prose, text).
        facts: documented names of held-out modules.
        seed: everything drawn at random follows from it.
    """
    passages = [p for kind, documents in held_out.items() for p in find_passages(documents, kind)]
    words = [item for kind, documents in held_out.items() if kind != "code" for item in find_last_words(documents)]
    pages = {kind: list(find_pages(documents, kind)) for kind, documents in held_out.items()}
    share = PAGES // len(held_out)
    rng = random.Random(seed)
    tasks = {
        "demo_continuation": make_questions(passages, rng),
        "demo_signature": make_questions(signature_passages(facts), rng),
        "demo_word_order": make_word_orders(passages, rng),
        "demo_last_word": rng.sample(words, min(ITEMS, len(words))),
        "demo_bits_per_byte": [item for found in pages.values() for item in rng.sample(found, min(share, len(found)))],
    }
    return {name: items for name, items in tasks.items() if len(items) >= MIN_ITEMS}


# ---------------------------------------------------------------------------------------------------------
# Multiple choice
# ---------------------------------------------------------------------------------------------------------


def find_passages(documents: list[Document], kind: str) -> Iterator[Passage]:
    """Passages that don't overlap, cut at line ends where lines are short, else at spaces."""
    for number, document in enumerate(documents):
        text, start = document.text, 0
        while len(text) - start > CONTEXT[1] + CONTINUATION[1]:
            middle = cut(text, start + CONTEXT[0], start + CONTEXT[1])
            end = cut(text, middle + CONTINUATION[0], middle + CONTINUATION[1])
            context = text[start:middle].strip("\n").rstrip()
            # Blanks between the two belong to the continuation: tokenizers join them to what follows.
            continuation = text[start + text[start:middle].rfind(context) + len(context) : end].rstrip()
            if context and sum(map(str.isalpha, continuation)) >= CONTINUATION[0] // 2:
                yield Passage(context, continuation, number, kind)
            start = end


def cut(text: str, low: int, high: int) -> int:
    """Where to cut: before the last line end between `low` and `high`, else the last space, else at `high`."""
    for separator in "\n", " ":
        position = text.rfind(separator, low, high)
        if position >= 0:
            return position
    return high


def signature_passages(facts: Iterable[Fact]) -> list[Passage]:
    """A signature and its docstring's first sentence, laid out as on the pages of docstrings."""
    return [
        Passage(fact.entry.signature, f"\n\n{fact.summary}", number, "signature")
        for number, fact in enumerate(facts)
        if fact.entry.kind != "module"
    ]


def make_questions(passages: list[Passage], rng: random.Random) -> list[Item]:
    """Up to 200 questions, of each kind equally many: which of four continuations is the true one?

    Four passages of different documents with continuations of nearly equal length make a group; each of the four
    is equally likely to be the one that is asked about. So neither an option's length nor its place gives it away.
    """
    by_kind = {}
    for kind in sorted({p.kind for p in passages}):
        groups = group_by_length([p for p in passages if p.kind == kind], rng)
        by_kind[kind] = [
            ask_group(group, asked, rng) for asked in range(CHOICES) for group in rng.sample(groups, len(groups))
        ]
    questions = [q for turn in zip_longest_lists(list(by_kind.values())) for q in turn][:ITEMS]
    return rng.sample(questions, len(questions))


def zip_longest_lists(lists: list[list[Item]]) -> Iterator[list[Item]]:
    """The first of each list, the second of each …, until the longest list ends."""
    for turn in range(max(map(len, lists), default=0)):
        yield [items[turn] for items in lists if turn < len(items)]


def group_by_length(passages: list[Passage], rng: random.Random) -> list[list[Passage]]:
    """Groups of four passages of different documents, nearly equally long, in random order."""
    groups: list[list[Passage]] = []
    unfinished: list[list[Passage]] = []
    shuffled = rng.sample(passages, len(passages))
    for passage in sorted(shuffled, key=lambda p: size(p.continuation)):
        longest = size(passage.continuation)
        unfinished = [g for g in unfinished if longest <= (1 + MAX_SPREAD) * size(g[0].continuation)]
        for group in unfinished:
            strangers = {(p.document, p.continuation) for p in group}
            if not any(passage.document == d or passage.continuation == c for d, c in strangers):
                group.append(passage)
                break
        else:
            group = [passage]
            unfinished.append(group)
        if len(group) == CHOICES:
            unfinished.remove(group)
            groups.append(rng.sample(group, CHOICES))
    return groups


def ask_group(group: list[Passage], asked: int, rng: random.Random) -> Item:
    """The question about one passage of a group, options shuffled."""
    order = rng.sample(range(CHOICES), CHOICES)
    return {
        "context": group[asked].context,
        "choices": [group[i].continuation for i in order],
        "label": order.index(asked),
        "kind": group[asked].kind,
    }


def make_word_orders(passages: list[Passage], rng: random.Random) -> list[Item]:
    """Up to 200 questions, of each kind equally many: which of four orders of the same words is the true one?

    Even a very small model knows something about word order, and the four options are equally long.
    """
    by_kind: dict[str, list[Item]] = {}
    for passage in rng.sample(passages, len(passages)):
        item = scramble(passage, rng)
        if item is not None:
            by_kind.setdefault(passage.kind, []).append(item)
    questions = [q for turn in zip_longest_lists(list(by_kind.values())) for q in turn][:ITEMS]
    return rng.sample(questions, len(questions))


def scramble(passage: Passage, rng: random.Random) -> Item | None:
    """A passage's continuation among three shuffles of its words, blanks left in place; None where it has too few."""
    parts = re.split(r"(\s+)", passage.continuation)
    places = [i for i, part in enumerate(parts) if part.strip()]
    choices = [passage.continuation]
    for _ in range(20):
        shuffled = list(parts)
        for place, source in zip(places, rng.sample(places, len(places)), strict=True):
            shuffled[place] = parts[source]
        if len(places) >= MIN_WORDS and "".join(shuffled) not in choices:
            choices.append("".join(shuffled))
        if len(choices) == CHOICES:
            order = rng.sample(range(CHOICES), CHOICES)
            options = [choices[i] for i in order]
            return {"context": passage.context, "choices": options, "label": order.index(0), "kind": passage.kind}
    return None


# ---------------------------------------------------------------------------------------------------------
# Last words and pages
# ---------------------------------------------------------------------------------------------------------


def find_last_words(documents: list[Document]) -> Iterator[Item]:
    """Passages that end in a word of four letters or more which stood in them before."""
    for document in documents:
        text, start = document.text, 0
        while len(text) - start > PASSAGE[1]:
            end = cut(text, start + PASSAGE[0], start + PASSAGE[1])
            for word in reversed(list(REPEATED_WORD.finditer(text, start, end))):
                if word.start() - start < PASSAGE[0] // 2:
                    break
                if re.search(rf"\b{word[0]}\b", text[start : word.start()]):
                    yield {"text": text[start : word.end()].lstrip()}
                    break
            start = end


def find_pages(documents: list[Document], kind: str) -> Iterator[Item]:
    """Documents cut at line ends into pages of at most 2 KB, without empty ones."""
    for document in documents:
        page = ""
        for line in document.text.splitlines(keepends=True):
            for part in short_parts(line):
                if page and size(page) + size(part) > PAGE_BYTES:
                    yield from [{"text": page, "kind": kind}] if page.strip() else []
                    page = ""
                page += part
        if page.strip():
            yield {"text": page, "kind": kind}


def short_parts(line: str) -> Iterator[str]:
    """A line in parts that fit a page, whatever its characters' bytes."""
    for start in range(0, len(line), PAGE_BYTES // 4):
        yield line[start : start + PAGE_BYTES // 4]


# ---------------------------------------------------------------------------------------------------------
# lm-eval's YAML
# ---------------------------------------------------------------------------------------------------------


def task_config(name: str, data_file: Path) -> dict[str, Any]:
    """What lm-eval needs to know of a task; the data file by its absolute path, as lm-eval runs from anywhere."""
    return {
        "task": name,
        "tag": ["demo"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data_file)}},
        "test_split": "test",
        **TASKS[name],
        "metadata": {"version": 1.0},
    }


def write_task_configs(folder: Path, data_folder: Path | None = None) -> None:
    """A YAML beside each task's .jsonl in `folder`, for `lm_eval --include_path`.

    Args:
        folder: where the .jsonl files are now.
        data_folder: where they will be when the YAML is read; default: where they are. A file that names another
            place (the folder was moved) is rewritten.
    """
    for data in sorted(folder.glob("*.jsonl")):
        config = task_config(data.stem, (data_folder or folder).resolve() / data.name)
        path = folder / f"{data.stem}.yaml"
        text = yaml.safe_dump(config, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
