"""All style metrics over one model's answers."""

from collections.abc import Sequence
from typing import Any

from genesis_hf.answers import Answer
from genesis_hf.style.hedging import HedgingRate
from genesis_hf.style.length import Length
from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.questions import QuestionRate
from genesis_hf.style.refusal import RefusalRate
from genesis_hf.style.repetition import Repetition
from genesis_hf.style.specificity import Specificity
from genesis_hf.style.stop_rate import StopRate

METRICS: tuple[type[StyleMetric], ...] = (
    StopRate,
    HedgingRate,
    RefusalRate,
    QuestionRate,
    Specificity,
    Repetition,
    Length,
)
FIGURES: tuple[Figure, ...] = tuple(figure for metric in METRICS for figure in metric.figures)


def measure_answers(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Every figure by its name: `value`, `stderr`, `interval`, `n`, `unknown` and `values`, one an answer."""
    columns = {
        "predictions": [answer.answer for answer in answers],
        "stopped": [answer.stopped for answer in answers],
        "tokens": [answer.tokens for answer in answers],
    }
    measured: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        measured |= metric().compute(**{name: columns[name] for name in ("predictions", *metric.inputs)})
    return measured


def measure_style(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """As `measure_answers`, without the answers' own `values`: what a summary holds."""
    return {
        name: {key: value for key, value in measured.items() if key != "values"}
        for name, measured in measure_answers(answers).items()
    }


def style_table(style: dict[str, dict[str, Any]]) -> str:
    """The figures as lines of text with their 95 % intervals, shares in percent."""
    width = max(len(figure.words) for figure in FIGURES)
    lines = []
    for figure in FIGURES:
        measured = style.get(figure.name)
        if measured is not None:
            unknown = f"  unknown for {measured['unknown']}" if measured.get("unknown") else ""
            lines.append(f"{figure.words:{width}}  {value_text(figure, measured['value']):>8}  "
                         f"{interval_text(figure, measured.get('interval')):20}{unknown}".rstrip())  # fmt: skip
    return "\n".join(lines)


def value_text(figure: Figure, value: float | None, sign: bool = False) -> str:
    """`98.3 %` of a share, `41.25` of a number; with a sign, as a difference: `+1.7`, in points for a share."""
    if value is None:
        return "unknown"
    plus = "+" if sign else ""
    if figure.kind == "number":
        return minus(f"{value:{plus},.{1 if abs(value) >= 100 else 2}f}")
    return minus(f"{100 * value:{plus}.1f}") + (" points" if sign else " %")


def interval_text(figure: Figure, interval: Sequence[float] | None, sign: bool = False) -> str:
    """`[91.1, 99.7]`, in the unit of `value_text`; `[?]` where nothing is known about the spread."""
    if interval is None:
        return "[?]"
    ends = (value_text(figure, end, sign).removesuffix(" %").removesuffix(" points") for end in interval)
    return f"[{', '.join(ends)}]"


def minus(text: str) -> str:
    return text.replace("-", "−")
