"""Does a model read back from its files compute what the live model computed?

`probe` puts the same questions to any causal language model, `probe_in_fresh_process` to a file of any format that is
exported (`genesis_hf.exporting.reading`); `disagreements` compares two sets of answers.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from genesis_hf.exporting import reading
from genesis_hf.exporting.live import RETURNED_FROM
from genesis_hf.exporting.reading import MAX_NEW_TOKENS as MAX_NEW_TOKENS
from genesis_hf.exporting.reading import Answers, Questions, TransformersReader, answer

TOLERANCE = 1e-5
"""Largest difference of a logit between two fp32 computations with the same weights."""

ROW_LENGTH = 128
"""Tokens in a row of questions: long enough for a wrong RoPE θ to show, short enough for a 1B model on a CPU."""

MAX_TEXT_ROWS = 6
PROMPT_LENGTH = 8
PROMPTS = 20


def make_questions(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, context: int, texts: Sequence[str], held_out: Sequence[str]
) -> Questions:
    """Two rows of random ids (every row of the embedding may come up) and rows of text, cut to `ROW_LENGTH`.

    Args:
        vocab_size: rows of the model's embedding, or as many of the first as the export keeps.
        context: positions the model knows.
        texts: what the tokenizers are compared on; the rows of text, too, where there is no held-out text.
        held_out: text that the model wasn't trained on.
    """
    length = min(ROW_LENGTH, context)
    generator = np.random.default_rng(0)
    random_rows = generator.integers(0, vocab_size, (2, length)).tolist()
    source = held_out or [" ".join(texts)]
    text_rows = [row[:length] for row in encode(tokenizer, source) if len(row) > 1][:MAX_TEXT_ROWS]
    rows = [*text_rows, *random_rows]
    prompts = cut_prompts(rows, min(PROMPT_LENGTH, length // 2))
    return Questions(rows, list(range(len(text_rows) or len(rows))), prompts, list(texts), vocab_size)


def cut_prompts(rows: list[list[int]], size: int) -> list[list[int]]:
    """The beginnings of the rows, then what follows them, until there are `PROMPTS`; the first may be shorter."""
    prompts = [row[:size] for row in rows]
    for start in range(size, max(map(len, rows)), size):
        prompts += [row[start : start + size] for row in rows if len(row) >= start + size]
    return prompts[:PROMPTS]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Questions) -> Answers:
    """Ask a model, in evaluation mode and on the device where it is."""
    return answer(TransformersReader(model, tokenizer), questions)


def probe_in_fresh_process(path: Path, questions: Questions, kind: str = "llama") -> tuple[Answers, dict[str, str]]:
    """Answers of an exported file, computed in fp32 by a process that has nothing but the public libraries.

    Args:
        path: a Llama folder, or a file of another kind.
        kind: one of `genesis_hf.exporting.reading.READERS`.

    Returns:
        the answers, and the versions of Python and the libraries that gave them.

    Raises:
        RuntimeError: the file can't be read so; the text is the end of the reason given.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary, "questions.json"), Path(temporary, "answers.npz")
        asked.write_text(json.dumps(asdict(questions)), encoding="utf-8")
        # -I: neither the current folder nor PYTHONPATH is searched, so our package is not simply found.
        program = [sys.executable, "-I", reading.__file__, kind, str(path.resolve()), str(asked), str(answered)]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MALLOC_MMAP_THRESHOLD_": str(RETURNED_FROM),
        }
        done = subprocess.run(program, cwd=temporary, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        with np.load(answered) as file:
            rest = json.loads(str(file["rest"]))
            logits = file["logits"]
        versions = rest.pop("versions")
        return Answers(logits, **rest), versions


def differences(expected: Answers, found: Answers) -> dict[str, Any]:
    """Figures of how far two models' answers lie apart (logits absolute, losses in nats per token)."""
    pairs = list(zip(expected.token_ids, found.token_ids, strict=True))
    greedy = list(zip(expected.greedy, found.greedy, strict=True))
    leads = [parting_lead(expected, number, other) for number, (one, other) in enumerate(greedy) if one != other]
    return {
        **logit_differences(expected, found),
        "loss_live": expected.loss,
        "loss_exported": found.loss,
        "greedy_same": sum(one == other for one, other in greedy),
        "greedy_prompts": len(greedy),
        "greedy_parting_lead": max(leads, default=0.0),
        "tokenizer_same": sum(one == other for one, other in pairs),
        "tokenizer_texts": len(pairs),
        "tokens_compared": len(expected.logits),
    }


def logit_differences(expected: Answers, found: Answers) -> dict[str, float]:
    if expected.logits.shape != found.logits.shape:
        raise ValueError(f"logits have shapes {expected.logits.shape} and {found.logits.shape}")
    return {
        "max_logit_difference": float(np.abs(expected.logits - found.logits).max()),
        "top1_agreement": float((expected.logits.argmax(-1) == found.logits.argmax(-1)).mean()),
    }


def parting_lead(expected: Answers, prompt: int, other: list[int]) -> float:
    """By how much the live model preferred its token to any other where a greedy text parts from its own.

    Between two tokens that are all but equal, the order of summation decides. Infinite where it isn't known.
    """
    if not expected.margins:
        return float("inf")
    part = next(i for i, (one, two) in enumerate(zip(expected.greedy[prompt], other, strict=True)) if one != two)
    return expected.margins[prompt][part]


def disagreements(figures: dict[str, Any], tolerance: float = TOLERANCE) -> list[str]:
    """What is wrong with an export, in words; empty where it computes what the live model computes."""
    found = []
    if figures["tokenizer_same"] < figures["tokenizer_texts"]:
        wrong = figures["tokenizer_texts"] - figures["tokenizer_same"]
        found.append(f"the tokenizers differ on {wrong} of {figures['tokenizer_texts']} texts")
    # Written so that NaN fails.
    if not figures["max_logit_difference"] <= tolerance:
        found.append(
            f"logits differ by up to {figures['max_logit_difference']:.3g} (tolerance {tolerance:g}), "
            f"top-1 agreement is {figures['top1_agreement']:.1%}, "
            f"loss {figures['loss_exported']:.4f} against {figures['loss_live']:.4f} nats"
        )
    if figures["greedy_parting_lead"] > 2 * tolerance:
        wrong = figures["greedy_prompts"] - figures["greedy_same"]
        found.append(f"greedy text differs after {wrong} of {figures['greedy_prompts']} prompts")
    return found
