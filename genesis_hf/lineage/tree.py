"""The models below some folders, each with what it came from."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.errors import UserError
from genesis_hf.files import read_json
from genesis_hf.lineage.evaluations import assign_evaluations, weights_sha256
from genesis_hf.lineage.folders import FORK, find_nodes, json_object, noted
from genesis_hf.lineage.nodes import Node


@dataclass
class Tree:
    """Models and what they came from.

    Attributes:
        nodes: a node stands before what came of it.
    """

    nodes: list[Node]

    @property
    def roots(self) -> list[Node]:
        """Those that began with random weights, or with something that is not here."""
        return [node for node in self.nodes if node.parent is None]

    def find(self, name: str) -> Node:
        """The node of this name, or of this folder; ends of names will do, and a run stands for its newest checkpoint.

        Raises:
            UserError: none, or several.
        """
        path, end = Path(name).resolve(), f"/{name.strip('/')}"
        found = [n for n in self.nodes if n.name == name or (n.folder and n.folder.resolve() in (path, path / "final"))]
        found = found or [n for n in self.nodes if n.run.resolve() == path][-1:]
        found = found or [n for n in self.nodes if f"/{n.name}".endswith(end)]
        found = found or [n for n in self.nodes if f"/{n.name.rpartition('/')[0]}".endswith(end)][-1:]
        if len(found) != 1:
            several = ", ".join(node.name for node in (found or self.nodes)[:12])
            raise UserError(f"{name}: {'several models end so' if found else 'no such model'}; here are {several}")
        return found[0]


def read_tree(roots: Sequence[str | Path], evaluations: bool = True) -> Tree:
    """The tree of all models below some folders.

    Args:
        evaluations: also look which evaluation is of which model; models that were never hashed are hashed for it.

    Raises:
        UserError: no such folder.
    """
    nodes = find_nodes(roots)
    chain_checkpoints(nodes)
    for node in nodes:
        if node.kind == "export":
            node.parent = exported_from(node, nodes)
        elif node.kind in ("sft", "dpo", "kto") and node.start:
            node.parent = named_by(node.start, node, nodes)
    for node in nodes:
        if comes_of_itself(node):
            node.parent = None
        if node.parent is not None:
            node.parent.children.append(node)
    if evaluations:
        assign_evaluations(nodes, roots)
    return Tree(list(in_order([node for node in nodes if node.parent is None])))


def chain_checkpoints(nodes: list[Node]) -> None:
    """Each checkpoint's parent is the one before it in its run; a fork begins with a copy of one of another run."""
    for run, group in groupby((node for node in nodes if node.kind == "checkpoint"), lambda node: node.run):
        chain = sorted(group, key=lambda node: node.step)
        for before, after in pairwise(chain):
            after.parent = before
        first = chain[0]
        named = str(first.recipe.get("resume_from_checkpoint", "auto"))
        if (run / FORK).is_file():
            first.start = "an unknown checkpoint"
            with noted(first, run / FORK) as file:
                fork = json_object(file)
                first.start = f"{fork['run']} step {int(fork['step']):,}"
                named = str(checkpoint_folder(fork["run"], int(fork["step"])))
                first.parent = forked_from(fork["manifest_sha256"], named, first, nodes)
        elif named not in ("auto", "none", "None"):
            first.start, first.parent = named, named_by(named, first, nodes)


def original(identity: str, nodes: list[Node]) -> Node | None:
    """The checkpoint with this manifest that is no fork's copy of it."""
    copies = [node for node in nodes if node.identity == identity]
    return next((node for node in copies if read_json(node.run / FORK).get("manifest_sha256") != identity), None)


def forked_from(identity: str, named: str, first: Node, nodes: list[Node]) -> Node | None:
    """The checkpoint that a fork's first is a copy of: the one it names, which may be a copy, else the original."""
    there = named_by(named, first, nodes)
    return there if there is not None and there.identity == identity else original(identity, nodes)


def comes_of_itself(node: Node) -> bool:
    """Whether names that were given anew make a circle of a node's ancestors."""
    seen: set[Node] = set()
    above = node.parent
    while above is not None and above not in seen:
        seen.add(above)
        above = above.parent
    return node in seen


def exported_from(export: Node, nodes: list[Node]) -> Node | None:
    """The checkpoint, or Llama folder, that an export was made of, by the hash in its report.

    Of a checkpoint and its copies in forks it is the original.
    """
    report = read_json(export.run / "parity.json")
    made_of = report.get("checkpoint_sha256")
    of_hash = [node for node in nodes if node.identity is not None and node.identity == made_of]
    if of_hash:
        return original(made_of, nodes) or of_hash[0]
    chat_models = [node for node in nodes if node is not export and node.kind != "checkpoint" and node.folder]
    return next((node for node in chat_models if weights_sha256(node.folder) == made_of), None)


def named_by(name: str, node: Node, nodes: list[Node]) -> Node | None:
    """The node that a recipe calls `name`: from here, or where the whole tree was moved from the run's own place.

    A run directory stands for what `--model` makes of it: its `final`, or its newest checkpoint.
    """
    parts = Path(name).parts
    places = [
        Path(name),
        *(above / Path(*parts[i:]) for i in range(len(parts)) for above in node.run.resolve().parents),
    ]
    for place in places:
        if not os.path.exists(place):
            continue
        place = place.resolve()
        found = [n for n in nodes if n is not node and n.folder and n.folder.resolve() in (place, place / "final")]
        found = found or [n for n in nodes if n is not node and n.run.resolve() == place][-1:]
        if found:
            return found[0]
    return None


def in_order(nodes: list[Node]) -> Iterator[Node]:
    """Nodes and what came of them, depth first."""
    for node in nodes:
        yield node
        yield from in_order(node.children)
