"""What is written for a format, and how far each file's answers may lie from the live model's."""

from collections.abc import Mapping
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
    divergence: float | None = None
    """nats a token, mean (`divergence`); where set, weights are rounded: greedy text and the best token are counted,
    not required"""


OTHER_RUNTIME = Bounds(3e-5)
"""fp32 in ONNX Runtime and llama.cpp, which sum in other orders: that moves logits by 2e-6 of the largest, and a norm
epsilon of 1e-6 in place of 1e-5 by 1.3e-4."""

HALF = Bounds(0.05, 1e-3)
"""Rounding to fp16 diverges by 4e-6 in trained models and by 8e-5 in random ones, whose logits were scaled up."""

EIGHT_BITS = Bounds(0.5, 0.03)
"""Rounding to q8_0 diverges by 0.0002 to 0.002 in trained models, and by 0.017 in random ones, whose logits it moves by
0.28 of the largest. A θ of half the right one diverges by 0.01 to 0.1: see `FROM_HALF`."""

FROM_HALF = 10_000
"""q8_0 diverges by 500 to 900 times what f16 does, in random and in trained models. Where the f16 file of the same
export is known, q8_0 may diverge by so many times as much, at least by `LEAST` and at most by its bound."""

LEAST = 0.005

BOUNDS = {
    "onnx float32": OTHER_RUNTIME,
    "onnx float16": HALF,
    "gguf f32": OTHER_RUNTIME,
    "gguf f16": HALF,
    "gguf q8_0": EIGHT_BITS,
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


def judge(
    name: str, expected: Answers, found: Answers, judged: Mapping[str, dict[str, Any]] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Figures of a file against the live model's answers, and what is wrong with it in words.

    Args:
        judged: figures of the files of the same export that were judged before, by their names.
    """
    figures = differences(expected, found)
    bounds = BOUNDS.get(name)
    if bounds is None:  # the same library computes the same weights
        return {**figures, "tolerance": TOLERANCE}, disagreements(figures)
    tolerance = bounds.logits * max(1.0, float(np.abs(expected.logits).max()))
    if bounds.divergence is None:
        return {**figures, "tolerance": tolerance}, disagreements(figures, tolerance)
    wrong = disagreements({**figures, "greedy_parting_lead": 0.0}, tolerance)
    apart, bound = divergence(expected.logits, found.logits), bounds.divergence
    if name == "gguf q8_0" and "gguf f16" in (judged or {}):
        bound = min(bound, max(LEAST, FROM_HALF * judged["gguf f16"]["divergence"]))
    if not apart <= bound:  # NaN is wrong
        wrong.append(f"diverges by {apart:.3g} nats a token (rounding alone: within {bound:.2g})")
    return {**figures, "tolerance": tolerance, "divergence": apart, "divergence_tolerance": bound}, wrong


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the next token's distribution from the live model's, nats a token.

    Unlike a difference of losses it can't cancel out, and unlike a single logit's it is no matter of the worst.

    Args:
        expected, found: logits (tokens, vocabulary).
    """
    total = 0.0
    for live, other in zip(expected, found, strict=True):  # row by row: fp64 of all would be gigabytes
        live, other = (log_softmax(row.astype(np.float64)) for row in (live, other))
        total += float((np.exp(live) * (live - other)).sum())
    return total / len(expected)


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row - row.max()
    return row - np.log(np.exp(row).sum())
