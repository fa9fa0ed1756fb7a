"""Sources in the proportions that a recipe names, as one dataset, and what came of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import input_mark_of
from genesis_hf.config import ConversationSource
from genesis_hf.conversations.encoding import COLUMNS, EncodingSettings
from genesis_hf.conversations.prepared import EncodedSource, cache_folder
from genesis_hf.conversations.report import SourceReport
from genesis_hf.errors import UserError

EARLY = 1_000
"""Rows after which a source may be refused before it is read to its end."""


def prepare_conversations(
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[ConversationSource],
    max_length: int,
    recipe: Any,
    seed: int = 42,
) -> tuple[Dataset, list[SourceReport]]:
    """Conversations of a mixture, mapped from the cache: `input_ids` and `labels`, `length`, and the source's `row`.

    Args:
        recipe: holds the keys of `config.PreparationSettings`; `train_special_tokens` where it has that.

    Raises:
        UserError: an unreadable source, one with too few usable examples or too many malformed rows.
    """
    trained = getattr(recipe, "train_special_tokens", True)
    settings = EncodingSettings(max_length, recipe.overlong, input_mark_of(tokenizer), trained)
    return prepare("conversations", tokenizer, sources, settings, recipe, seed)


def prepare_preferences(
    tokenizer: PreTrainedTokenizerFast, sources: Sequence[ConversationSource], max_length: int, recipe: Any, seed: int
) -> tuple[Dataset, list[SourceReport]]:
    """As `prepare_conversations`, for pairs: `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    settings = EncodingSettings(max_length, "drop", input_mark_of(tokenizer))
    return prepare("preferences", tokenizer, sources, settings, recipe, seed)


def prepare_labelled(
    tokenizer: PreTrainedTokenizerFast, sources: Sequence[ConversationSource], max_length: int, recipe: Any, seed: int
) -> tuple[Dataset, list[SourceReport]]:
    """As `prepare_conversations`, for answers labelled good or bad: `prompt_ids`, `completion_ids` and `label`."""
    settings = EncodingSettings(max_length, "drop", input_mark_of(tokenizer))
    return prepare("labelled", tokenizer, sources, settings, recipe, seed)


def prepare(
    kind: str,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[ConversationSource],
    settings: EncodingSettings,
    recipe: Any,
    seed: int,
) -> tuple[Dataset, list[SourceReport]]:
    """The examples drawn of each source, one source after the other, and a report of each."""
    encoded = open_sources(kind, tokenizer, sources, settings, recipe, seed)
    drawn = draw(encoded, recipe.drop_duplicates, recipe.max_bad_share)
    reports = [report_source(source, examples, recipe) for source, examples in zip(encoded, drawn, strict=True)]
    names = [*COLUMNS[kind], "length", "row"]
    tables, chosen, start = [], [], 0
    for source, (examples, _) in zip(encoded, drawn, strict=True):
        chosen.append(start + examples)
        tables += [Dataset(table.select(names)) for table in source.tables]
        start += sum(len(table) for table in source.tables)
    return concatenate_datasets(tables).select(np.concatenate(chosen)), reports


def open_sources(
    kind: str,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[ConversationSource],
    settings: EncodingSettings,
    recipe: Any,
    seed: int,
) -> list[EncodedSource]:
    """The cache's folder of each source, with as many pieces as there are."""
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise UserError(f"the mixture holds a name twice: {', '.join(names)}")
    cache = cache_folder(recipe.cache_dir)
    return [EncodedSource(kind, source, tokenizer, settings, seed, cache) for source in sources]


# ---------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------


def draw(sources: Sequence[EncodedSource], drop_duplicates: bool, max_bad_share: float) -> list[tuple[np.ndarray, int]]:
    """Which examples of each source are used, and how many of its rows were looked at for them.

    `num_examples` takes the first so many in the drawing order, encoding no more of the source than that needs;
    weighted sources give as many as their proportions allow. None is used twice, also where two sources share it.

    Raises:
        UserError: fewer usable examples than `num_examples`; more malformed rows than `max_bad_share`.
    """
    seen = np.empty(0, dtype=np.uint64)
    usable = []
    for encoded in sources:
        asked = encoded.source.num_examples
        fresh = extend_until(encoded, asked, seen if drop_duplicates else None, max_bad_share)
        if asked is not None and len(fresh) < asked:
            raise UserError(
                f"source {encoded.source.name!r}: num_examples is {asked:,}, but of its {encoded.num_rows:,} rows "
                f"only {len(fresh):,} are usable and new; ask for fewer, or leave the key out to take all"
            )
        usable.append(fresh[:asked])
        if drop_duplicates:
            seen = np.union1d(seen, encoded.column("hash")[usable[-1]])
    weights = [encoded.source.weight for encoded in sources]
    unit = min((len(examples) / w for examples, w in zip(usable, weights, strict=True) if w is not None), default=0)
    drawn = []
    for encoded, examples, weight in zip(sources, usable, weights, strict=True):
        if weight is not None:
            examples = examples[: int(unit * weight + 1e-9)]
        partial = encoded.source.num_examples is not None or weight is not None
        looked_at = int(encoded.column("position")[examples[-1]]) + 1 if partial and len(examples) else encoded.num_rows
        drawn.append((examples, looked_at))
    return drawn


def extend_until(
    encoded: EncodedSource, asked: int | None, seen: np.ndarray | None, max_bad_share: float
) -> np.ndarray:
    """The usable examples in drawing order, encoding pieces until there are as many as asked for; None: all."""
    with tqdm(
        total=encoded.num_rows, initial=encoded.num_encoded, desc=f"encoding {encoded.source.name}", unit="row",
        disable=True if encoded.exhausted else None,
    ) as progress:  # fmt: skip
        while True:
            fresh = new_examples(encoded.column("hash"), seen)
            refuse_malformed(encoded, max_bad_share, encoded.exhausted)
            if encoded.exhausted or (asked is not None and len(fresh) >= asked):
                return fresh
            encoded.extend(progress)


def new_examples(hashes: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """The examples in order that stand neither in `seen` nor before in these; None: all."""
    if seen is None:
        return np.arange(len(hashes))
    _, first = np.unique(hashes, return_index=True)
    first = np.sort(first)
    return first[~np.isin(hashes[first], seen)]


def refuse_malformed(encoded: EncodedSource, max_bad_share: float, at_its_end: bool) -> None:
    """Raise `UserError` where more of the rows are malformed than the recipe allows."""
    if encoded.num_encoded < EARLY and not at_its_end:
        return
    malformed = [drop for drop in encoded.dropped() if drop[2]]
    if len(malformed) > max_bad_share * encoded.num_encoded:
        kinds: dict[str, list[str]] = {}
        for _, reason, _, where in malformed:
            kinds.setdefault(reason, []).append(where)
        listed = ", ".join(f"{len(places):,} {reason} (first: {places[0]})" for reason, places in kinds.items())
        raise UserError(
            f"source {encoded.source.name!r}: {len(malformed):,} of {encoded.num_encoded:,} rows are malformed, more "
            f"than max_bad_share {max_bad_share:g} allows: {listed}"
        )


def report_source(encoded: EncodedSource, drawn: tuple[np.ndarray, int], recipe: Any) -> SourceReport:
    """What a source came to, of the rows that were looked at."""
    examples, looked_at = drawn
    cut = encoded.column("cut")[examples]
    report = SourceReport(
        encoded.source.name,
        rows=looked_at,
        examples=len(examples),
        tokens=int(encoded.column("tokens")[examples].sum()),
        trained_tokens=int(encoded.column("trained")[examples].sum()),
        cut=int((cut > 0).sum()),
        cut_tokens=int(cut.sum()),
    )
    for position, reason, _, where in encoded.dropped():
        if position < looked_at:
            report.drop(reason, where)
    duplicates = int((encoded.column("position") < looked_at).sum()) - len(examples)
    if duplicates and recipe.drop_duplicates:
        report.dropped["duplicate"] = duplicates
    if not len(examples):
        reason = "; ".join(f"{where}: {kind}" for kind, where in report.faults.items()) or "all are duplicates"
        raise UserError(f"source {encoded.source.name!r}: none of its {looked_at:,} rows is usable ({reason})")
    return report


def source_of(
    sources: Sequence[ConversationSource], reports: Sequence[SourceReport], number: int
) -> ConversationSource:
    """The source of an example of a prepared mixture; the example's `row` is its number there."""
    ends = np.cumsum([report.examples for report in reports])
    return sources[int(np.searchsorted(ends, number, side="right"))]
