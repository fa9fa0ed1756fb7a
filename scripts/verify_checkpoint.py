"""Check checkpoints: every file as its manifest says, and all in them that a resume needs.

    python scripts/verify_checkpoint.py RUN_OR_CHECKPOINT …

Of a run directory each checkpoint is checked. Exit code 2 when one is damaged.
"""

import _env  # noqa: F401

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from genesis_hf.checkpoint.folders import complete_checkpoints, find_checkpoint
from genesis_hf.checkpoint.manifest import verify_checkpoint
from genesis_hf.errors import report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    named = [Path(folder) for folder in parser.parse_args().folders]
    folders = [found for folder in named for found in complete_checkpoints(folder) or [find_checkpoint(folder)]]
    sizes = {folder: folder_bytes(folder) for folder in folders}
    damaged = 0
    with tqdm(total=sum(sizes.values()), desc="verifying", unit="B", unit_scale=True, leave=False) as progress:
        for folder, size in sizes.items():
            problems = verify_checkpoint(folder, progress.update)
            tqdm.write(f"{folder}: {'good' if not problems else 'DAMAGED'}, {size / 2**30:.2f} GiB")
            for problem in problems:
                tqdm.write(f"  {problem}")
            damaged += bool(problems)
    sys.exit(2 if damaged else 0)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    with report_user_errors():
        main()
