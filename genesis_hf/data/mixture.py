"""Rows of several sources, mixed by their shares of tokens and permuted in blocks."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from genesis_hf.data.order import block_permutation
from genesis_hf.data.packing import PreparedRows, Row, TextRows

SourceRows = TextRows | PreparedRows


class Settings(NamedTuple):
    """What a recipe may change on the way: weight by source, and the seed of what is permuted from here on."""

    weights: dict[str, float]
    seed: int


class Mixture:
    """Rows of several sources, such that the tokens taken stay in proportion to the weights.

    The next row always comes from the source that is furthest below its share: no random numbers, and the realised
    shares are off by less than a row. `use` begins the count anew.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceRows],
        settings: Settings,
        *,
        reweight: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            reweight: go on with the others when a source is dry, instead of ending.
            state: an earlier mixture's, over sources that were given theirs. A source that is gone drops out of it.
        """
        self.sources = sources
        self.reweight = reweight
        state = copy.deepcopy(state) if state else {"weights": dict(settings.weights), "seed": settings.seed}
        self.weights: dict[str, float] = {n: w for n, w in state["weights"].items() if n in sources}
        self.seed: int = state["seed"]
        self.dry: list[str] = [name for name in state.get("dry", []) if name in sources]
        taken = state.get("taken", {})
        self.taken: dict[str, int] = {name: taken.get(name, 0) for name in self.weights}
        self._share()

    def state(self) -> dict[str, Any]:
        """Weights and seed in use, tokens taken of each source since they are, and the sources that are dry."""
        return {"weights": dict(self.weights), "seed": self.seed, "taken": dict(self.taken), "dry": list(self.dry)}

    def use(self, settings: Settings) -> None:
        """Go on with these weights and this seed; with other weights, tokens taken so far no longer count."""
        if settings == (self.weights, self.seed):
            return
        if settings.weights != self.weights:
            self.weights = dict(settings.weights)
            self.taken = dict.fromkeys(self.weights, 0)
        self.seed = settings.seed
        self._share()

    def _share(self) -> None:
        ended = self.dry and not self.reweight
        weights = {name: weight for name, weight in self.weights.items() if name not in self.dry and not ended}
        total = sum(weights.values())
        self._shares = {name: weight / total for name, weight in weights.items()}
        self._total = sum(self.taken.values())
        for rows in self.sources.values():
            rows.seed = self.seed

    def take(self) -> Row | None:
        """The next row; None when a source is dry, with `reweight` when all are."""
        while self._shares:
            wanted = self._total + 1
            name = max(self._shares, key=lambda name: self._shares[name] * wanted - self.taken[name])
            row = self.sources[name].take()
            if row is not None:
                self.taken[name] += row.length
                self._total += row.length
                return row
            self.dry.append(name)
            self.taken = dict.fromkeys(self.weights, 0)
            self._share()
        return None


class ShuffledRows:
    """A mixture's rows, permuted in blocks.

    A long document fills many rows; without this, a small step would see little else. The state keeps where sources and
    mixture stood when the open block began, so going on means making that one block again. New settings take effect
    where a block begins.
    """

    def __init__(
        self,
        mixture: Mixture,
        block_rows: int,
        settings_at: Callable[[int], Settings],
        state: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            block_rows: rows permuted together; 0 keeps the mixture's order.
            settings_at: weights and seed for the block that begins with a given row.
            state: an earlier `state()`, over a mixture and sources that were given what is in its `begin`.
        """
        self.mixture = mixture
        self.block_rows = block_rows
        self.settings_at = settings_at
        self.block, self.index = (state["block"], state["index"]) if state else (0, 0)
        self.row = state["begin"]["row"] if state else 0
        self._rows: list[Row] | None = None
        self._begin = copy.deepcopy(state["begin"]) if self.index else None  # of a block that is made again
        self._records: dict[str, dict[str, int]] = state["records"] if state else {}

    def state(self) -> dict[str, Any]:
        """`block` that is open, `index` of the next row in it, and `begin`: what it is made from.

        `records` says what came of each source's records, up to the end of the open block.
        """
        return {
            "block": self.block,
            "index": self.index,
            "records": self._records,
            "begin": self._begin or self._snapshot(),
        }

    def take(self) -> Row | None:
        """The next row; None at the data's end."""
        if self._rows is None:
            self._open_block()
        if self.index >= len(self._rows):  # at the data's end; also past that of accepted settings
            return None
        row = self._rows[self.index]
        self.index += 1
        if self.index == len(self._rows):
            self.block, self.row, self.index = self.block + 1, self.row + len(self._rows), 0
            self._rows = self._begin = None
        return row

    def _open_block(self) -> None:
        if self._begin is None:  # a block that is made again keeps the settings it was begun with
            self.mixture.use(self.settings_at(self.row))
        if self.block_rows:
            self._begin = self._begin or self._snapshot()
        rows = []
        while len(rows) < (self.block_rows or 1) and (row := self.mixture.take()) is not None:
            rows.append(row)
        self._records = {name: dict(source.state["counts"]) for name, source in self.mixture.sources.items()}
        if self.block_rows:
            order = block_permutation(len(rows), self.mixture.seed, "rows", self.block)
            rows = in_epoch_order([rows[i] for i in order])
        self._rows = rows

    def _snapshot(self) -> dict[str, Any]:
        sources = {name: copy.deepcopy(rows.state) for name, rows in self.mixture.sources.items()}
        return {"row": self.row, "mixture": self.mixture.state(), "sources": sources}


def in_epoch_order(rows: list[Row]) -> list[Row]:
    """The same order of sources, each one's rows epoch by epoch: none comes again before all have come."""
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    ordered = {
        name: iter(sorted(group, key=lambda row: (row.epoch, row.last_epoch))) for name, group in by_source.items()
    }
    return [next(ordered[row.source]) for row in rows]
