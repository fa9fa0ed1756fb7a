"""A model in the tree of checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["checkpoint", "export", "sft", "dpo", "kto", "model"]
"""`model`: a Llama folder that came from elsewhere."""


@dataclass(eq=False)
class Node:
    """A checkpoint, an exported folder, or what SFT, DPO or KTO made.

    Attributes:
        name: unique in its tree: the path from the folder that was asked for, without `checkpoints/` and `final`.
        kind: what it is.
        folder: what a phase takes as `--model`; None where it is not there (any more, or yet).
        run: the run directory, or the folder of an export.
        recipe: the recipe it was trained with; {} where it is unknown.
        step: optimizer steps of its own training; of an export those of its checkpoint.
        tokens: by source, trained on since random weights (checkpoint) or in this phase (SFT, DPO, KTO: tokens of
            the rows, labels or not, times the epochs).
        repeated: by source, what came a second time, in words; empty: nothing did.
        data_changed: the first step at which training went on with other data that was accepted; None: it never did.
        unreadable: by file, why it tells nothing about the node.
        figures: what training recorded: `loss`, and `held_out`, of a checkpoint bits per byte by source.
        identity: sha256 of a checkpoint's manifest; None for others.
        parent: what its training, or its export, began with; None: random weights, or unknown (`start` tells).
        start: the model or checkpoint that it began with, by the name it was given there.
        evaluations: folders with an evaluation of it.
    """

    name: str
    kind: Kind
    folder: Path | None
    run: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)
    data_changed: int | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    identity: str | None = None
    parent: "Node | None" = field(default=None, repr=False)
    start: str | None = None
    children: list["Node"] = field(default_factory=list, repr=False)
    evaluations: list[Path] = field(default_factory=list)

    def ancestors(self) -> list["Node"]:
        """From the first one to this node itself."""
        chain = [self]
        while chain[0].parent is not None:
            chain.insert(0, chain[0].parent)
        return chain
