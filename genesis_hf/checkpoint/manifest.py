"""manifest.json: the size and sha256 of every file of a checkpoint; which checkpoint is good."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch.distributed as dist
from tqdm.auto import tqdm

from genesis_hf.checkpoint.contents import verify_contents
from genesis_hf.checkpoint.folders import checkpoint_step, complete_checkpoints, restore_replaced
from genesis_hf.config import write_text
from genesis_hf.files import file_sha256, sync_folder
from genesis_hf.processes import is_main

HASHING_THREADS = 4


def write_manifest(folder: Path, hashed: dict[str, dict[str, Any]]) -> None:
    """List every file's size and sha256 in manifest.json, and flush files and folders to disk.

    Args:
        hashed: by relative name, the entries of files that were hashed and flushed as they were written.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "manifest.json"):
        name = path.relative_to(folder).as_posix()
        if name not in hashed:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        files[name] = hashed.get(name) or {"size": path.stat().st_size, "sha256": file_sha256(path)}
    write_text(folder / "manifest.json", manifest_text(files))
    for subfolder in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(subfolder)


def manifest_text(files: dict[str, dict[str, Any]]) -> str:
    """manifest.json of these files, with a sha256 over their entries: a flipped byte in it shows like any other."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": 1, "files": files, "sha256": digest}, indent=1) + "\n"


def verify_checkpoint(folder: Path, progress: Callable[[int], object] | None = None) -> list[str]:
    """What is wrong with a checkpoint, a line each; empty when it can be resumed from.

    Every file has its size and sha256; model and optimizer are there for every parameter, in its shape; counters and
    generators agree with trainer_state.json.

    Args:
        progress: told of each number of bytes read, from several threads.
    """
    return verify_files(folder, progress) or verify_contents(folder)


def verify_files(folder: Path, progress: Callable[[int], object] | None = None) -> list[str]:
    """In what the files of a folder differ from its manifest, a line each."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)["files"]
        if text != manifest_text(manifest):
            return [f"{folder}/manifest.json is not as it was written"]
        outside = [name for name in manifest if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
        if outside:
            return [f"{folder}/manifest.json names a file outside of it: {outside[0]}"]

        def check(name: str) -> str | None:
            return file_problem(folder / name, manifest[name]["size"], manifest[name]["sha256"], progress)

        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            problems = [problem for problem in pool.map(check, manifest) if problem]
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {"manifest.json"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{folder}/manifest.json cannot be read ({error})"]
    return problems + [f"{folder / name} is not in the manifest" for name in sorted(present - set(manifest))]


def file_problem(path: Path, size: int, sha256: str, progress: Callable[[int], object] | None) -> str | None:
    """In what a file differs from its entry."""
    if not path.is_file():
        return f"{path} is missing"
    try:
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, not {size}"
        if file_sha256(path, progress) != sha256:
            return f"{path} has another sha256 than its manifest"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def newest_good_checkpoint(run: str | Path, copy_dir: str | Path | None = None) -> Path | None:
    """The newest checkpoint of a run, or of its copy, that can be resumed from; None where there is none.

    Damaged ones are named loudly and passed over. With several processes all of them call it: the main one looks, and
    the others get its answer.
    """
    found = [search(run, copy_dir) if is_main() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]


def search(run: str | Path, copy_dir: str | Path | None) -> Path | None:
    restore_replaced(run)
    candidates = complete_checkpoints(run) + (complete_checkpoints(copy_dir) if copy_dir else [])
    for folder in sorted(candidates, key=checkpoint_step, reverse=True):  # the run's own first, for sorting is stable
        problems = verify_checkpoint(folder)
        if not problems:
            return folder
        tqdm.write(f"WARNING: {folder} is damaged and passed over: {problems[0]}")
    return None
