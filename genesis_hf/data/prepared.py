"""Prepared tokens: a source's token shards, memory-mapped. `preparation/` writes them.

FOLDER/index.json               what was tokenised how; size and sha256 of every file; totals
       00000-00000.bin …        tokens, little-endian uint16 or uint32, EOS after each document
       ends.bin                 uint64 by document: where it ends among all tokens, EOS included
       hashes.bin               uint64 by document: `document_hash` of its text
       held_out.jsonl           texts that the recipe's selection holds out, one a line
       bad_records.jsonl        what could not be read: where, reason, count
"""

import hashlib
import json
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.data.selection import Selection
from genesis_hf.errors import UserError
from genesis_hf.files import file_sha256

FORMAT = 1
"""Of index.json; another number is another layout."""

TOKEN_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class PreparedTokens:
    """The tokens of one prepared source: documents in the files' order, held-out and excluded ones left out.

    Attributes:
        folder: where the shards lie.
        index: index.json.
        fingerprint: sha256 of index.json's bytes, and so of every file that it names.
        num_tokens, num_documents: what there is to train on.
        ends: (num_documents,) uint64, memory-mapped: global end of each document, EOS included.
        hashes: (num_documents,) uint64, memory-mapped: `document_hash` of each.
    """

    def __init__(self, folder: str | Path) -> None:
        """Look at index.json and the files' sizes; nothing else is read.

        Raises:
            UserError: no index.json or one of another layout, a file missing or of the wrong size.
        """
        self.folder = Path(folder)
        try:
            data = (self.folder / "index.json").read_bytes()
        except OSError:
            raise UserError(
                f"{self.folder}: no index.json, so no finished token shards; scripts/prepare_data.py makes them"
            ) from None
        self.fingerprint = hashlib.sha256(data).hexdigest()
        try:
            self.index: dict[str, Any] = json.loads(data)
            self._read_index()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder}/index.json: not an index of token shards of format {FORMAT} "
                f"({type(error).__name__}: {error}); prepare the source again"
            ) from None
        for name, size in self._sizes.items():
            path = self.folder / name
            mend = f"restore it, or remove {self.folder} and prepare the source again"
            if not path.is_file():
                raise UserError(f"{path} is missing; {mend}")
            if (found := path.stat().st_size) != size:
                raise UserError(f"{path} has {found:,} bytes, not the {size:,} that index.json says; {mend}")
        self.ends = self._map("ends.bin", np.dtype("<u8"))
        self.hashes = self._map("hashes.bin", np.dtype("<u8"))

    def _read_index(self) -> None:
        if self.index["format"] != FORMAT:
            raise ValueError(f"it is of format {self.index['format']}")
        shards, files = self.index["shards"], self.index["files"]
        self.num_tokens: int = self.index["totals"]["tokens"]
        self.num_documents: int = self.index["totals"]["documents"]
        self._dtype = TOKEN_DTYPES[self.index["dtype"]]
        self._names = [shard["file"] for shard in shards]
        self._starts = [0, *accumulate(shard["tokens"] for shard in shards)]
        self._shards: list[np.ndarray | None] = [None] * len(shards)
        self._sizes = {shard["file"]: shard["bytes"] for shard in shards}
        self._sizes |= {name: file["bytes"] for name, file in files.items()}
        if self._starts[-1] != self.num_tokens or files["ends.bin"]["bytes"] != 8 * self.num_documents:
            raise ValueError("its totals differ from its shards'")

    def check(self, tokenizer: PreTrainedTokenizerFast, selection: Selection) -> None:
        """Raises `UserError`: the shards were made with another tokenizer, or hold out other documents."""
        mend = f"prepare the source again, or name the recipe that {self.folder} was made with"
        if self.index["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
            raise UserError(f"{self.folder} was made with another tokenizer; {mend}")
        if self.index["selection"] == selection_record(selection):
            return
        if self.index["selection"]["held_out_share"] != selection.held_out_share:
            raise UserError(
                f"{self.folder} was made with held_out_share {self.index['selection']['held_out_share']}, not "
                f"{selection.held_out_share}; {mend}"
            )
        # Other documents are excluded than then: what counts is that none of them is in the shards.
        excluded = np.fromiter(selection.excluded, dtype=np.uint64, count=len(selection.excluded))
        found = int(np.isin(self.hashes, excluded).sum())
        if found:
            raise UserError(
                f"{self.folder} holds {found:,} documents that exclude_documents or eval_sources leave out; {mend}"
            )

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copy tokens [start, stop) of the whole source into `out`, (stop - start,) of any integer dtype.

        Raises:
            IndexError: the range reaches beyond the source.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"{self.folder} holds {self.num_tokens:,} tokens, not {start:,} to {stop:,}")
        filled = 0
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            shard = self._shards[number]
            if shard is None:
                shard = self._shards[number] = self._map(self._names[number], self._dtype)
            out[filled : filled + end - start] = shard[start - first : end - first]
            filled, start = filled + end - start, end

    def verify(self) -> list[str]:
        """Hash every file anew; a line for each that is not what index.json says."""
        expected = {shard["file"]: shard["sha256"] for shard in self.index["shards"]}
        expected |= {name: file["sha256"] for name, file in self.index["files"].items()}
        bar = tqdm(total=sum(self._sizes.values()), unit="B", unit_scale=True, desc=f"verifying {self.folder.name}")

        def problem(name: str) -> str | None:
            try:
                found = file_sha256(self.folder / name)
            except OSError as error:
                return f"{self.folder / name}: cannot be read ({error.strerror})"
            bar.update(self._sizes[name])
            return None if found == expected[name] else f"{self.folder / name}: its sha256 is not that of index.json"

        with bar, ThreadPoolExecutor() as threads:
            return [line for line in threads.map(problem, expected) if line]

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        size = self._sizes[name]
        if not size:
            return np.empty(0, dtype)
        # Not np.memmap, which keeps a file descriptor a file: a source may have more shards than a process may open.
        mapped = torch.from_file(str(self.folder / name), shared=False, size=size, dtype=torch.uint8).numpy()
        mapped.flags.writeable = False
        return mapped.view(dtype)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of all that decides on the ids of a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def selection_record(selection: Selection) -> dict[str, Any]:
    """A selection as index.json names it."""
    return {
        "held_out_share": selection.held_out_share,
        "excluded": len(selection.excluded),
        "fingerprint": selection.fingerprint(),
    }
