"""What the style metrics share: modules of the `evaluate` library whose figures come with an interval."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import evaluate
import numpy as np
from datasets import Features, Value

from genesis_hf.style.intervals import student, wilson
from genesis_hf.uncertainty import standard_error

INPUTS = """
Args:
    predictions (list of str): the answers.
Returns:
    for each figure of the module its `value` (the mean), `stderr`, `interval` (95 %; None where the sample says nothing
    about its spread), `n` (answers measured), `unknown` (answers that it can't be measured on) and `values`, one an
    answer, None where unknown.
"""


@dataclass(frozen=True)
class Figure:
    """One number an answer, and what its mean is called."""

    name: str
    words: str
    kind: Literal["share", "ratio", "number"]
    """share: each answer is 0 or 1; ratio: between 0 and 1; both are shown in percent."""


class StyleMetric(evaluate.Metric, ABC):
    """A metric over answers. Abstract, so that `evaluate.load` finds the class derived from it."""

    description: str
    citation: str = ""
    figures: tuple[Figure, ...]
    inputs: dict[str, str] = {}
    """What an answer has beside its text, by the name of its Arrow type."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **settings: Any) -> None:
        super().__init__(config_name, keep_in_memory and settings.get("num_process", 1) == 1, **settings)

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": "string", **self.inputs}
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=INPUTS,
            features=Features({name: Value(kind) for name, kind in columns.items()}),
        )

    @abstractmethod
    def measure(self, answer: str, **inputs: Any) -> dict[str, float | None]:
        """The figures of one answer by their names; None where one can't be measured."""

    def _compute(self, predictions: Sequence[str], **inputs: Sequence[Any]) -> dict[str, dict[str, Any]]:
        rows = [
            self.measure(answer, **{name: column[i] for name, column in inputs.items()})
            for i, answer in enumerate(predictions)
        ]
        return {figure.name: summarize(figure, [row[figure.name] for row in rows]) for figure in self.figures}


def summarize(figure: Figure, values: Sequence[float | None]) -> dict[str, Any]:
    """The mean of the known values with standard error and 95 % interval: Wilson's for a share, else Student's.

    No figure can be below 0, nor a ratio above 1, so no interval goes there.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    interval = None
    if len(known) and figure.kind == "share":
        interval = wilson(float(known.sum()), len(known))
    elif ends := student(known):
        interval = max(0.0, ends[0]), min(1.0, ends[1]) if figure.kind == "ratio" else ends[1]
    return {
        "value": float(known.mean()) if len(known) else None,
        "stderr": standard_error(known),
        "interval": list(interval) if interval else None,
        "n": len(known),
        "unknown": len(values) - len(known),
        "values": [None if value is None else float(value) for value in values],
    }
