"""Style measured, not felt: metrics of the `evaluate` library over a chat model's answers, before and after."""

from genesis_hf.style.hedging import HedgingRate
from genesis_hf.style.length import Length
from genesis_hf.style.measures import measure_answers, measure_style, style_table
from genesis_hf.style.questions import QuestionRate
from genesis_hf.style.refusal import RefusalRate
from genesis_hf.style.repetition import Repetition
from genesis_hf.style.specificity import Specificity
from genesis_hf.style.stop_rate import StopRate

__all__ = [
    "HedgingRate",
    "Length",
    "QuestionRate",
    "RefusalRate",
    "Repetition",
    "Specificity",
    "StopRate",
    "measure_answers",
    "measure_style",
    "style_table",
]
