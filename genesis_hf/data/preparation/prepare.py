"""Preparing tokens: every text source of a pretraining recipe into a folder of token shards (`prepared.py` reads them).

DIR/NAME/pieces/    while it is under way: the plan, and what is finished of each part (`pieces.py`)
DIR/NAME/           token shards; index.json last of all, when `pieces/` goes
DIR/pretrain.yaml   the recipe with `prepared: DIR/NAME` in its sources
"""

import dataclasses
import glob
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe, Source, check_positive, recipe_yaml, setting, write_text
from genesis_hf.data.preparation.pieces import (
    Counts,
    HashedFile,
    Part,
    Rules,
    add_counts,
    finished_pieces,
    hub_shards,
    json_lines,
)
from genesis_hf.data.preparation.pool import run_parts
from genesis_hf.data.prepared import FORMAT, PreparedTokens, selection_record, tokenizer_sha256
from genesis_hf.data.readers import expand, open_source
from genesis_hf.data.selection import recipe_selection
from genesis_hf.errors import UserError
from genesis_hf.files import read_json, sync_folder
from genesis_hf.stages import only_one
from genesis_hf.tokenizer import load_tokenizer

TEXT_BYTES = {".gz": 3, ".zst": 3, ".parquet": 2}
"""Bytes of text in a byte of a file of such a name, else 1: a guess for the time left, until a part is finished."""
HUB_SHARD_BYTES = 2**29
"""The same guess of a Hub dataset's shard."""

JOINED = ("ends.bin", "hashes.bin", "held_out.jsonl", "bad_records.jsonl")
"""What index.json names beside the shards."""


