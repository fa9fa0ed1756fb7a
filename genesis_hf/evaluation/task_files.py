"""A folder of lm-eval tasks over local data, made from files of evaluation sets in their authors' forms.

OUTPUT/data/TASK/test.jsonl   the items, and train.jsonl the examples for prompts, in the columns that the task reads
OUTPUT/TASK.yaml              `include:` of the installed lm-eval's own definition, with `dataset_path: json`
OUTPUT/prepared.json          what each was made of

Prompts, metrics and versions stay lm-eval's own, so scores compare with those of others.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from genesis_hf.config import nearest, write_text
from genesis_hf.data.contamination.evaluation_sets import SUFFIXES, read_records
from genesis_hf.data.readers import open_binary, plain_suffix
from genesis_hf.errors import UserError
from genesis_hf.evaluation import set_forms
from genesis_hf.files import file_sha256

OFFICIAL = Path(lm_eval.__file__).parent / "tasks"

PREPARED = "prepared.json"


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's data is looked for. A pattern fits the end of a file's path, letters of either case, without
    `.jsonl`, `.gz` and the like; the first of several that fits any file wins."""

    name: str
    """lm-eval's"""
    definition: str
    """its file below lm-eval's `tasks`"""
    form: set_forms.Form
    test: tuple[str, ...]
    train: tuple[str, ...] = ()
    """examples for prompts; without any they come from the items themselves, never an item for itself"""
    labels: str | None = None
    """how the name of a file of labels, one a line, goes on after that of the items"""


TASKS = (
    TaskFiles(
        "hellaswag", "hellaswag/hellaswag.yaml", set_forms.hellaswag, ("hellaswag.*val.*",), ("hellaswag.*train",)
    ),
    TaskFiles(
        "piqa",
        "piqa/piqa.yaml",
        set_forms.piqa,
        ("(piqa|physicaliqa).*(valid|val|dev)", "piqa"),
        ("(piqa|physicaliqa).*train",),
        "-labels.lst",
    ),
    TaskFiles(
        "winogrande",
        "winogrande/default.yaml",
        set_forms.winogrande,
        ("winogrande.*(dev|val|validation)", "winogrande"),
        ("winogrande.*train(_xl|_l|_m|_s|_xs)?",),
    ),
    TaskFiles(
        "arc_easy",
        "arc/arc_easy.yaml",
        set_forms.arc,
        ("arc-easy.*test", "arc_easy"),
        ("arc-easy.*train", "arc-easy.*(dev|validation)"),
    ),
    TaskFiles(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        set_forms.arc,
        ("arc-challenge.*test", "arc_challenge"),
        ("arc-challenge.*train", "arc-challenge.*(dev|validation)"),
    ),
    TaskFiles("lambada_openai", "lambada/lambada_openai.yaml", set_forms.lambada, ("lambada_test.*", "lambada.*")),
    TaskFiles("gsm8k", "gsm8k/gsm8k.yaml", set_forms.gsm8k, ("gsm8k/.*test", "gsm8k"), ("gsm8k/.*train",)),
    TaskFiles(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        set_forms.openbookqa,
        ("open_?book_?qa.*test", "open_?book_?qa"),
        ("open_?book_?qa.*train", "open_?book_?qa.*(dev|validation)"),
    ),
    TaskFiles(
        "boolq",
        "super_glue/boolq/default.yaml",
        set_forms.boolq,
        ("boolq.*(dev|val|validation)", "boolq"),
        ("boolq.*train",),
    ),
    TaskFiles(
        "copa", "super_glue/copa/default.yaml", set_forms.copa, ("copa.*(dev|val|validation)", "copa"), ("copa.*train",)
    ),
    TaskFiles("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", set_forms.truthfulqa, ("truthful_?qa.*",)),
    TaskFiles("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", set_forms.truthfulqa, ("truthful_?qa.*",)),
)


@dataclass(frozen=True)
class Group:
    """Tasks that lm-eval defines a file each, scored together."""

    name: str
    definitions: str
    """glob of the tasks' files below lm-eval's `tasks`"""
    groups: str
    """glob of the groups' files"""
    form: set_forms.Form
    test: str
    """pattern with the `dataset_name` of the task in it"""
    train: str | None = None


