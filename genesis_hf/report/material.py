"""The run files below some folders: found, and read as far as they can be."""

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from genesis_hf.checkpoint.folders import complete_checkpoints
from genesis_hf.config import SECRET, read_yaml
from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import Evaluated, distinct_names, load_evaluation
from genesis_hf.evaluation.results import RESULTS
from genesis_hf.files import read_json
from genesis_hf.lineage.folders import FORK, real_folders
from genesis_hf.lineage.folders import PHASES as PHASE_KEYS
from genesis_hf.report.curve import Curve, number
from genesis_hf.report.log import Log, highest, mapping, read_log, read_records

T = TypeVar("T")

ODD = (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading files raises that another program wrote or somebody edited: they may hold anything, nested too deep."""

CHECKPOINTS = re.compile(r"checkpoints|checkpoint-\d+")
"""Folders in which no run is looked for."""

PHASES = ("pretraining", "sft", "dpo", "kto")
"""In the order of the road."""

MOST_EVENTS = 100
"""Of a training that are listed: its newest."""

MOST_SAMPLES = 64
"""Steps of a training whose continuations are kept."""


@dataclass
class Training:
    """A training's files.

    Attributes:
        name: tells it from the others of a report.
        log: what metrics.jsonl holds.
        events: the newest lines of events.jsonl; `event_counts` by kind, `event_steps` by kind for the curves.
        samples: lines of samples.jsonl, evenly spread over the run where there are many.
        state: trainer_state.json of its newest checkpoint; {} without one.
        fork: fork.json of a run that went on from another's checkpoint: `run` and `step`; {} of any other.
        problems: a line on each of its files that could not be read.
        written: when its metrics.jsonl last changed here, seconds since 1970; None without one.
    """

    folder: Path
    name: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    events: list[dict[str, Any]] = field(default_factory=list)
    event_counts: Counter[str] = field(default_factory=Counter)
    event_steps: dict[str, Curve] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    fork: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    written: float | None = None

    @property
    def phase(self) -> str:
        """By its summary, or by keys of the recipe that no other phase has."""
        if "sources" in self.recipe:
            return "pretraining"
        if self.summary.get("phase"):
            return str(self.summary["phase"])
        if "mixture" in self.recipe:
            return next((phase for phase, key in PHASE_KEYS.items() if key in self.recipe), "kto")
        return "preference training" if self.log.preference else "unknown"

    @property
    def step(self) -> int | None:
        """The last one known of."""
        known = (number(self.summary.get("steps")), number(self.log.last.get("step")))
        return next((int(step) for step in known if step is not None), None)

    @property
    def tokens(self) -> float | None:
        """Seen in all, a fork's parent included. The last steps of a post-training may have no line: its summary."""
        epochs = number(self.summary.get("epochs"))
        sources = self.summary.get("mixture")
        read = [number(mapping(s).get("tokens")) for s in sources] if isinstance(sources, list) else []
        known = epochs is not None and read and None not in read
        return highest(self.log.tokens, sum(read) * epochs if known else None)

    @property
    def forked_at(self) -> int:
        """The parent's step at which a fork began; 0 of any other run."""
        return int(max(0, number(self.fork.get("step")) or 0))

    @property
    def last_step(self) -> int | None:
        """Where its schedule ends; None where the recipe speaks of epochs, or is not there."""
        steps = number(self.recipe.get("max_steps"))
        anneal_at = number(self.recipe.get("anneal_at"))
        if anneal_at is not None:
            steps = anneal_at + (number(self.recipe.get("anneal_steps")) or 0)
        return int(steps) if steps is not None and steps > 0 else None

    @property
    def finished(self) -> bool:
        """Post-training: it wrote its summary. Pretraining: it logged its last step."""
        return bool(self.summary) or bool(self.step and self.last_step and self.step >= self.last_step)


@dataclass
class Samples:
    """Answers of one model to the fixed prompts, and their measured style."""

    name: str
    path: Path
    answers: list[dict[str, Any]]
    style: dict[str, dict[str, Any]]


@dataclass
class Material:
    """All that the given folders hold, each kind in the order in which it came about.

    Attributes:
        exports: folder and parity.json of exports. fertility: folder and fertility.json of tokenizers.
        problems: a line on each file that could not be read.
    """

    folders: list[Path]
    trainings: list[Training] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    exports: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    fertility: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def model_names(self) -> list[str]:
        """Of the evaluated models, as short as they can be told apart."""
        return distinct_names([e.folder for e in self.evaluations]) if self.evaluations else []

    def of_phase(self, phase: str) -> list[Training]:
        return [training for training in self.trainings if training.phase == phase]

    def phases(self) -> list[str]:
        """Those of the trainings, in the order of the road."""
        found = dict.fromkeys(training.phase for training in self.trainings)
        return [*(phase for phase in PHASES if phase in found), *(phase for phase in found if phase not in PHASES)]


def collect(folders: Sequence[str | Path]) -> Material:
    """Find run files below some folders by their names.

    Raises:
        UserError: a folder is missing, or holds nothing that a part of the report is about.
    """
    material = Material([Path(folder) for folder in folders])
    for folder in material.folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name run directories, or one that holds them")
    found = list(dict.fromkeys(path for folder in material.folders for path in files_below(folder)))
    found = [shown(path) for path in sorted(found, key=lambda path: (changed_at(path), path))]

    def read(reader: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
        """What a reader makes of each; what it can't read is a problem, not the end."""
        results = []
        for path in paths:
            try:
                results.append(reader(path))
            except ODD as error:
                material.problems.append(problem(path, error))
        return results

    def named(*names: str) -> list[Path]:
        return [path for path in found if path.name in names]

    runs = dict.fromkeys(path.parent for path in named("metrics.jsonl", "recipe.yaml"))
    material.trainings = read(read_training, [run for run in runs if is_training(run)])
    material.trainings.sort(key=lambda run: PHASES.index(run.phase) if run.phase in PHASES else len(PHASES))
    if material.trainings:
        for training, name in zip(
            material.trainings, distinct_names([run.folder.resolve() for run in material.trainings]), strict=True
        ):
            training.name = name
            material.problems += training.problems
    material.evaluations = sorted(read(read_evaluation, named(RESULTS)), key=first_measured)
    material.samples = read(read_samples, [path for path in found if path.name.endswith(".summary.json")])
    material.stages = read(read_stage, [path for path in found if path.parent.name == "stages"])
    material.exports = read(lambda path: (path.parent, whole_json(path)), named("parity.json"))
    material.fertility = read(lambda path: (path.parent, whole_json(path)), named("fertility.json"))
    if material == Material(material.folders):
        raise UserError(
            f"{', '.join(map(str, folders))}: no training (metrics.jsonl, or its recipe.yaml), no {RESULTS} and no "
            "export below; nothing to report"
        )
    return material


def files_below(folder: Path) -> Iterator[Path]:
    """JSON, YAML and metrics files below a folder and the folders linked there; checkpoints and hidden ones left out.

    A folder is walked once, whatever links lead to it; a link to a folder above the given one is not followed.
    """
    for place in real_folders(folder, lambda _, names: [name for name in names if not CHECKPOINTS.fullmatch(name)]):
        real = Path(os.path.realpath(place))
        for name in os.listdir(real):
            if name.endswith(".json") or name in ("metrics.jsonl", "recipe.yaml"):
                yield real / name


def changed_at(path: Path) -> float:
    """When a file last changed; 0 where it went while one looked, or is a link to nothing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def problem(path: Path, error: Exception) -> str:
    """A line on a file that could not be read."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{path} could not be read: {said.removeprefix(str(path)).lstrip(',: ')}"


def shown(path: Path) -> Path:
    """A path as a reader of this folder would write it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def is_training(folder: Path) -> bool:
    """Whether a folder with metrics.jsonl or recipe.yaml is a training's: other phases write recipes, too."""
    if (folder / "metrics.jsonl").is_file():
        return True
    try:
        recipe = read_yaml(folder / "recipe.yaml")
    except ODD:
        return False
    return "learning_rate" in recipe and bool(recipe.keys() & {"sources", "mixture"})


def read_training(folder: Path) -> Training:
    """A run directory; what is missing in it is empty, and so is, named among its problems, what can't be read."""
    training = Training(folder)

    def read(name: str, reader: Callable[[Path], T], otherwise: T) -> T:
        path = folder / name
        if not os.path.lexists(path):
            return otherwise
        try:
            return reader(path)
        except ODD as error:
            training.problems.append(problem(path, error))
            return otherwise

    training.recipe = read("recipe.yaml", lambda path: without_secrets(read_yaml(path)), {})
    training.summary = read("summary.json", whole_json, {})
    training.fork = read(FORK, whole_json, {})
    resumed_at = read("events.jsonl", lambda path: read_events(path, training), [])
    training.written = read("metrics.jsonl", changed_at, None)
    training.log = read("metrics.jsonl", lambda path: read_log(path, resumed_at, training.forked_at), Log())
    training.samples = read("samples.jsonl", read_continuations, [])
    training.state = read("checkpoints", lambda _: newest_state(folder), {})
    return training


def read_events(path: Path, training: Training) -> list[int]:
    """Fill in a training's events; returns the steps at which another process went on."""
    newest: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
    resumed_at = []
    for event in read_records(path):
        step = number(mapping(event).get("step"))
        if event is None or step is None:
            continue
        kind = str(event.get("event", "unknown"))
        newest.append(event)
        training.event_counts[kind] += 1
        training.event_steps.setdefault(kind, Curve()).add(int(step), 1.0)
        if kind == "resumed":
            resumed_at.append(int(step))
    training.events = list(newest)
    return resumed_at


def newest_state(run: Path) -> dict[str, Any]:
    """trainer_state.json of a run's newest checkpoint."""
    checkpoints = complete_checkpoints(run)
    return read_json(checkpoints[0] / "trainer_state.json") if checkpoints else {}


def without_secrets(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as it may be shown: written by hand, it may hold the values of secret variables, or a token."""
    shown = {key: "(not shown)" if str(key).endswith("_token") and value else value for key, value in recipe.items()}
    if isinstance(shown.get("env"), dict):
        shown["env"] = {k: "(not shown)" if SECRET.search(str(k)) else v for k, v in shown["env"].items()}
    return shown


def read_continuations(path: Path) -> list[dict[str, Any]]:
    """Lines of samples.jsonl; of many, every second, fourth … one, and the last."""
    kept: list[dict[str, Any]] = []
    last, every = None, 1
    for place, record in enumerate(read_records(path)):
        if record is None or not isinstance(record.get("samples"), list) or number(record.get("step")) is None:
            continue
        last = record
        if place % every == 0:
            kept.append(record)
        if len(kept) > MOST_SAMPLES:
            kept, every = kept[::2], 2 * every
    return kept if not kept or kept[-1] is last else [*kept, last]


def read_evaluation(path: Path) -> Evaluated:
    evaluated = load_evaluation(path)
    first_measured(evaluated)
    return evaluated


def first_measured(evaluation: Evaluated) -> str:
    """When its first task was measured, ISO 8601: a base is measured before what is trained from it."""
    return min((str(p.get("date", "")) for p in evaluation.values["provenance"].values()), default="")


def read_samples(path: Path) -> Samples:
    """Answers and their figures from `NAME.summary.json` and `NAME.jsonl` beside it."""
    name = path.name.removesuffix(".summary.json")
    answers = path.with_name(f"{name}.jsonl")
    records = [r for r in read_records(answers) if r and is_answer(r)]
    style = whole_json(path).get("style")
    return Samples(name, answers, records, style if isinstance(style, dict) else {})


def is_answer(record: dict[str, Any]) -> bool:
    """Whether a line holds an answer, and a text or messages that it answers."""
    prompt = record.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return isinstance(record.get("answer"), str) and bool(
        isinstance(messages, list)
        and messages
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in messages)
    )


def read_stage(path: Path) -> dict[str, Any]:
    """A stage's record, with the name of its file."""
    return {**whole_json(path), "name": path.stem}


def whole_json(path: Path) -> dict[str, Any]:
    """A JSON object; unlike `files.read_json` it minds one that is none."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
