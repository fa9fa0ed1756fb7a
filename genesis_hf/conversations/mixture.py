"""Sources in the proportions that a recipe names, and what came of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from genesis_hf.config import ConversationSource
from genesis_hf.conversations.rows import Row, read_rows
from genesis_hf.errors import UserError


def read_mixture(sources: Sequence[ConversationSource], seed: int) -> list[tuple[str, list[tuple[str, Row]]]]:
    """The rows of each source by its name, drawn as its `num_examples` or `weight` says.

    Weighted sources give as many rows as their proportions allow with none drawn twice.

    Raises:
        UserError: a source is unreadable or has fewer rows than asked for; a name stands twice.
    """
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise UserError(f"the mixture holds a name twice: {', '.join(names)}")
    rows = [read_rows(source) for source in sources]
    weighted = [len(r) / s.weight for s, r in zip(sources, rows, strict=True) if s.weight is not None]
    drawn = []
    for source, available in zip(sources, rows, strict=True):
        count = len(available)
        if source.num_examples is not None:
            count = source.num_examples
        elif source.weight is not None:
            count = int(min(weighted) * source.weight + 1e-9)
        if count > len(available):
            raise UserError(f"source {source.name!r}: num_examples is {count:,}, but it has {len(available):,} rows")
        numbers = range(len(available))
        if count < len(available):
            numbers = random.Random(f"{seed} {source.name}").sample(numbers, count)
        drawn.append((source.name, [available[number] for number in numbers]))
    return drawn


@dataclass
class SourceReport:
    """What a source of the mixture came to."""

    name: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    first_fault: str | None = None
    """The first row that was dropped, and why."""

    def drop(self, reason: str, where: str) -> None:
        """Count a row that isn't used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.first_fault = self.first_fault or f"{where}: {reason}"


def mixture_table(reports: Sequence[SourceReport]) -> str:
    """Source, examples, tokens, trained tokens, their shares, and what was dropped and why."""
    total = sum(report.trained_tokens for report in reports)
    lines = [f"{'source':20} {'examples':>9} {'tokens':>12} {'trained':>12} {'trained %':>9} {'share %':>8}  dropped"]
    for report in reports:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none"
        lines.append(
            f"{report.name:20} {report.examples:9,} {report.tokens:12,} {report.trained_tokens:12,} "
            f"{report.trained_tokens / report.tokens:9.1%} {report.trained_tokens / total:8.1%}  {dropped}"
        )
    if len(reports) > 1:
        tokens = sum(report.tokens for report in reports)
        lines.append(
            f"{'all':20} {sum(r.examples for r in reports):9,} {tokens:12,} {total:12,} {total / tokens:9.1%} "
            f"{1:8.1%}  {sum(sum(r.dropped.values()) for r in reports):,}"
        )
    return "\n".join(lines)