GROUPS = (
    Group(
        "mmlu",
        "mmlu/default/mmlu_*.yaml",
        "mmlu/default/_mmlu*.yaml",
        set_forms.mmlu,
        "{}_test",
        "{}_dev",
    ),
    Group("blimp", "blimp/[!_]*.yaml", "blimp/_blimp.yaml", set_forms.blimp, "blimp.*/{}"),
)

KNOWN = (*(task.name for task in TASKS), *(group.name for group in GROUPS))


@dataclass
class Prepared:
    """What a task was made of."""

    items: int
    files: list[str]
    examples: int = 0
    data_sha256: str = ""
    parts: int = 0
    """tasks of a group"""
    missing: list[str] = field(default_factory=list)
    """tasks of a group without data; the group is then written without them"""


def prepare_tasks(source_dir: Path, output_dir: Path, names: Iterable[str] = ()) -> dict[str, Prepared]:
    """Write the folder of every task whose data lies below `source_dir`.

    Args:
        names: tasks that must be there; none: all that are.

    Raises:
        UserError: an unknown task, no data for a task that was named or for any, a record of no known form.
    """
    names = list(names)
    for name in names:
        if name not in KNOWN:
            raise UserError(f"tasks: {name!r} is not one of {', '.join(KNOWN)}{nearest(name, set(KNOWN))}")
    files = find_files(source_dir)
    done: dict[str, Prepared] = {}
    for task in TASKS:
        if names and task.name not in names:
            continue
        test = first_match(files, task.test)
        if test is not None:
            done[task.name] = write_task(task, test, first_match(files, task.train), output_dir)
    for group in GROUPS:
        if not names or group.name in names:
            made = write_group(group, files, output_dir)
            if made is not None:
                done[group.name] = made
    for name in names:
        if name not in done:
            raise UserError(f"{source_dir}: no file of {name} there; docs/evaluation.md names the files it is known by")
    if not done:
        raise UserError(f"{source_dir}: no file of {', '.join(KNOWN)} there")
    report = {"lm_eval": lm_eval.__version__, "tasks": {name: vars(made) for name, made in done.items()}}
    write_text(output_dir / PREPARED, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return done


def find_files(folder: Path) -> dict[str, Path]:
    """Path below the folder, in small letters and without the kind of file → the file.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"source_dir {folder}: no such folder")
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and plain_suffix(str(file)) in SUFFIXES:
            end = "".join(s for s in file.suffixes[-2:] if s in (*SUFFIXES, ".gz", ".zst"))
            found[str(file.relative_to(folder)).lower().removesuffix(end.lower())] = file
    return found


def first_match(files: dict[str, Path], patterns: Iterable[str]) -> Path | None:
    for pattern in patterns:
        # An original has its set's name anywhere in the path, so a pattern fits from any folder or word on.
        fit = re.compile(rf"(.*[/_.-])?{pattern}")
        for name, file in files.items():
            if fit.fullmatch(name):
                return file
    return None


# ---------------------------------------------------------------------------------------------------------
# One task, and a group of them
# ---------------------------------------------------------------------------------------------------------


def write_task(task: TaskFiles, test: Path, train: Path | None, output_dir: Path) -> Prepared:
    made = write_data(task.name, task.form, test, train, output_dir, task.labels)
    write_definition(task.name, task.definition, made, output_dir)
    return made


def write_group(group: Group, files: dict[str, Path], output_dir: Path) -> Prepared | None:
    """A group's tasks that have data, and the groups themselves without the others."""
    tasks = {}
    for path in sorted(OFFICIAL.glob(group.definitions)):
        values = load_yaml(path, resolve_func=False)
        tasks[values["task"]] = (path, values)
    found, missing = {}, []
    for name, (path, values) in tasks.items():
        subject = re.escape(values["dataset_name"].lower())
        test = first_match(files, [group.test.format(subject)])
        if test is None:
            missing.append(name)
            continue
        train = first_match(files, [group.train.format(subject)]) if group.train else None
        found[name] = write_data(name, group.form, test, train, output_dir)
        write_definition(name, str(path.relative_to(OFFICIAL)), found[name], output_dir)
    if not found:
        return None
    write_groups(group, {tag for name in found for tag in (name, tasks[name][1].get("tag"))}, output_dir)
    return Prepared(
        sum(made.items for made in found.values()),
        [file for made in found.values() for file in made.files],
        sum(made.examples for made in found.values()),
        parts=len(found),
        missing=missing,
    )


def write_groups(group: Group, there: set[str], output_dir: Path) -> None:
    """lm-eval's groups with those parts (tasks, tags, groups) that are there; one without any is not written."""
    left = {values["group"]: values for path in OFFICIAL.glob(group.groups) for values in [load_yaml(path)]}
    while ready := [name for name, values in left.items() if not set(left) & set(values["task"])]:
        for name in sorted(ready):
            values = left.pop(name)
            values["task"] = [part for part in values["task"] if part in there]
            if values["task"]:
                there.add(name)
                write_text(output_dir / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


def write_definition(name: str, definition: str, made: Prepared, output_dir: Path) -> None:
    """The task's YAML: lm-eval's own, with local data in the place of the Hub's."""
    official = OFFICIAL / definition
    if not official.is_file():
        raise UserError(f"lm-eval {lm_eval.__version__} has no {official}; install the version of constraints.txt")
    folder = (output_dir / "data" / name).resolve()
    data = {"test": str(folder / "test.jsonl")}
    if made.examples:
        data["train"] = str(folder / "train.jsonl")
    values = {
        "include": str(official),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data},
        # All items are the test split: lm-eval keeps an item out of its own prompt only there.
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if made.examples else None,
        "fewshot_split": "train" if made.examples else "test",
    }
    write_text(output_dir / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


def write_data(
    name: str, form: set_forms.Form, test: Path, train: Path | None, output_dir: Path, labels: str | None = None
) -> Prepared:
    """The items, and the examples for prompts where there are any."""
    folder = output_dir / "data" / name
    shutil.rmtree(folder, ignore_errors=True)
    items = write_records(name, form, test, folder / "test.jsonl", labels)
    examples = write_records(name, form, train, folder / "train.jsonl", labels) if train else 0
    files = [str(file) for file in (test, train) if file]
    return Prepared(items, files, examples, file_sha256(folder / "test.jsonl"))


def write_records(name: str, form: set_forms.Form, file: Path, target: Path, labels: str | None) -> int:
    """The records of a file in the task's columns; how many.

    Raises:
        UserError: a record of no known form, by file and number.
    """
    records = read_labelled(file, labels)
    lines = []
    for number, record in enumerate(records, 1):
        try:
            lines.append(json.dumps(form(record), ensure_ascii=False) + "\n")
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{file}, record {number}: no form of {name} that is known ({type(error).__name__}: {error}); "
                "docs/evaluation.md shows them"
            ) from None
    if not lines:
        raise UserError(f"{file}: no records")
    write_text(target, "".join(lines))
    return len(lines)


def read_labelled(file: Path, labels: str | None) -> list[Any]:
    """Records; those of a CSV with a header as objects; with the labels of the file beside it, where there is one.

    Raises:
        UserError: another number of labels than of records.
    """
    suffix = plain_suffix(str(file))
    if suffix == ".csv" and has_header(file):
        with open_binary(str(file)) as binary:
            records = list(csv.DictReader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")))
    else:
        records = list(read_records(str(file)))
    beside = file.with_name(re.sub(r"\.jsonl?(\.gz|\.zst)?$", "", file.name) + labels) if labels else None
    if beside is None or not beside.is_file() or (records and "label" in records[0]):
        return records
    values = beside.read_text(encoding="utf-8").split()
    if len(values) != len(records):
        raise UserError(f"{beside}: {len(values)} labels for the {len(records)} records of {file.name}")
    return [{**record, "label": label} for record, label in zip(records, values, strict=True)]


def has_header(file: Path) -> bool:
    """Whether a CSV's first row names columns of a form that is known (MMLU's files have none)."""
    first = next(iter(read_records(str(file))), [])
    return bool({"Question", "question"} & set(first))
