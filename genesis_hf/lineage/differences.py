"""Recipes and figures of two nodes side by side."""

from collections.abc import Iterator
from typing import Any

from genesis_hf.lineage.nodes import Node

SAYS_NOTHING = ("env", "dry_run", "output_dir", "cache_dir", "stop_at_step", "resume_from_checkpoint", "report_to")
"""Keys of a recipe that change nothing about what is learned."""


def recipe_differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By dotted key (`model.hidden_size`, `sources.prose.weight`), the values of two recipes that differ.

    None stands for an absent or empty one. 0 and false count as absent: an older recipe doesn't hold the default of a
    newer key.
    """
    old, new = ({k: v for k, v in recipe.items() if k not in SAYS_NOTHING} for recipe in (before, after))
    return dict(differing(old, new))


def differing(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Pairs of values that differ, looked for inside mappings and lists of named sources that both sides have."""
    old, new = by_name(old), by_name(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif (old or None) != (new or None):
        yield key, (old or None, new or None)


def by_name(value: Any) -> Any:
    """A list of mappings that have names as a mapping from them."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    return value


def compared_with(node: Node, nodes: list[Node]) -> Node | None:
    """The node whose recipe tells best what is particular about this one.

    A checkpoint's parent; of SFT, DPO and KTO the first of the same kind in the tree.
    """
    if node.kind == "checkpoint":
        return node.parent
    if node.kind in ("sft", "dpo", "kto"):
        first = next(other for other in nodes if other.kind == node.kind)
        return first if first is not node else None
    return None


def own_differences(node: Node, nodes: list[Node]) -> dict[str, tuple[Any, Any]]:
    """What a node's recipe says otherwise than that of `compared_with`; `model` is told by the tree itself."""
    other = compared_with(node, nodes)
    if other is None or not (other.recipe and node.recipe):
        return {}
    return {key: pair for key, pair in recipe_differences(other.recipe, node.recipe).items() if key != "model"}


def chain_recipes(node: Node) -> dict[str, dict[str, Any]]:
    """By phase, the recipes that led to a node: the last pretraining, SFT, DPO or KTO of its ancestors."""
    return {
        "pretraining" if ancestor.kind == "checkpoint" else ancestor.kind: ancestor.recipe
        for ancestor in node.ancestors()
        if ancestor.recipe
    }


def trained_tokens(node: Node) -> dict[str, int]:
    """Tokens by phase and source on the way to a node: of pretraining the last checkpoint's, of others their sum."""
    tokens: dict[str, int] = {}
    for ancestor in node.ancestors():
        if ancestor.kind == "checkpoint":
            tokens = dict(ancestor.tokens)
    for ancestor in node.ancestors():
        if ancestor.kind != "checkpoint":
            for source, count in ancestor.tokens.items():
                name = f"{ancestor.kind}/{source}"
                tokens[name] = tokens.get(name, 0) + count
    return tokens
