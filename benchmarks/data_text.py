"""What data_speed.py reads: text that any machine has, a tokenizer trained on it, and large data for the resume."""

import hashlib
import json
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_loaders import Job

from genesis_hf.config import Source, TokenizerRecipe, write_text
from genesis_hf.data.preparation.pieces import COUNTS, Part, PieceWriter, Tokenised
from genesis_hf.data.preparation.prepare import PreparedSource, write_index
from genesis_hf.data.prepared import PreparedTokens
from genesis_hf.data.readers import read_documents
from genesis_hf.files import read_json
from genesis_hf.tokenizer_training import build_tokenizer

TEXT_SUFFIXES = (".py", ".md", ".rst", ".txt")
TRAIN_BYTES = 20_000_000


def make_text(paths: list[str] | None, megabytes: float, seed: int, work_dir: str) -> dict[str, Any]:
    """Two .jsonl and two .parquet files of documents in a seeded order, none twice.

    Args:
        paths: of a source; None: `python_texts`, which are kept for the next run.
        megabytes: of text, exceeded by less than a document.

    Returns:
        `files`, `bytes` of text, `documents`.
    """
    folder = Path(work_dir) / f"text-{megabytes:g}MB-{seed}"
    if paths:
        folder = folder.with_name("text-own")
        shutil.rmtree(folder, ignore_errors=True)
    if made := read_json(folder / "text.json"):
        return made
    found = read_documents(Source("text", paths=paths)) if paths else python_texts()
    keyed = {hashlib.sha256(f"{seed}\0{text}".encode()).digest(): text for text in found}
    texts, size = [], 0
    for key in sorted(keyed):
        if size >= megabytes * 1e6:
            break
        texts.append(keyed[key])
        size += len(keyed[key].encode())
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, name in enumerate(("0.jsonl", "1.jsonl", "2.parquet", "3.parquet")):
        write_texts(folder / name, texts[number::4])
        files.append(str((folder / name).resolve()))
    made = {"files": files, "bytes": size, "documents": len(texts)}
    write_text(folder / "text.json", json.dumps(made) + "\n")
    return made


def python_texts() -> Iterator[str]:
    """The text files of the running Python: standard library and installed packages."""
    for key in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(key)).rglob("*")):
            if path.suffix in TEXT_SUFFIXES and path.is_file():
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                if text:
                    yield text


def write_texts(path: Path, texts: list[str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1000)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def make_tokenizer(files: list[str], vocab_size: int) -> str:
    """Train one on the text, unless an earlier run did. Returns its folder."""
    folder = Path(files[0]).parent / f"tokenizer-{vocab_size}"
    if not folder.exists():
        sources = [Source("text", paths=files)]
        build_tokenizer(TokenizerRecipe(str(folder), "sentencepiece", sources, vocab_size, TRAIN_BYTES))
    return str(folder)


def copy_tokens(small: Job, large: Job, copies: int) -> None:
    """Token shards that hold those of `small` several times, with an index as large as theirs would be."""
    tokens = PreparedTokens(f"{small.folder}/text")
    ids = np.empty(tokens.num_tokens, np.int32)
    tokens.read(0, tokens.num_tokens, ids)
    documents = np.split(ids, tokens.ends[:-1].astype(np.int64))
    counts = {key: tokens.index["totals"][key] for key in COUNTS}
    block = Tokenised(documents, tokens.hashes.tolist(), [], counts)
    parts = [Part(small.source(), Path(large.folder) / "text", number, 0) for number in range(copies)]
    for part in parts:
        writer = PieceWriter(part, 0, tokens.index["dtype"], "copied")
        writer.add(block)
        writer.finish(None)
    written_last = ("fingerprint", "shards", "files", "totals")
    plan = {key: value for key, value in tokens.index.items() if key not in written_last}
    write_index(PreparedSource(small.source(), parts[0].folder, plan, parts))


def write_parquet(job: Job, path: str, size: int) -> float:
    """The text again and again in a file of `size` bytes, uncompressed. Returns how often it is in it."""
    texts = list(read_documents(job.source()))
    group = 1000
    written = 0
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()}), compression="none", use_dictionary=False) as writer:
        while os.path.getsize(path) < size:
            start = written % len(texts)
            writer.write_table(pa.table({"text": texts[start : start + group]}))
            written += len(texts[start : start + group])
    return written / len(texts)
