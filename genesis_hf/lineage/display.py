"""The tree, and two nodes compared, as text."""

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from genesis_hf.errors import UserError
from genesis_hf.evaluation.compare import comparison
from genesis_hf.evaluation.tables import markdown, plus_minus
from genesis_hf.lineage.differences import chain_recipes, own_differences, recipe_differences, trained_tokens
from genesis_hf.lineage.evaluations import read_evaluation
from genesis_hf.lineage.folders import FORK
from genesis_hf.lineage.nodes import Node
from genesis_hf.lineage.repetition import repetition
from genesis_hf.lineage.tree import Tree

METRICS = ("bits_per_byte", "acc_norm", "exact_match", "acc")
"""Of a task with several metrics the first of these is shown."""

SHOWN_DIFFERENCES = 6
"""Keys of a recipe named in the tree; `diff` names all."""

UNBROKEN = "\N{NO-BREAK SPACE}"

Item = tuple[list[str], list["Item"]]
"""Lines of text, and what hangs from them."""


def tree_text(tree: Tree, width: int = 100) -> str:
    """Every model under what it came from: steps, tokens of each source, what came twice, recipe, evaluations.

    Args:
        width: of the lines in characters; names and headlines are never broken.
    """
    return "\n".join(line for item in items(tree.roots, tree) for line in ["", *draw(item, width)]).strip("\n")


def items(nodes: list[Node], tree: Tree) -> list[Item]:
    """Nodes as items; the checkpoints of a run hang side by side from a line with the run's name."""
    result: list[Item] = []
    for node in nodes:
        if node.kind != "checkpoint":
            result.append(([headline(node), *details(node, tree)], items(node.children, tree)))
            continue
        chain = [other for other in tree.nodes if other.kind == "checkpoint" and other.run == node.run]
        began = f"  [{'fork of' if (node.run / FORK).is_file() else 'from'} {node.start}]" if node.start else ""
        checkpoints = []
        for point in chain:
            branches = [child for child in point.children if child not in chain]
            checkpoints.append(([headline(point), *details(point, tree)], items(branches, tree)))
        result.append(([node.name.rpartition("/")[0] + began], checkpoints))
    return result


def draw(item: Item, width: int) -> Iterator[str]:
    """An item's lines, and its branches below with lines that lead to them."""
    (first, *others), branches = item
    yield first
    for text in others:
        for line in wrap(text, max(40, width - 5), subsequent_indent="  ", break_on_hyphens=False):
            yield f"{'│' if branches else ' '}    {line.replace(UNBROKEN, ' ')}"
    for number, branch in enumerate(branches, 1):
        last = number == len(branches)
        for position, line in enumerate(draw(branch, width - 3)):
            yield f"{('└─ ' if last else '├─ ') if position == 0 else ('   ' if last else '│  ')}{line}"


def headline(node: Node) -> str:
    """`demo/pretrain/step_000000700  checkpoint, 700 steps`"""
    made_of = node.start or "an unknown checkpoint"
    what = {"export": f"export of {made_of}", "model": "model from elsewhere"}.get(node.kind, node.kind)
    steps = f", {node.step:,} steps" if node.step is not None and node.kind != "export" else ""
    missing = "" if node.folder is not None else ", not finished"
    unknown = (
        f", began with {node.start} (not here)" if node.parent is None and node.start and node.kind != "export" else ""
    )
    return f"{node.name}  [{what}{steps}{missing}{unknown}]"


