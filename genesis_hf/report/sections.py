"""The parts of a report, in a reader's order; what they hold is drawn by `pages`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from genesis_hf.evaluation.tables import ERRORS
from genesis_hf.lineage.display import tree_text
from genesis_hf.lineage.tree import read_tree
from genesis_hf.report.charts import Chart, phase_chart, score_charts, training_charts
from genesis_hf.report.material import ODD, Material
from genesis_hf.report.results import (
    compared,
    difference_rows,
    findings,
    held_out_rows,
    parity_rows,
    parity_words,
    results_rows,
)
from genesis_hf.report.samples import SHOWN_ANSWERS, continuations, sample_pairs, style_rows
from genesis_hf.report.tables import Rows
from genesis_hf.report.trainings import (
    conversation_rows,
    cost_words,
    event_counts,
    event_rows,
    fertility_rows,
    mixture_rows,
    run_cost_rows,
    setting_differences,
    setting_rows,
    stage_rows,
    training_rows,
)
from genesis_hf.report.trouble import warnings

LONG_TABLE = 20
"""Lines from which on a table of details is folded."""


@dataclass
class Table:
    rows: Rows
    title: str = ""
    folded: bool = False
    """To be opened by a reader who wants it."""


@dataclass
class Words:
    """Paragraphs, or a list."""

    lines: list[str]
    listed: bool = False


@dataclass
class Charts:
    title: str
    charts: list[Chart]


@dataclass
class Texts:
    """A question or prompt, and what several models or steps made of it."""

    question: str
    answers: list[tuple[str, str]]


@dataclass
class Tree:
    """Lines whose columns matter."""

    text: str


Block = Table | Words | Charts | Texts | Tree


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The end of its address."""
        return self.title.lower().replace(" ", "-")


Part = Callable[[Material], Iterable[Block]]


def sections(material: Material) -> list[Section]:
    """Every part that has something to show; one that cannot be made of these files says so."""
    parts = {
        "Look at this first": first_of_all,
        "Before and after": scores,
        "Exports": exports,
        "Training": training,
        "Data": data,
        "Tokenizer": tokenizers,
        "Samples": samples,
        "Costs": costs,
        "Events": events,
        "Lineage": lineage,
        "Settings": settings,
    }
    made = [Section(title, attempt(part, material)) for title, part in parts.items()]
    return [section for section in made if section.blocks]


def attempt(part: Part, material: Material) -> list[Block]:
    """A part's blocks. Files that another program wrote or somebody edited may hold anything.

    A training, evaluation or export that the part can't be made of is left out of it and named.
    """
    try:
        return list(part(material))
    except ODD:
        pass
    try:
        list(part(Material(material.folders)))
        kept, said = without_odd(part, material)
        return [Words(said), *part(kept)]
    except ODD as error:
        return [Words([f"This part cannot be made of these files: {type(error).__name__}: {error}"])]


def without_odd(part: Part, material: Material) -> tuple[Material, list[str]]:
    """The material without what this part cannot be made of, and a line on each thing that was left out."""
    kept, said = Material(material.folders), []
    for kind in ("trainings", "evaluations", "samples", "stages", "exports", "fertility"):
        for thing in getattr(material, kind):
            more = replace(kept, **{kind: [*getattr(kept, kind), thing]})
            try:
                list(part(more))
                kept = more
            except ODD as error:
                said.append(left_out(name_of(thing), error))
    return replace(kept, problems=material.problems), said


def left_out(name: str, error: Exception) -> str:
    return f"{name} is left out of this part: {type(error).__name__}: {error}"


def name_of(thing: object) -> str:
    """What a reader knows a part of the material by."""
    if isinstance(thing, tuple):
        return str(thing[0])
    if isinstance(thing, dict):
        return str(thing["name"])
    return str(getattr(thing, "folder", None) or getattr(thing, "path", Path()))


def headlines(material: Material) -> list[str]:
    """The warnings, and what follows from the scores: for the terminal."""
    warned, concluded = (
        [line for block in attempt(part, material) for line in block.lines] for part in (first_of_all, conclusions)
    )
    return [*(f"WARNING, {line}" for line in warned), *concluded]


def first_of_all(material: Material) -> Iterator[Words]:
    """The warnings, if there are any."""
    found = warnings(material)
    if found:
        yield Words(found, listed=True)


def tables(*titled: tuple[Rows, str]) -> Iterator[Table]:
    """Those that have more than a head."""
    yield from (Table(rows, title) for rows, title in titled if len(rows) > 1)


# ---------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------


