"""The models one may choose: those below some folders, in the order of their tree, and named ones of the Hub."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genesis_hf.chat import GENERATION_MARK
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.lineage.nodes import Node
from genesis_hf.lineage.tree import read_tree
from genesis_hf.playground.names import HUB_ID

KINDS = {"checkpoint": "", "export": "export", "sft": "SFT", "dpo": "DPO", "kto": "KTO", "model": ""}

HUB_STEP = re.compile(r"step-0*(\d+)")
"""A revision's name in `genesis_hf.publishing`."""


@dataclass(frozen=True)
class Entry:
    """A model that can be chosen.

    Attributes:
        key: unique; the only name by which the page asks for it.
        folder: a checkpoint or a Llama folder; None: it is on the Hub.
        depth: how many models of the catalogue it came from one after another, those of its own trunk not counted.
        trunk: of a checkpoint the name of its trunk: the training run, or the repository of the Hub.
        chat: whether it has a chat format; None: known when it is loaded.
    """

    key: str
    kind: str
    folder: Path | None = None
    step: int | None = None
    depth: int = 0
    trunk: str | None = None
    chat: bool | None = None

    @property
    def label(self) -> str:
        """Its name and place in the tree, for a list."""
        kind = KINDS.get(self.kind, self.kind)
        name = self.key if self.step is None or self.trunk is None else f"{self.trunk} · step {self.step:,}"
        branch = "\N{NO-BREAK SPACE}" * 3 * (self.depth - 1) + "└ " if self.depth else ""
        return f"{branch}{name}" + (f" ({kind})" if kind else "")


def find_models(roots: Sequence[str | Path], hub_models: Sequence[str] = ()) -> list[Entry]:
    """The models below the folders, what came of one behind it, then those of the Hub.

    Raises:
        UserError: no such folder, not the form of a Hub model, or no model at all.
    """
    nodes = [node for node in read_tree(roots, evaluations=False).nodes if node.folder is not None]
    entries = [*map(local_entry, nodes), *map(hub_entry, dict.fromkeys(hub_models))]
    if not entries:
        raise UserError(
            f"no model below {', '.join(map(str, roots)) or 'no folder'}: name a run with a complete checkpoint, an "
            "exported folder, or --hub_model owner/name"
        )
    return entries


def local_entry(node: Node) -> Entry:
    """A model of the tree."""
    is_step = node.kind == "checkpoint"
    trunk = node.name.rpartition("/")[0] if is_step else None
    return Entry(
        node.name, node.kind, node.folder, node.step, depth(node), trunk, has_chat_format(node.folder, node.kind)
    )


def depth(node: Node) -> int:
    """Branchings on the way to a node: a checkpoint stays on the line of the one before it."""
    steps = zip(node.ancestors()[:-1], node.ancestors()[1:], strict=True)
    return sum(not (parent.kind == child.kind == "checkpoint") for parent, child in steps)


def hub_entry(name: str) -> Entry:
    """A model of the Hub by `owner/name` or `owner/name@revision`."""
    match = HUB_ID.fullmatch(name)
    if not match or ".." in name:
        raise UserError(f"hub_model {name!r}: must have the form owner/name or owner/name@revision")
    step = HUB_STEP.fullmatch(match["revision"] or "")
    return Entry(name, "model", step=int(step[1]) if step else None, trunk=match["id"] if step else None)


def has_chat_format(folder: Path, kind: str) -> bool:
    """Whether a folder's model was trained on conversations, as far as its chat template tells.

    One of ours says what is trained; without that a base model's is there for others to use. A stranger's was used.
    """
    folder = folder / "tokenizer" if (folder / "manifest.json").is_file() else folder
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    for path in folder.glob("chat_template.jinja"):
        template = path.read_text(encoding="utf-8", errors="replace")
    return bool(template) if kind == "model" else bool(GENERATION_MARK.search(str(template)))


def trunks(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """By name, the runs with more than one checkpoint, in the order of steps."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.trunk is not None and entry.step is not None:
            found.setdefault(entry.trunk, []).append(entry)
    return {name: sorted(steps, key=lambda entry: entry.step) for name, steps in found.items() if len(steps) > 1}
