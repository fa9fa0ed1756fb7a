"""What is written for a format, and how far each file's answers may lie from the live model's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.errors import UserError
from genesis_hf.exporting.gguf import find_converter, write_gguf
from genesis_hf.exporting.onnx import check_onnx, write_onnx
from genesis_hf.exporting.state_dict import write_state_dict
from genesis_hf.parity import TOLERANCE, Answers, differences, disagreements

FORMATS = ("llama", "onnx", "gguf", "pt")


@dataclass(frozen=True)
class Bounds:
    """How far answers may lie apart."""

    logits: float
    """largest difference of a logit, in parts of the live model's largest (at least of 1)"""
    loss: float | None = None
    """nats a token; where set, weights are rounded: greedy text and the best token are counted, not required"""


OTHER_RUNTIME = Bounds(1e-4)
"""fp32 in ONNX Runtime and llama.cpp, which sum in other orders."""

BOUNDS = {
    "onnx float32": OTHER_RUNTIME,
    "onnx float16": Bounds(0.05, 0.01),
    "gguf f32": OTHER_RUNTIME,
    "gguf f16": Bounds(0.05, 0.01),
    "gguf q8_0": Bounds(0.5, 0.05),  # small random weights, scaled up, move logits by a quarter of the largest
}


@dataclass(frozen=True)
class Written:
    """A file to be compared."""

    name: str
    """as in `formats_compared` of the report"""
    path: Path
    kind: str
    """its reader, of `genesis_hf.exporting.reading.READERS`"""


def check_formats(formats: list[str], llama_cpp: str | None) -> None:
    """Raise `UserError` unless all that the formats need is there."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"formats: unknown format {name!r}; known: {', '.join(FORMATS)}")
    if "onnx" in formats:
        check_onnx()
    if "gguf" in formats:
        find_converter(llama_cpp)


def write_formats(folder: Path, formats: list[str], llama_cpp: str | None) -> list[Written]:
    """Write the formats from the Llama folder's weights, and take those away where `llama` is not asked for."""
    written = [Written("llama", folder, "llama")]
    if "pt" in formats:
        written.append(Written("pt", write_state_dict(folder), "pt"))
    if "onnx" in formats:
        written += [Written(f"onnx {dtype}", path, "onnx") for dtype, path in write_onnx(folder).items()]
    if "gguf" in formats:
        files = write_gguf(folder, find_converter(llama_cpp))
        written += [Written(f"gguf {dtype}", path, "gguf") for dtype, path in files.items()]
    return written


def drop_llama(folder: Path) -> None:
    """Remove the Llama weights; config and tokenizer stay, which the other formats' readers use."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()


def judge(name: str, expected: Answers, found: Answers) -> tuple[dict[str, Any], list[str]]:
    """Figures of a file against the live model's answers, and what is wrong with it in words."""
    figures = differences(expected, found)
    bounds = BOUNDS.get(name)
    if bounds is None:  # the same library computes the same weights
        return {**figures, "tolerance": TOLERANCE}, disagreements(figures)
    tolerance = bounds.logits * max(1.0, float(np.abs(expected.logits).max()))
    if bounds.loss is None:
        return {**figures, "tolerance": tolerance}, disagreements(figures, tolerance)
    required = {**figures, "greedy_parting_lead": 0.0}
    wrong = disagreements(required, tolerance)
    if not abs(figures["loss_exported"] - figures["loss_live"]) <= bounds.loss:
        wrong.append(
            f"loss is {figures['loss_exported']:.4f} against {figures['loss_live']:.4f} nats "
            f"(rounding alone: within {bounds.loss})"
        )
    return {**figures, "tolerance": tolerance, "loss_tolerance": bounds.loss}, wrong