@dataclass
class PrepareSettings:
    """What `scripts/prepare_data.py` takes beside a pretraining recipe."""

    prepared_dir: str = setting(help="folder to write the sources' token shards to")
    num_proc: int | None = setting(None, "worker processes; null: one for each core")
    task_index: int | None = setting(None, "of a task array: do input files i, i + num_tasks … and no index")
    num_tasks: int | None = setting(None, "tasks in the array")
    shard_tokens: int = setting(2**27, "tokens in a shard; also what a restart may have to do again")
    group_bytes: int = setting(2**24, "smaller input files are taken together, up to this size")
    verify: bool = setting(False, "prepare nothing: hash every file of the shards again")

    def __post_init__(self) -> None:
        for name in ("shard_tokens", "group_bytes"):
            check_positive(self, name)
        for name in ("num_proc", "num_tasks"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if (self.task_index is None) != (self.num_tasks is None):
            raise UserError("a task array needs both task_index and num_tasks")
        if self.task_index is not None and not 0 <= self.task_index < self.num_tasks:
            raise UserError(f"task_index must lie between 0 and {self.num_tasks - 1}, not {self.task_index}")


@dataclass
class PreparedSource:
    """A source on its way into token shards.

    Attributes:
        folder: of its token shards.
        plan: what must not change until they are finished; index.json begins with it.
        parts: what there is to do; empty once index.json is written.
    """

    source: Source
    folder: Path
    plan: dict[str, Any]
    parts: list[Part]


def prepare(recipe: PretrainRecipe, settings: PrepareSettings) -> dict[str, Counts]:
    """Tokenise a recipe's text sources, or go on where an earlier call was stopped.

    Returns:
        the counts of each source; nothing for one task of an array, which writes no index.

    Raises:
        UserError: unreadable input, more than `max_bad_records` bad records, or a folder that was begun with another
            tokenizer, selection, source or shard size.
    """
    # Tasks of an array work side by side; a call that writes the indexes, and removes the pieces, works alone.
    alone = only_one(settings.prepared_dir) if settings.task_index is None else nullcontext()
    with alone:
        return tokenise_sources(recipe, settings)


def tokenise_sources(recipe: PretrainRecipe, settings: PrepareSettings) -> dict[str, Counts]:
    tokenizer = load_tokenizer(recipe.tokenizer)
    selection = recipe_selection(recipe)
    rules = Rules(selection, token_dtype(tokenizer), settings.shard_tokens, recipe.max_bad_records)
    sources = [open_prepared(s, settings, tokenizer, rules) for s in recipe.sources if s.prepared is None]

    parts = [part for source in sources for part in source.parts]
    if settings.task_index is not None:
        parts = parts[settings.task_index :: settings.num_tasks]
    run_parts(parts, rules, recipe.tokenizer, settings.num_proc or len(os.sched_getaffinity(0)))
    if settings.task_index is not None:
        return {}

    for source in sources:
        if source.parts:
            write_index(source)
        shutil.rmtree(source.folder / "pieces", ignore_errors=True)
    write_text(Path(settings.prepared_dir) / "pretrain.yaml", recipe_yaml(with_prepared(recipe, settings)))
    return {source.source.name: read_json(source.folder / "index.json")["totals"] for source in sources}


def verify(recipe: PretrainRecipe, settings: PrepareSettings) -> None:
    """Hash every file of a recipe's token shards.

    Raises:
        UserError: a file that is not what its index.json says.
    """
    problems = []
    for source in with_prepared(recipe, settings).sources:
        problems += PreparedTokens(source.prepared).verify()
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; restore it, or remove its folder and prepare the source again")


def with_prepared(recipe: PretrainRecipe, settings: PrepareSettings) -> PretrainRecipe:
    """The recipe that trains on what `prepare` wrote."""
    kept = ("name", "weight", "max_documents", "max_tokens", "max_epochs")
    sources = [
        source
        if source.prepared is not None
        else Source(**{key: getattr(source, key) for key in kept}, prepared=str(source_folder(source, settings)))
        for source in recipe.sources
    ]
    return dataclasses.replace(recipe, sources=sources)


def token_dtype(tokenizer: PreTrainedTokenizerFast) -> str:
    """uint16 where every id of the vocabulary fits, else uint32.

    Raises:
        UserError: no EOS in the vocabulary, which ends each document.
    """
    ids = set(tokenizer.get_vocab().values())
    if tokenizer.eos_token_id not in ids:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no EOS token to end a document with")
    return "uint16" if max(ids) < 2**16 else "uint32"


# ---------------------------------------------------------------------------------------------------------
# What there is to do
# ---------------------------------------------------------------------------------------------------------


def source_folder(source: Source, settings: PrepareSettings) -> Path:
    if Path(source.name).name != source.name or source.name.startswith("."):
        raise UserError(f"source {source.name!r}: its name becomes a folder's; write one without slashes")
    return Path(settings.prepared_dir) / source.name


def open_prepared(
    source: Source,
    settings: PrepareSettings,
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
) -> PreparedSource:
    """A source's folder with its plan and parts.

    Raises:
        UserError: the folder was begun, or finished, with something else.
    """
    folder = source_folder(source, settings)
    plan = {
        "format": FORMAT,
        "dtype": rules.dtype,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "selection": selection_record(rules.selection),
        "source": source_record(source),
        "shard_tokens": settings.shard_tokens,
        "group_bytes": settings.group_bytes,
    }
    plan = json.loads(json.dumps(plan, default=str))  # as it will be read back
    finished = read_json(folder / "index.json")
    begun = finished or read_json(folder / "pieces" / "plan.json")
    refuse_other_plan(begun, plan, folder)
    # Every part, on every machine, reads the commit of the Hub dataset that the first call met.
    plan["paths"] = source.paths
    plan["hub"] = begun["hub"] if begun else (hub_shards(source) if source.dataset is not None else None)
    if plan["hub"]:
        source = dataclasses.replace(source, revision=plan["hub"]["commit"])
    if finished:
        if finished["fingerprint"] != open_source(source).fingerprint():
            raise UserError(
                f"source {source.name!r}: its files have changed since {folder} was finished; restore them, or remove "
                f"{folder} to prepare the source afresh"
            )
        return PreparedSource(source, folder, plan, [])
    if not begun:
        write_text(folder / "pieces" / "plan.json", json.dumps(plan, indent=1) + "\n")
    return PreparedSource(source, folder, plan, list_parts(source, folder, plan, settings.group_bytes))


def source_record(source: Source) -> dict[str, Any]:
    """What of a source decides on its documents, beside the content of its files."""
    keys = ("dataset", "config", "data_dir", "split", "revision", "text_column", "text_template", "filters")
    return {key: getattr(source, key) for key in (*keys, "max_documents", "max_tokens")}


def refuse_other_plan(begun: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    """Raise `UserError` naming the first thing in which a folder's plan differs from the recipe's."""
    for key, now in plan.items():
        if not begun or begun.get(key) == now:
            continue
        then = begun.get(key)
        if isinstance(then, dict):
            key, then, now = next((f"{key}.{k}", then.get(k), v) for k, v in now.items() if then.get(k) != v)
        raise UserError(
            f"{folder} was begun with {key} = {json.dumps(then)}, which now is {json.dumps(now)}; restore it, remove "
            f"{folder}, or choose another --prepared_dir"
        )


def list_parts(source: Source, folder: Path, plan: dict[str, Any], group_bytes: int) -> list[Part]:
    """A part for each input file, run of files smaller than `group_bytes`, or Hub shard."""
    if plan["hub"]:
        shards = plan["hub"]["shards"]
        return [Part(source, folder, number, HUB_SHARD_BYTES, shards) for number in range(shards)]
    groups: list[list[str]] = []
    size = group_bytes
    for path in expand(source):
        if size + os.path.getsize(path) > group_bytes:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += os.path.getsize(path)
    return [
        Part(
            dataclasses.replace(source, paths=[glob.escape(path) for path in group]),
            folder,
            number,
            sum(os.path.getsize(path) * TEXT_BYTES.get(Path(path).suffix, 1) for path in group),
        )
        for number, group in enumerate(groups)
    ]


# ---------------------------------------------------------------------------------------------------------
# The index
# ---------------------------------------------------------------------------------------------------------


def write_index(source: PreparedSource) -> None:
    """Join what the pieces hold beside their tokens, and write index.json, which makes the folder count.

    Raises:
        UserError: nothing to train on in it.
    """
    folder = source.folder
    joined = {name: HashedFile(folder, name) for name in JOINED}
    ends, hashes, held_out, bad_records = joined.values()
    shards, counts = [], add_counts([])
    for part in source.parts:
        for number, piece in enumerate(finished_pieces(part)):
            name = part.name(number)
            lengths, values = np.fromfile(folder / f"pieces/{name}.documents", "<u8").reshape(2, -1)
            ends.write((np.cumsum(lengths, dtype="<u8") + np.uint64(counts["tokens"])).tobytes())
            hashes.write(values.tobytes())
            held_out.write((folder / f"pieces/{name}.held_out.jsonl").read_bytes())
            bad_records.write(json_lines(piece["bad"]))
            counts = add_counts([counts, piece["counts"]])
            if piece["counts"]["tokens"]:
                figures = {key: piece["counts"][key] for key in ("tokens", "documents")}
                shards.append({"file": f"{name}.bin", **figures, **piece["files"][f"{name}.bin"]})
    if not counts["documents"]:
        raise UserError(f"source {source.source.name!r}: it holds no document to train on; see {folder}/pieces")
    named = {shard["file"] for shard in shards}
    for path in folder.glob("[0-9]*.bin"):  # of empty pieces, and of parts that are no more
        if path.name not in named:
            path.unlink()
    index = {
        **source.plan,
        "fingerprint": open_source(source.source).fingerprint(),
        "shards": shards,
        "files": {name: file.finish() for name, file in joined.items()},
        "totals": counts,
    }
    write_text(folder / "index.json", json.dumps(index, indent=1) + "\n")
    sync_folder(folder)  # the pieces go only when the index is safe
