"""Does a model read back from its folder compute what the live model computed?

`probe` puts the same questions to any causal language model, `disagreements` compares two sets of answers. This
file imports nothing of this package, for it is also the program that a fresh process runs to read an export as a
stranger would: `python -I parity.py FOLDER QUESTIONS.json ANSWERS.npz`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-5
"""Largest difference of a logit between two fp32 computations with the same weights."""

ROW_LENGTH = 128
"""Tokens in a row of questions: long enough for a wrong RoPE θ to show, short enough for a 1B model on a CPU."""

MAX_TEXT_ROWS = 6
PROMPT_LENGTH = 8
MAX_NEW_TOKENS = 16


@dataclass
class Questions:
    """What both models are asked."""

    rows: list[list[int]]
    """token ids to give logits for, a forward pass each"""
    scored: list[int]
    """numbers of the rows that the loss is taken over: those made from text, where there are any"""
    prompts: list[list[int]]
    """token ids to continue greedily"""
    texts: list[str]
    """what the tokenizers encode"""


@dataclass
class Answers:
    """What one model answered."""

    logits: np.ndarray
    """(tokens of all rows, vocabulary) float32"""
    loss: float
    """mean nats per predicted token over the scored rows"""
    greedy: list[list[int]]
    """the new tokens after each prompt"""
    token_ids: list[list[int]]
    """each text's ids, without special tokens added"""


def make_questions(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, context: int, texts: Sequence[str], held_out: Sequence[str]
) -> Questions:
    """Two rows of random ids (every row of the embedding may come up) and rows of text, cut to `ROW_LENGTH`.

    Args:
        vocab_size: rows of the model's embedding.
        context: positions the model knows.
        texts: what the tokenizers are compared on; the rows of text, too, where there is no held-out text.
        held_out: text that the model wasn't trained on.
    """
    length = min(ROW_LENGTH, context)
    generator = np.random.default_rng(0)
    random_rows = generator.integers(0, vocab_size, (2, length)).tolist()
    source = held_out or [" ".join(texts)]
    text_rows = [row[:length] for row in encode(tokenizer, source) if len(row) > 1][:MAX_TEXT_ROWS]
    prompts = [row[: min(PROMPT_LENGTH, length // 2)] for row in [*text_rows, *random_rows]]
    rows = [*text_rows, *random_rows]
    return Questions(rows, list(range(len(text_rows) or len(rows))), prompts, list(texts))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@torch.inference_mode()
def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Questions) -> Answers:
    """Ask a model, in evaluation mode and on the device where it is."""
    logits, losses = [], []
    for number, row in enumerate(questions.rows):
        ids = torch.tensor([row], device=model.device)
        answer = model(input_ids=ids, use_cache=False).logits[0].float()
        logits.append(answer.cpu().numpy())
        if number in questions.scored:
            losses.append(functional.cross_entropy(answer[:-1], ids[0, 1:], reduction="none"))
    greedy = []
    for prompt in questions.prompts:
        ids = torch.tensor([prompt], device=model.device)
        # No stop token: a stop would hide what follows it.
        new = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        greedy.append(new[0, len(prompt) :].tolist())
    loss = torch.cat(losses).double().mean().item()
    return Answers(np.concatenate(logits), loss, greedy, encode(tokenizer, questions.texts))


def probe_in_fresh_process(folder: Path, questions: Questions) -> tuple[Answers, dict[str, str]]:
    """Answers of the model in `folder`, read in fp32 by a process that has nothing but the public libraries.

    Returns:
        the answers, and the versions of Python, torch and transformers that gave them.

    Raises:
        RuntimeError: the folder can't be read so; the text is the end of the reason given.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary, "questions.json"), Path(temporary, "answers.npz")
        asked.write_text(json.dumps(asdict(questions)), encoding="utf-8")
        # -I: neither the current folder nor PYTHONPATH is searched, so our package is not simply found.
        program = [sys.executable, "-I", __file__, str(folder.resolve()), str(asked), str(answered)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(program, cwd=temporary, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        with np.load(answered) as file:
            rest = json.loads(str(file["rest"]))
            return Answers(file["logits"], rest["loss"], rest["greedy"], rest["token_ids"]), rest["versions"]


def differences(expected: Answers, found: Answers) -> dict[str, Any]:
    """Figures of how far two models' answers lie apart (logits absolute, losses in nats per token)."""
    if expected.logits.shape != found.logits.shape:
        raise ValueError(f"logits have shapes {expected.logits.shape} and {found.logits.shape}")
    pairs = list(zip(expected.token_ids, found.token_ids, strict=True))
    greedy = list(zip(expected.greedy, found.greedy, strict=True))
    return {
        "max_logit_difference": float(np.abs(expected.logits - found.logits).max()),
        "top1_agreement": float((expected.logits.argmax(-1) == found.logits.argmax(-1)).mean()),
        "loss_live": expected.loss,
        "loss_exported": found.loss,
        "greedy_same": sum(one == other for one, other in greedy),
        "greedy_prompts": len(greedy),
        "tokenizer_same": sum(one == other for one, other in pairs),
        "tokenizer_texts": len(pairs),
        "tokens_compared": len(expected.logits),
    }


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
    if figures["greedy_same"] < figures["greedy_prompts"]:
        wrong = figures["greedy_prompts"] - figures["greedy_same"]
        found.append(f"greedy text differs after {wrong} of {figures['greedy_prompts']} prompts")
    return found


def main() -> None:
    """The fresh process."""
    folder, asked, answered = sys.argv[1:]
    questions = Questions(**json.loads(Path(asked).read_text(encoding="utf-8")))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = probe(model, tokenizer, questions)
    imported = sorted(name for name in sys.modules if name.partition(".")[0] == "genesis_hf")
    if imported:
        raise RuntimeError(f"this process was to know nothing of {imported[0]}")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    rest = {"loss": answers.loss, "greedy": answers.greedy, "token_ids": answers.token_ids, "versions": versions}
    np.savez(answered, logits=answers.logits, rest=json.dumps(rest))


if __name__ == "__main__":
    main()
