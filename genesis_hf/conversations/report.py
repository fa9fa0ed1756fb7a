"""What came of a mixture, as a table that is printed before training."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class SourceReport:
    """What a source of the mixture came to."""

    name: str
    rows: int = 0
    """Looked at to find the examples."""
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    """Examples that were too long and lost their end."""
    cut_tokens: int = 0
    """What they lost."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that gave no example, by reason."""
    faults: dict[str, str] = field(default_factory=dict)
    """The first row of each reason."""

    def drop(self, reason: str, where: str) -> None:
        """Count a row that isn't used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.faults.setdefault(reason, where)


def mixture_table(reports: Sequence[SourceReport]) -> str:
    """Source, examples, tokens, trained tokens, their shares, and what was dropped or cut and why."""
    width = max(6, *(len(report.name) for report in reports))
    total = sum(report.trained_tokens for report in reports)
    lines = [
        f"{'source':{width}} {'rows':>9} {'examples':>9} {'tokens':>12} {'trained':>12} {'trained %':>9} {'share %':>8}"
        "  dropped, cut"
    ]
    for report in [*reports, whole(reports)] if len(reports) > 1 else reports:
        lost = [f"{count:,} {reason}" for reason, count in report.dropped.items()]
        if report.cut:
            lost.append(f"{report.cut:,} cut by {report.cut_tokens:,} tokens")
        lines.append(
            f"{report.name:{width}} {report.rows:9,} {report.examples:9,} {report.tokens:12,} "
            f"{report.trained_tokens:12,} {report.trained_tokens / report.tokens:9.1%} "
            f"{report.trained_tokens / total:8.1%}  {', '.join(lost) or 'none'}"
        )
    lines += [
        f"  {report.name}: {reason}, first {where}" for report in reports for reason, where in report.faults.items()
    ]
    return "\n".join(lines)


def whole(reports: Sequence[SourceReport]) -> SourceReport:
    """The sums of all sources."""
    numbers = ("rows", "examples", "tokens", "trained_tokens", "cut", "cut_tokens")
    together = SourceReport("all", **{name: sum(getattr(report, name) for report in reports) for name in numbers})
    for report in reports:
        for reason, count in report.dropped.items():
            together.dropped[reason] = together.dropped.get(reason, 0) + count
    return together
