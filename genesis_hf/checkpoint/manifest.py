"""manifest.json: the size and sha256 of every file of a checkpoint."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import complete_checkpoints
from genesis_hf.config import write_text
from genesis_hf.files import sync_folder
from genesis_hf.processes import is_main


def write_manifest(folder: Path) -> None:
    """Flush every file of a folder to disk and list its size and sha256 in manifest.json."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            files[str(path.relative_to(folder))] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())
    write_text(folder / "manifest.json", manifest_text(files))
    for subfolder in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(subfolder)


def manifest_text(files: dict[str, dict[str, Any]]) -> str:
    """manifest.json of these files, with a sha256 over their entries: a flipped byte in it shows like any other."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": 1, "files": files, "sha256": digest}, indent=1) + "\n"


def verify_checkpoint(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a line each; empty when every file has its size and sha256."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)["files"]
        if text != manifest_text(manifest):
            return [f"{folder}/manifest.json is not as it was written"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder}/manifest.json cannot be read ({error})"]
    problems = []
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != expected["size"]:
            problems.append(f"{path} has {path.stat().st_size} bytes, not {expected['size']}")
        else:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    problems.append(f"{path} has another sha256 than its manifest")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    problems += [f"{folder / name} is not in the manifest" for name in sorted(present - set(manifest))]
    return problems


def newest_good_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; damaged ones are named loudly and passed over."""
    for folder in complete_checkpoints(run):
        problems = verify_checkpoint(folder)
        if not problems:
            return folder
        if is_main():
            print(f"WARNING: {folder} is damaged and passed over: {problems[0]}", flush=True)
    return None
