"""Hashes of files, folders and records; small JSON files."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genesis_hf.config import write_text
from genesis_hf.errors import UserError

MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "tokenizer*", "*.jinja", "merges.txt")
"""What a model's folder is read for; what is downloaded of one on the Hub."""


def folder_sha256(folder: Path, patterns: Sequence[str] = ("*",), hash_of: Callable[[Path], str] | None = None) -> str:
    """sha256 over the names and contents of a folder's files, in the order of their names.

    Args:
        hash_of: a file's hash; default `file_sha256`.

    Raises:
        UserError: no such file.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not files:
        raise UserError(f"{folder}: no such folder, or nothing in it")
    lines = [f"{(hash_of or file_sha256)(path)}  {path.name}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """sha256 of a file as hexadecimal digits; `progress` is told of each number of bytes read."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(chunk):
            digest.update(chunk[:size])
            if progress is not None:
                progress(size)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """sha256 of a file, kept in the cache for as long as its size and time of change stay; small files are read."""
    stat = path.stat()
    if stat.st_size < 1 << 20:
        return file_sha256(path)
    known = cache_folder() / "hashes" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"
    stamp = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    record = read_json(known)
    if {key: record.get(key) for key in stamp} != stamp:
        with tqdm(total=stat.st_size, desc=f"hashing {path.name}", unit="B", unit_scale=True, delay=2) as progress:
            record = {**stamp, "sha256": file_sha256(path, progress.update)}
        write_text(known, json.dumps(record) + "\n")
    return record["sha256"]


def cache_folder() -> Path:
    """Where what can be made again is kept: $GENESIS_HF_CACHE, or ~/.cache/genesis_hf."""
    return Path(os.environ.get("GENESIS_HF_CACHE") or "~/.cache/genesis_hf").expanduser()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is absent or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def hash_items(items: Iterable[Any]) -> str:
    """sha256 over the items as JSON lines; functions in them count by their source, other objects by their text."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, sort_keys=True, ensure_ascii=False, default=as_text).encode() + b"\n")
    return digest.hexdigest()


def as_text(value: Any) -> str:
    """What doesn't change from process to process: a function's own text holds its address."""
    if not callable(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