def scores(material: Material) -> Iterator[Block]:
    """Scores side by side, drawn, and against the first model."""
    rows = results_rows(material)
    if len(rows) > 1:
        yield Table(rows)
        yield Words([ERRORS])
    if material.evaluations:
        result = compared(material.evaluations)
        yield from conclusions(material)
        yield Charts("", score_charts(result))
        differences = difference_rows(result)
        if len(differences) > 1:
            yield Table(
                differences, f"Against {result['models'][0]}: {verdicts(differences)}", len(differences) > LONG_TABLE
            )
        if result["notes"]:
            yield Words([f"{note[0].upper()}{note[1:]}." for note in result["notes"]], listed=True)
    yield from tables((held_out_rows(material), "Held out by SFT and preference training"))


def conclusions(material: Material) -> Iterator[Words]:
    """What follows from the scores; the warnings among it stand at the top of the page."""
    said = [sentence for sentence in findings(material) if not sentence.startswith("WARNING")]
    if said:
        yield Words(said, listed=True)


def verdicts(rows: Rows) -> str:
    """How many differences of `difference_rows` are ones."""
    found = [row[-1] for row in rows[1:]]
    better, worse = (sum(words.startswith(word) for words in found) for word in ("better", "worse"))
    return f"of {len(found)} scores {better} better, {worse} worse, the others not distinguishable"


def exports(material: Material) -> Iterator[Block]:
    """How what was exported compared with what was trained."""
    words = parity_words(material)
    if words:
        yield Words(words)
    yield from tables((parity_rows(material), ""))


def training(material: Material) -> Iterator[Block]:
    """A table of all trainings, and the curves of each."""
    yield from tables((training_rows(material), ""))
    for phase in material.phases():
        runs = material.of_phase(phase)
        together = phase_chart(phase, runs)
        if together:
            yield Charts("", [together])
        for run in runs:
            charts = training_charts(run)
            yield Charts(run.name, charts) if charts else Words([f"{run.name}: too few logged steps for curves."])


def data(material: Material) -> Iterator[Block]:
    """Mixtures wanted and realised, and what was left out."""
    for run in material.of_phase("pretraining"):
        yield from tables((mixture_rows(run), run.name))
    others = [run for run in material.trainings if run.phase != "pretraining"]
    yield from tables((conversation_rows(others), "Conversations and preferences"))


def tokenizers(material: Material) -> Iterator[Block]:
    """How many bytes of each source a token holds."""
    yield from tables((fertility_rows(material), ""))


def costs(material: Material) -> Iterator[Block]:
    """Time, memory and energy."""
    yield from tables((run_cost_rows(material), "Trainings"))
    words = cost_words(material)
    if words:
        yield Words(words, listed=True)
    yield from tables((stage_rows(material), "Stages"))


def samples(material: Material) -> Iterator[Block]:
    """Continuations through training, then answers of the models to the same questions."""
    for run in material.trainings:
        yield from (Texts(f"{run.name}: {prompt}", texts) for prompt, texts in continuations(run))
    rows = style_rows(material)
    if len(rows) > 1:
        yield Table(rows, "How the answers changed", folded=len(rows) > LONG_TABLE)
    yield from (Texts(question, answers) for question, answers in sample_pairs(material, SHOWN_ANSWERS))


def events(material: Material) -> Iterator[Block]:
    """Counts by kind, and the newest events of each training."""
    yield from tables((event_counts(material), ""))
    for run in material.trainings:
        rows = event_rows(run)
        total = sum(run.event_counts.values())
        title = f"{run.name}: the newest {len(rows) - 1} of {total:,}" if total > len(rows) - 1 else run.name
        if len(rows) > 1:
            yield Table(rows, title, folded=len(rows) > LONG_TABLE)


def lineage(material: Material) -> Iterator[Block]:
    """What came from what."""
    folders, said = material.folders, []
    try:
        tree = read_tree(folders, evaluations=False)
    except ODD:
        folders, said = readable_alone(
            [thing.folder for thing in material.trainings] + [f for f, _ in material.exports]
        )
        tree = read_tree(folders, evaluations=False)
    if said:
        yield Words(said)
    text = tree_text(tree)
    if text:
        yield Tree(text)


def readable_alone(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The folders that a tree can be made of, and a line on each other one."""
    kept, said = [], []
    for folder in folders:
        try:
            tree_text(read_tree([folder], evaluations=False))
            kept.append(folder)
        except ODD as error:
            said.append(left_out(str(folder), error))
    return kept, said


def settings(material: Material) -> Iterator[Block]:
    """The settings of each phase, and in which its runs differ."""
    for phase in material.phases():
        runs = [run for run in material.of_phase(phase) if run.recipe]
        yield from tables((setting_differences(runs), f"Where the runs of {phase} differ"))
        rows = setting_rows(runs)
        if runs and len(rows) > 1:
            yield Table(rows, phase, folded=len(rows) > LONG_TABLE)
