"""Evaluation items and held-out documents found again in the training sources, by their n-grams.

A training document is contaminated by an evaluation item when it holds at least `min_overlap` of the item's n-grams
(or all of them, where there are fewer), and is a near-duplicate of a held-out document when it holds at least
`near_duplicate_share` of that document's n-grams.
"""

import dataclasses
import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genesis_hf.config import PretrainRecipe, Source, setting, write_text
from genesis_hf.data.contamination.evaluation_sets import find_sets, read_items
from genesis_hf.data.contamination.ngrams import NgramIndex
from genesis_hf.data.contamination.scan import Job, Targets, Unit, run_units
from genesis_hf.data.readers import expand, plain_suffix, read_documents
from genesis_hf.data.selection import Selection, document_hash, read_hashes
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items, read_json

MAX_EXAMPLES = 5
COUNTED = ("train", "bytes", "held_out", "excluded", "empty", "filtered", "bad")


@dataclass
class DecontaminateSettings:
    """`scripts/decontaminate.py`, beside the keys of a pretraining recipe."""

    evaluation_sets: list[str] | dict[str, list[str]] = setting(
        help="folders and globs of .jsonl .json .csv .tsv .txt .parquet (.gz, .zst), or a mapping of names to them"
    )
    decontamination_dir: str = setting(help="folder to write the report to")
    ngram: int = setting(13, "words in an n-gram")
    min_words: int = setting(8, "words that a text shorter than an n-gram needs to be looked for as a whole")
    min_overlap: int = setting(1, "n-grams of an evaluation item that make a document contaminated")
    near_duplicate_share: float = setting(
        0.5, "share of a held-out document's n-grams that makes a document its near-duplicate"
    )
    max_items_per_ngram: int = setting(20, "an n-gram of more items is boilerplate and not looked for")
    remove: bool = setting(False, "write excluded_documents.txt, for the recipe's exclude_documents")
    num_proc: int | None = setting(None, "processes; null: the cores at hand")

    def __post_init__(self) -> None:
        for name in ("ngram", "min_words", "min_overlap", "max_items_per_ngram"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.near_duplicate_share <= 1:
            raise UserError(f"near_duplicate_share must lie above 0 and up to 1, not {self.near_duplicate_share}")
        if self.num_proc is not None and self.num_proc < 1:
            raise UserError(f"num_proc must be at least 1, not {self.num_proc}")


@dataclass
class ItemSet:
    """An evaluation set or held-out documents.

    Attributes:
        places: file and record of each item.
        first: number of its first item in the index.
    """

    name: str
    kind: Literal["evaluation", "held_out"]
    places: list[str]
    first: int


# ---------------------------------------------------------------------------------------------------------
# The whole of it
# ---------------------------------------------------------------------------------------------------------


def decontaminate(settings: DecontaminateSettings, recipe: PretrainRecipe) -> tuple[list[ItemSet], Targets, list[Unit]]:
    """Scan every training source; the results lie in each unit's `kept` file.

    A source is read once, and once more beforehand where `held_out_share` is above 0. The same call goes on where an
    earlier one stopped.

    Raises:
        UserError: an input that can't be read, nothing to scan.
    """
    folder = Path(settings.decontamination_dir)
    num_proc = settings.num_proc or len(os.sched_getaffinity(0))
    selection = Selection(recipe.held_out_share, read_hashes(recipe.exclude_documents))
    units = list_units(recipe.sources, folder / "scan")
    sets: list[ItemSet] = []
    texts: list[list[str]] = []

    def add(name: str, kind: Literal["evaluation", "held_out"], items: Sequence[tuple[str, list[str]]]) -> None:
        sets.append(ItemSet(name, kind, [place for place, _ in items], len(texts)))
        texts.extend(item for _, item in items)

    found, aside = find_sets(settings.evaluation_sets)
    if aside:
        print(f"left aside, no evaluation items: {', '.join(aside)}")
    for evaluation_set in found:
        add(evaluation_set.name, "evaluation", list(read_items(evaluation_set)))
    first_held_out = len(texts)
    for source in recipe.eval_sources:
        if source.paths is None:
            print(f"eval_sources: {source.name!r} is no local text and is not looked for")
        else:
            documents = enumerate(read_documents(source), 1)
            add(source.name, "held_out", [(f"{source.name}, document {n}", [text]) for n, text in documents])
    identical = {document_hash(text): first_held_out + i for i, [text] in enumerate(texts[first_held_out:])}
    if recipe.held_out_share:
        job = Job(selection, None)
        held_out_units = [dataclasses.replace(unit, kept=unit.kept.with_suffix(".held_out")) for unit in units]
        run_units(held_out_units, job, num_proc, "reading the documents held out")
        for name in dict.fromkeys(unit.source.name for unit in units):
            kept = [(u.place, read_json(u.kept)["found"]) for u in held_out_units if u.source.name == name]
            items = [(f"{place}, document {n}", [text]) for place, pairs in kept for n, text in pairs]
            add(f"held out of {name}", "held_out", items)

    targets = build_targets(settings, sets, texts, identical)
    run_units(units, Job(selection, targets), num_proc, "scanning")
    return sets, targets, units


def build_targets(
    settings: DecontaminateSettings, sets: list[ItemSet], texts: list[list[str]], identical: dict[int, int]
) -> Targets:
    """The index of all items, saved for the processes to share."""
    index = NgramIndex.build(texts, settings.ngram, settings.min_words, settings.max_items_per_ngram)
    needed = np.minimum(settings.min_overlap, index.totals)
    for item_set in sets:
        if item_set.kind == "held_out":
            part = slice(item_set.first, item_set.first + len(item_set.places))
            needed[part] = np.ceil(settings.near_duplicate_share * index.totals[part])
    folder = Path(settings.decontamination_dir) / "index"
    index.save(folder)
    digest = hash_items([index.digest(), needed.tolist(), sorted(identical.items())])
    return Targets(folder, np.array([item_set.first for item_set in sets]), needed, identical, digest)


def list_units(sources: list[Source], folder: Path) -> list[Unit]:
    """Every file, or Hub dataset, of the sources that hold text.

    Raises:
        UserError: no source does.
    """
    units = []
    for source in sources:
        if source.prepared is not None:
            print(f"source {source.name!r} is prepared tokens, which hold no text: scan the recipe they were made from")
        elif source.dataset is not None:
            place = f"dataset {source.dataset}"
            units.append(Unit(source, place, folder / f"{hash_items([source.name, place])[:16]}.json", 0))
        else:
            for file in expand(source):
                compressed = plain_suffix(file) == ".parquet" or plain_suffix(file) != Path(file).suffix
                expected = os.path.getsize(file) * (3 if compressed else 1)
                alone = dataclasses.replace(source, paths=[glob.escape(file)])
                kept = folder / f"{hash_items([source.name, file])[:16]}.json"
                units.append(Unit(alone, file, kept, expected))
    if not units:
        raise UserError("no source holds text to scan")
    return units


# ---------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------


def build_report(
    settings: DecontaminateSettings, sets: list[ItemSet], targets: Targets, units: list[Unit]
) -> dict[str, Any]:
    """What was found, by training source and by set. It depends on the data and settings alone."""
    sources: dict[str, Counter[str]] = {unit.source.name: Counter() for unit in units}
    documents_of: Counter[int] = Counter()
    identical_to: Counter[int] = Counter()
    ngrams_of: dict[int, set[int]] = defaultdict(set)
    examples: dict[int, list[dict[str, Any]]] = defaultdict(list)
    bad_records: list[str] = []
    totals = targets.index.totals
    for unit, state in results(units):
        counts = sources[unit.source.name]
        counts.update(
            {key: state[key] for key in ("train", "bytes", "held_out", "excluded", "empty", "filtered", "bad")}
        )
        bad_records += state["bad_records"]
        for finding in state["found"]:
            best: dict[int, tuple[int, int]] = {}
            for item, ngrams in finding["items"]:
                number = targets.set_of(item)
                best[number] = max(best.get(number, (0, 0)), (len(ngrams), -item))
                ngrams_of[item].update(ngrams)
            kinds = {sets[number].kind for number in best}
            same = finding["identical"] is not None
            counts["contaminated"] += "evaluation" in kinds
            counts["identical"] += same
            counts["near_duplicates"] += "held_out" in kinds and not same
            if same:
                identical_to[targets.set_of(finding["identical"])] += 1
            for number, (found, negative) in best.items():
                documents_of[number] += 1
                examples[number].append(
                    {
                        "document": f"{unit.place}, document {finding['document']}",
                        "item": place_of(sets[number], -negative),
                        "ngrams_found": found,
                        "ngrams": int(totals[-negative]),
                        "text": finding["excerpts"][str(number)],
                    }
                )
                examples[number].sort(key=lambda example: -example["ngrams_found"])
                del examples[number][MAX_EXAMPLES:]

    report: dict[str, Any] = {
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("num_proc", "remove")},
        "ngrams": len(targets.index.ngrams),
        "boilerplate_ngrams": int(targets.index.sizes[2]),
        "sources": [
            {"name": name, "documents": counts["train"], "bytes": counts["bytes"]}
            | {"contaminated": counts["contaminated"], "share": share(counts["contaminated"], counts["train"])}
            | {key: counts[key] for key in ("identical", "near_duplicates", "held_out", "excluded")}
            | {key: counts[key] for key in ("empty", "filtered", "bad")}
            for name, counts in sources.items()
        ],
        "evaluation_sets": [],
        "held_out": [],
        "bad_records": bad_records,
    }
    for number, item_set in enumerate(sets):
        items = range(item_set.first, item_set.first + len(item_set.places))
        touched = [item for item in items if item in ngrams_of]
        comparable = int(np.count_nonzero(totals[items.start : items.stop]))
        found = [len(ngrams_of[item]) / int(totals[item]) for item in touched]
        row = {
            "name": item_set.name,
            "items": len(items),
            "comparable": comparable,
            "touched": len(touched),
            "share": share(len(touched), comparable),
            "ngrams_found": sum(found) / len(found) if found else None,
            "documents": documents_of[number],
        }
        if item_set.kind == "held_out":
            row["identical"] = identical_to[number]
        row["examples"] = examples[number]
        report["evaluation_sets" if item_set.kind == "evaluation" else "held_out"].append(row)
    return report


