"""What a model came from, as far as run directories on this machine tell."""

import re
from pathlib import Path
from typing import Any

from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.files import read_json
from genesis_hf.lineage.folders import FORK
from genesis_hf.report.tables import Rows
from genesis_hf.runs import Run, read_run

FURTHEST = 10
"""Trainings followed back; a chain that is longer bites its own tail."""


def ancestors(run: Run | None) -> list[Run]:
    """The trainings that led to a model, the first one first, as far back as their folders are here."""
    chain: list[Run] = []
    while run is not None and len(chain) < FURTHEST:
        chain.insert(0, run)
        start = Path(start_of(run) or "")
        folders = [start, *list(start.parents)[:3]] if start_of(run) and start.exists() else []
        homes = [f for f in folders if (f / "recipe.yaml").is_file() and (f / "metrics.jsonl").is_file()]
        run = read_run(homes[0]) if homes else None
    return chain


def start_of(run: Run) -> str | None:
    """The model or checkpoint that a training began with, by the name in its recipe; None: random weights."""
    fork = read_json(run.folder / FORK)
    if fork:
        checkpoint = checkpoint_folder(fork["run"], fork["step"])
        return str(checkpoint) if checkpoint.exists() else f"step {fork['step']:,} of {Path(fork['run']).name}"
    if is_pretraining(run):
        named = str(run.recipe.get("resume_from_checkpoint", "auto"))
        return None if named in ("auto", "none", "None") else named
    return str(run.recipe["model"]) if run.recipe.get("model") else None


def is_pretraining(run: Run) -> bool:
    """Whether it trained on plain text; its recipe then says from which sources."""
    return "sources" in run.recipe


def base_model(chain: list[Run]) -> str | None:
    """The Hub model that the first of these trainings began with."""
    start = start_of(chain[0]) if chain and not is_pretraining(chain[0]) else None
    return start if start and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", start) and not Path(start).exists() else None


def lineage_rows(chain: list[Run]) -> Rows:
    """A line a training: phase, steps, tokens, and what it began with."""
    rows = [["phase", "run", "steps", "tokens", "began with"]]
    for run in chain:
        start = start_of(run)
        rows.append([phase(run), run.folder.name, *amounts(run), name_of(start) if start else "random weights"])
    return rows


def phase(run: Run) -> str:
    return "pretraining" if is_pretraining(run) else str(run.summary.get("phase", "unknown"))


def amounts(run: Run) -> list[str]:
    """Steps and tokens of a training, as text."""
    last: dict[str, Any] = next((record for record in reversed(run.metrics) if "loss" in record), {})
    steps = run.summary.get("steps", last.get("step"))
    tokens = last.get("tokens_seen", last.get("num_tokens"))
    return [f"{value:,.0f}" if value is not None else "unknown" for value in (steps, tokens)]


def name_of(start: str) -> str:
    """A Hub id as it is; of a path its last parts, for the rest is about somebody's machine."""
    return start if not Path(start).exists() else "/".join(Path(start).parts[-2:])
