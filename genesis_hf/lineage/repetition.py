"""What may have come to a model twice, beyond the passes that its training counted."""

import glob
import itertools
import os
from typing import Any

from genesis_hf.lineage.nodes import Node


def repetition(node: Node) -> list[str]:
    """What came to a model again, what may have, and since when that is not known; empty: nothing came twice."""
    said = [f"{one} and {other} share data, which may have come twice" for one, other in shared_data(node.recipe)]
    if node.repeated:
        said.insert(0, f"came again: {', '.join(f'{source} in {words}' for source, words in node.repeated.items())}")
    since = min((n.data_changed for n in pretraining(node) if n.data_changed is not None), default=None)
    if since is not None:
        said.append(f"whether any came twice is not known since step {since:,} (data changed)")
    return said


def pretraining(node: Node) -> list[Node]:
    """A checkpoint and those it came from; of another model none, whose tokens are those of its own phase."""
    return node.ancestors() if node.kind == "checkpoint" else []


def shared_data(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a recipe's sources that name a file, a Hub dataset or a folder of token shards both."""
    listed = recipe.get("sources") or recipe.get("mixture")
    sources = [source for source in listed if isinstance(source, dict)] if isinstance(listed, list) else []
    data = [(str(source.get("name")), named_data(source)) for source in sources]
    return [(one, other) for (one, first), (other, second) in itertools.combinations(data, 2) if first & second]


def named_data(source: dict[str, Any]) -> set[str]:
    """A source's files, as far as they are still here; else the names that its recipe gives them."""
    if source.get("dataset"):
        return {str([source.get(key) for key in ("dataset", "config", "data_dir", "split", "revision")])}
    names = source.get("paths") or source.get("prepared") or []
    found: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        files = glob.glob(os.path.expanduser(str(name)), recursive=True)
        found.update(map(os.path.realpath, files) if files else [str(name)])
    return found