def results(units: list[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Each unit with what was kept of it."""
    for unit in units:
        yield unit, read_json(unit.kept)


def place_of(item_set: ItemSet, item: int) -> str:
    return item_set.places[item - item_set.first]


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def report_table(report: dict[str, Any]) -> str:
    """The report's figures as text."""
    columns = {
        "sources": (
            "documents",
            "contaminated",
            "share",
            "identical",
            "near_duplicates",
            "held_out",
            "excluded",
            "bad",
        ),
        "evaluation_sets": ("items", "comparable", "touched", "share", "ngrams_found", "documents"),
        "held_out": ("items", "comparable", "touched", "share", "ngrams_found", "documents", "identical"),
    }
    lines = []
    for part, names in columns.items():
        rows = report[part]
        if not rows:
            continue
        width = max(len(part), *(len(row["name"]) for row in rows))
        lines.append(part.replace("_", " ").ljust(width) + "".join(f"{name.replace('_', ' '):>17}" for name in names))
        for row in rows:
            lines.append(row["name"].ljust(width) + "".join(f"{cell(name, row[name]):>17}" for name in names))
        lines.append("")
    if report["bad_records"]:
        lines.append(f"could not be read, for example: {report['bad_records'][0]}")
    return "\n".join(lines)


def cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if name in ("share", "ngrams_found") else f"{value:,}"


def write_excluded(
    settings: DecontaminateSettings, recipe: PretrainRecipe, sets: list[ItemSet], targets: Targets, units: list[Unit]
) -> list[str]:
    """Write `excluded_documents.txt`: a line for each contaminated, near-duplicate or identical document: its hash,
    the item it holds most of, and its source.

    Returns:
        what the recipe's `exclude_documents` has to be.
    """
    lines: dict[str, str] = {}
    for unit, state in results(units):
        for finding in state["found"]:
            items = [(len(ngrams), -item) for item, ngrams in finding["items"]]
            item = -max(items)[1] if items else finding["identical"]
            item_set = sets[targets.set_of(item)]
            remark = f"{item_set.name}: {place_of(item_set, item)}, in {unit.source.name}"
            lines.setdefault(finding["hash"], f"{finding['hash']}  {remark}\n")
    path = Path(settings.decontamination_dir) / "excluded_documents.txt"
    files = recipe.exclude_documents
    if any(Path(file).resolve() == path.resolve() for file in files):
        # What it names was left out this time, so it was not found again.
        write_text(path, path.read_text(encoding="utf-8") + "".join(lines.values()))
        return files
    write_text(path, "".join(lines.values()))
    return [*files, str(path)]