def details(node: Node, tree: Tree) -> Iterator[str]:
    """The lines under a node's headline."""
    if node.tokens:
        total = sum(node.tokens.values())
        shares = [f"{name} {count:,} ({count / max(1, total):.1%})" for name, count in node.tokens.items()]
        yield f"{total:,} tokens: {listed(shares)}; {'; '.join(repetition(node)) or listed(['none twice'])}"
    if node.kind == "checkpoint" and node.figures.get("held_out"):
        bits = [f"{name} {value:.3f}" for name, value in node.figures["held_out"].items()]
        yield f"held-out bits per byte: {listed(bits)}"
    differences = own_differences(node, tree.nodes)
    if differences:
        said = [
            f"{key} {brief(old)} → {brief(new)}" for key, (old, new) in list(differences.items())[:SHOWN_DIFFERENCES]
        ]
        more = len(differences) - len(said)
        yield f"recipe: {listed(said)}{f' and {more} more' if more else ''}"
    for folder in node.evaluations:
        try:
            tasks = read_evaluation(folder).values["tasks"]
        except UserError as error:
            yield f"unreadable: {error}"
            continue
        scores = [f"{task} {score(metrics)}" for task, metrics in tasks.items() if metrics]
        yield f"evaluation: {listed(scores) or 'no scores'}"
    for file, why in node.unreadable.items():
        yield f"unreadable: {file} ({why})"


def listed(parts: list[str]) -> str:
    """Parts with commas, such that a line is broken between them only."""
    return ", ".join(part.replace(" ", UNBROKEN) for part in parts)


def score(metrics: dict[str, dict[str, Any]]) -> str:
    """`acc 0.955 ± 0.015 (chance 0.25)`"""
    name = next((metric for metric in METRICS if metric in metrics), next(iter(metrics)))
    figure = metrics[name]
    chance = f" (chance {figure['chance']:.3g})" if figure.get("chance") is not None else ""
    return f"{name} {plus_minus(figure['value'], figure.get('stderr'))}{chance}"


def brief(value: Any) -> str:
    """A value of a recipe in a few characters."""
    text = {type(None): "–", dict: "…"}.get(type(value)) or str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def diff_text(a: Node, b: Node) -> str:
    """What led to two models, and how they score: recipes by phase, tokens by source, evaluations against the first."""
    parts = [f"A  {headline(a)}\nB  {headline(b)}", ancestry(a, b)]
    recipes = chain_recipes(a), chain_recipes(b)
    for phase in dict.fromkeys([*recipes[0], *recipes[1]]):
        if phase not in recipes[0] or phase not in recipes[1]:
            parts.append(f"{phase}: only {'A' if phase in recipes[0] else 'B'} has it")
            continue
        found = recipe_differences(recipes[0][phase], recipes[1][phase])
        lines = [f"  {key}: {brief(old)} → {brief(new)}" for key, (old, new) in found.items()]
        parts.append("\n".join([f"recipe of {phase}" + (":" if lines else ": the same"), *lines]))
    parts.append(token_table(a, b))
    evaluated = [node.evaluations[0] for node in (a, b) if node.evaluations]
    if len(evaluated) == 2:
        parts.append(markdown(comparison([read_evaluation(folder) for folder in evaluated])))
    else:
        without = ", ".join(name for name, node in (("A", a), ("B", b)) if not node.evaluations)
        parts.append(f"evaluations: none of {without}; scripts/evaluate.py --model makes one")
    return "\n\n".join(parts)


def ancestry(a: Node, b: Node) -> str:
    """What two nodes have in common."""
    shared = [node for node in a.ancestors() if node in b.ancestors()]
    return f"both come from {shared[-1].name}" if shared else "they have no ancestor in common here"


def token_table(a: Node, b: Node) -> str:
    """Tokens of each source on the way to two nodes."""
    tokens = trained_tokens(a), trained_tokens(b)
    names = list(dict.fromkeys([*tokens[0], *tokens[1]]))
    width = max([len(name) for name in names] + [6])
    lines = [f"{'tokens':{width}} {'A':>16} {'B':>16} {'B - A':>16}"]
    for name in names:
        one, other = (side.get(name, 0) for side in tokens)
        lines.append(f"{name:{width}} {one:16,} {other:16,} {other - one:+16,}")
    return "\n".join(lines)
