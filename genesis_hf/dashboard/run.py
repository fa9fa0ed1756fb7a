"""All that the page shows of one run."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

from genesis_hf.config import read_yaml
from genesis_hf.dashboard.columns import Columns
from genesis_hf.dashboard.events import Events, newest_loss_is_lost
from genesis_hf.dashboard.folders import METRICS, checkpoint_steps
from genesis_hf.dashboard.points import series
from genesis_hf.dashboard.samples import Samples
from genesis_hf.dashboard.status import read_status
from genesis_hf.dashboard.tail import Tail
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.lineage.folders import FORK, PHASES

NO_CURVE = {"step", "epoch", "tokens_seen", "num_tokens", "time", "total_flos"}
"""Keys that stand along the axis, or say nothing as a curve."""

NO_CURVE_BEGINS = ("train_", "eval_runtime", "eval_samples_per", "eval_steps_per", "eval_stderr", "eval_tokens")
"""So begin keys that TRL's trainers write about the whole run, or about the evaluation's own speed."""

FIGURES = ("loss", "eval_loss", "tokens_seen", "num_tokens", "tokens_per_second", "mfu", "memory_gib", "grad_norm")
"""Keys whose newest value stands in the table of runs."""


VERSIONS = itertools.count(time.time_ns() // 1_000_000)
"""Never the same for two runs, nor before and after a restart: an open page asks by the versions that it has."""


class WatchedRun:
    """A run directory whose files are read as they grow. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.columns = Columns(fork_step(folder))
        self.version = next(VERSIONS)
        self.checkpoints: list[int] = []
        self.recipe: dict[str, Any] = {}
        self._metrics = Tail(folder / METRICS)
        self._samples, self._events = Samples(folder), Events(folder)
        self._recipe_stamp: int | None = None
        self._lock = threading.Lock()
        self._view: tuple[Any, dict[str, Any]] | None = None

    def refresh(self) -> bool:
        """Read a piece of what is new; whether there may be more to read at once."""
        with self._lock:
            lines, anew = self._metrics.read()
            if anew:
                self.columns = Columns(fork_step(self.folder))
            if lines:
                self.columns.add(lines)
            checkpoints = checkpoint_steps(self.folder)
            changed = [lines, anew, checkpoints != self.checkpoints, self._read_recipe()]
            changed += [self._samples.refresh(), self._events.refresh()]
            self.checkpoints = checkpoints
            if any(changed):
                self.version = next(VERSIONS)
            return self._metrics.share < 1

    def view(
        self, known: int | None = None, axis: str = "step", span: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        """Status and, unless the caller knows this version, everything else, as plain values."""
        with self._lock:
            status = read_status(self.folder, self.recipe, self.columns, self.checkpoints, self._metrics.modified)
            brief = {"version": self.version, "status": status, "read": round(self._metrics.share, 3)}
            if known == self.version:
                return brief
            asked = (self.version, axis, span)
            if self._view is None or self._view[0] != asked:
                self._view = (asked, self._everything(axis, span))
            return {**brief, **self._view[1]}

    def _everything(self, axis: str, span: tuple[float, float] | None) -> dict[str, Any]:
        columns = self.columns
        keys = [k for k in columns if k not in NO_CURVE and not k.startswith(NO_CURVE_BEGINS)]
        figures: dict[str, float | None] = {key: columns.last(key) for key in FIGURES if columns.last(key) is not None}
        if newest_loss_is_lost(columns):
            figures["loss"] = None
        after = self._summary_loss()
        if after is not None:
            figures["eval_loss"] = after
        bits = [columns.last(key) for key in keys if key.startswith("held_out/") and key.endswith("/bits_per_byte")]
        if bits:
            figures["bits_per_byte"] = sum(bits) / len(bits)
            figures["held_out_sources"] = len(bits)
        return {
            "phase": self._phase(),
            "figures": figures,
            **series(columns, keys, axis, span),
            "checkpoints": self.checkpoints,
            "events": self._events.view(columns),
            "samples": self._samples.view(),
            "unreadable": columns.unreadable,
        }

    def _summary_loss(self) -> float | None:
        """Held-out loss of a finished SFT, which is measured after its last record."""
        held_out = read_json(self.folder / "summary.json").get("held_out")
        after = held_out.get("after") if isinstance(held_out, dict) else None
        loss = after.get("loss") if isinstance(after, dict) else None
        return loss if isinstance(loss, float) else None

    def _phase(self) -> str:
        if "sources" in self.recipe:
            return "pretraining"
        if any(key.endswith("rewards/chosen") for key in self.columns):
            if not self.recipe:
                return "preferences"
            return "DPO" if PHASES["dpo"] in self.recipe else "KTO"
        return "SFT" if "mixture" in self.recipe else ""

    def _read_recipe(self) -> bool:
        """Read recipe.yaml where it is new; a half-copied one is read when it is whole."""
        path = self.folder / "recipe.yaml"
        try:
            stamp = path.stat().st_mtime_ns
            if stamp == self._recipe_stamp:
                return False
            self.recipe = read_yaml(path)
            self._recipe_stamp = stamp
        except (OSError, UserError):
            return False
        return True


def fork_step(folder: Path) -> int:
    """The step of the parent after which a fork goes on; 0 for any other run."""
    step = read_json(folder / FORK).get("step")
    return step if isinstance(step, int) else 0
