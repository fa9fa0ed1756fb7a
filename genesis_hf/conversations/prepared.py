"""Sources encoded once: pieces of a cache on disk, which later runs map into memory.

    CACHE/conversations/NAME-HASH/    HASH covers source, files, tokenizer, template, settings, seed and our own code
        source.json                   what it is, for people; the number of rows
        piece-00000.arrow             the usable ones of the first PIECE rows in the order of drawing

A piece is complete or absent, so that an interrupted preparation goes on where it was; a recipe that asks for more
examples of a source encodes only what is missing.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

import genesis_hf.chat
import genesis_hf.chat_turns
from genesis_hf import conversations, files
from genesis_hf.config import ConversationSource, write_text
from genesis_hf.conversations.encoding import COLUMNS, ENCODERS, EncodingSettings, example_hashes
from genesis_hf.conversations.rows import Rows, read_rows, row_or_fault, rows_fingerprint
from genesis_hf.data.prepared import tokenizer_sha256
from genesis_hf.files import file_sha256, hash_items, read_json

PIECE = 5_000
"""Rows encoded together and lost at most by an interruption."""

BATCH = 1_000
"""Rows whose texts are tokenised in one call."""


def cache_folder(cache_dir: str | None) -> Path:
    """Where encoded rows are kept: the folder given, $GENESIS_HF_CACHE, or ~/.cache/genesis_hf."""
    return Path(cache_dir).expanduser() if cache_dir else files.cache_folder()


@functools.cache
def code_sha256() -> str:
    """sha256 of the code that turns rows into ids: other code, other pieces."""
    modules = (genesis_hf.chat, genesis_hf.chat_turns)
    files = [*(Path(module.__file__) for module in modules), *sorted(Path(conversations.__file__).parent.glob("*.py"))]
    return hash_items([(path.name, file_sha256(path)) for path in files])


class EncodedSource:
    """The usable examples of a source in the order in which they are drawn, as far as anybody asked for them."""

    def __init__(
        self,
        kind: str,
        source: ConversationSource,
        tokenizer: PreTrainedTokenizerFast,
        settings: EncodingSettings,
        seed: int,
        cache: Path,
    ) -> None:
        self.kind, self.source, self.tokenizer, self.settings, self.seed = kind, source, tokenizer, settings, seed
        what = {
            "source": {k: v for k, v in vars(source).items() if k not in ("num_examples", "weight")},
            "rows": rows_fingerprint(source),
            "tokenizer": tokenizer_sha256(tokenizer),
            "template": tokenizer.chat_template,
            "tokens": [tokenizer.eos_token, tokenizer.bos_token],
            "settings": vars(settings),
            "seed": seed,
        }
        code = {"code": code_sha256(), "piece": PIECE}
        name = re.sub(r"[^\w.-]", "_", source.name)[:60]
        self.folder = cache / kind / f"{name}-{hash_items([what, code])[:16]}"
        self.tables: list[pa.Table] = []
        while (table := read_piece(self.folder, len(self.tables))) is not None:
            self.tables.append(table)
        described = read_json(self.folder / "source.json")
        if "num_rows" not in described:
            described = {"num_rows": len(self.rows), **what}
            write_text(self.folder / "source.json", json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        self.num_rows: int = described["num_rows"]

    @functools.cached_property
    def rows(self) -> Rows:
        """The source's rows in their own order; read only where something has to be encoded."""
        return read_rows(self.source)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """(rows,) the row at each position of the drawing order; numpy promises this stream for all its versions."""
        digest = hash_items([self.seed, self.source.name])
        return np.random.RandomState(int(digest[:8], 16)).permutation(self.num_rows)

    @property
    def num_encoded(self) -> int:
        """Rows in the pieces so far."""
        return min(len(self.tables) * PIECE, self.num_rows)

    @property
    def exhausted(self) -> bool:
        """Whether every row stands in a piece."""
        return self.num_encoded == self.num_rows

    def extend(self, progress: tqdm) -> None:
        """Encode one more piece."""
        start = self.num_encoded
        positions = range(start, min(start + PIECE, self.num_rows))
        columns: dict[str, list[Any]] = {}
        dropped: list[list[Any]] = []
        for first in range(positions.start, positions.stop, BATCH):
            numbers = self.order[first : min(first + BATCH, positions.stop)].tolist()
            batch = [row_or_fault(self.rows, number) for number in numbers]
            part = ENCODERS[self.kind](self.tokenizer, self.source, self.settings, batch)
            part.columns["position"] = [first + position for position in part.columns["position"]]
            for name, column in part.columns.items():
                columns.setdefault(name, []).extend(column)
            dropped += [[first + at, *rest, self.rows.where(numbers[at])] for at, *rest in part.dropped]
            progress.update(len(batch))
        write_piece(self.folder, len(self.tables), piece_table(columns, dropped, self.order, COLUMNS[self.kind]))
        self.tables.append(read_piece(self.folder, len(self.tables)))

    def column(self, name: str) -> np.ndarray:
        """(examples,) of all pieces."""
        columns = [table.column(name).to_numpy() for table in self.tables]
        return np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)

    def dropped(self) -> list[tuple[int, str, bool, str]]:
        """Position, reason, whether it is malformed, and file and line, of each row that gave no example, in order."""
        return [tuple(drop) for table in self.tables for drop in json.loads(table.schema.metadata[b"dropped"])]


# ---------------------------------------------------------------------------------------------------------
# Pieces
# ---------------------------------------------------------------------------------------------------------


def piece_table(
    columns: dict[str, list[Any]], dropped: list[list[Any]], order: np.ndarray, names: Sequence[str]
) -> pa.Table:
    """The columns of a piece, with each example's row in the source and its hash; what was dropped in the metadata."""
    arrays = {name: as_array(name, values) for name, values in columns.items()}
    arrays["row"] = pa.array(order[np.asarray(columns["position"], dtype=np.int64)])
    arrays["hash"] = pa.array(example_hashes(columns, names))
    return pa.table(arrays).replace_schema_metadata({"dropped": json.dumps(dropped)})


def as_array(name: str, values: list[Any]) -> pa.Array:
    """A column as Arrow has it: lists of token ids, a label, or numbers."""
    if not name.endswith(("_ids", "labels")):
        return pa.array(values, pa.bool_() if name == "label" else pa.int64())
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.fromiter(itertools.chain.from_iterable(values), dtype=np.int32, count=offsets[-1])
    return pa.LargeListArray.from_arrays(offsets, flat)


def write_piece(folder: Path, number: int, table: pa.Table) -> None:
    """Put a piece in place when it is complete."""
    path = piece_path(folder, number)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    os.replace(temporary, path)


def read_piece(folder: Path, number: int) -> pa.Table | None:
    """A piece, mapped into memory; None where there is none that can be read."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(piece_path(folder, number)))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def piece_path(folder: Path, number: int) -> Path:
    """The file of a piece."""
    return folder / f"piece-{number:05d}.arrow"
