"""An exported file as a stranger reads it, and what it answers.

This file imports nothing of this package, for it is also the program that a fresh process runs:
`python -I reading.py FORMAT PATH QUESTIONS.json ANSWERS.npz`. A reader has `batched`, `encode(text)`, `versions()` and
`step(ids, cache)`: ids (batch, length) and the cache that the step before returned (None: from the beginning) → logits
(batch, length, vocabulary) float32 and the next cache.
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

MAX_NEW_TOKENS = 16


@dataclass
class Questions:
    """What both models are asked."""

    rows: list[list[int]]
    """token ids to give logits for"""
    scored: list[int]
    """numbers of the rows that the loss is taken over: those made from text, where there are any"""
    prompts: list[list[int]]
    """token ids to continue greedily"""
    texts: list[str]
    """what the tokenizers encode"""
    vocabulary: int | None = None
    """ids that count: logits of later ones are left out; None: all"""


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
    margins: list[list[float]] = field(default_factory=list)
    """by how much each greedy token's logit leads the next best; empty where that isn't known"""


def answer(reader: Any, questions: Questions) -> Answers:
    """Ask a reader."""
    kept, rows = questions.vocabulary, questions.rows
    logits: dict[int, np.ndarray] = {}
    for group in by_length(reader, rows):
        found, _ = reader.step([rows[number] for number in group], None)
        logits.update(zip(group, found[:, :, :kept], strict=True))
    losses = [token_losses(logits[number][:-1], rows[number][1:]) for number in questions.scored]
    together = np.concatenate([logits.pop(number) for number in range(len(rows))])
    greedy, margins = continuations(reader, questions.prompts, kept)
    token_ids = [reader.encode(text) for text in questions.texts]
    return Answers(together, float(np.concatenate(losses).mean()), greedy, token_ids, margins)


def by_length(reader: Any, rows: Sequence[list[int]]) -> list[list[int]]:
    """Numbers of the rows, those of one length together where the reader can: its weights are then read once."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    groups = [list(group) for _, group in groupby(order, key=lambda number: len(rows[number]))]
    return groups if reader.batched else [[number] for number in order]


def token_losses(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Nats of each target (tokens,), in float64."""
    logits = logits.astype(np.float64)
    highest = logits.max(-1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
    return total - logits[np.arange(len(targets)), targets]


def continuations(
    reader: Any, prompts: Sequence[list[int]], kept: int | None
) -> tuple[list[list[int]], list[list[float]]]:
    """`MAX_NEW_TOKENS` greedy tokens after each prompt through the cache, and their leads; no token stops."""
    new: list[list[int]] = [[] for _ in prompts]
    leads: list[list[float]] = [[] for _ in prompts]
    for group in by_length(reader, prompts):
        ids, cache = [prompts[number] for number in group], None
        for _ in range(MAX_NEW_TOKENS):
            logits, cache = reader.step(ids, cache)
            last = logits[:, -1, :kept]
            best = last.argmax(-1)
            second, first = np.sort(np.partition(last, -2, axis=-1)[:, -2:], axis=-1).T
            for row, number in enumerate(group):
                new[number].append(int(best[row]))
                leads[number].append(float(first[row] - second[row]))
            ids = [[int(token)] for token in best]
    return new, leads


class TransformersReader:
    """A causal language model of transformers, on its device; the CPU, where its weights are read as they are used."""

    batched = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device = "cpu" if model.device.type == "meta" else model.device

    def step(self, ids: list[list[int]], cache: Any) -> tuple[np.ndarray, Any]:
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=torch.tensor(ids, device=self.device), past_key_values=cache, use_cache=True)
        return found.logits.float().cpu().numpy(), found.past_key_values

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def versions(self) -> dict[str, str]:
        import torch
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__}


def read_llama(path: Path) -> TransformersReader:
    """A folder, in fp32; each weight is read from it when the model comes to it.

    Raises:
        ValueError: weights that the model has no place for, or lacks.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, loaded = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map={"": "disk"}, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[what]:
            raise ValueError(f"{what.replace('_', ' ')}: {', '.join(sorted(map(str, loaded[what])))}")
    return TransformersReader(model.eval(), AutoTokenizer.from_pretrained(path))


def read_pt(path: Path) -> TransformersReader:
    """A state dict beside the config and tokenizer of its folder, in fp32; weights are read as in `read_llama`.

    Raises:
        ValueError: names that are not those of the model.
    """
    import torch
    from accelerate import cpu_offload, init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(path.parent)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = torch.load(path, weights_only=True, mmap=True)
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    wrong = state.keys() ^ model.state_dict().keys()
    if wrong:
        raise ValueError(f"missing or unexpected keys: {', '.join(sorted(wrong))}")
    model = cpu_offload(model.eval(), torch.device("cpu"), state_dict=state)
    return TransformersReader(model, AutoTokenizer.from_pretrained(path.parent))


class OnnxReader:
    """ONNX Runtime on the CPU; the tokenizer of the folder above `onnx/`."""

    batched = True

    def __init__(self, path: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.past = {
            found.name: (found.shape[1], found.shape[3])
            for found in self.session.get_inputs()
            if found.name.startswith("past_key_values.")
        }
        self.tokenizer = Tokenizer.from_file(str(path.parents[1] / "tokenizer.json"))

    def step(self, ids: list[list[int]], cache: Any) -> tuple[np.ndarray, Any]:
        batch, length = len(ids), len(ids[0])
        if cache is None:
            cache = {name: np.zeros((batch, heads, 0, size), np.float32) for name, (heads, size) in self.past.items()}
        before = next(iter(cache.values())).shape[2]
        positions = np.broadcast_to(np.arange(before, before + length), (batch, length))
        found = self.session.run(
            None,
            {
                "input_ids": np.array(ids, np.int64),
                "attention_mask": np.ones((batch, before + length), np.int64),
                "position_ids": positions.astype(np.int64),
                **cache,
            },
        )
        names = [output.name for output in self.session.get_outputs()]
        values = dict(zip(names, found, strict=True))
        return values["logits"], {name: values[name.replace("past_key_values", "present")] for name in self.past}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def versions(self) -> dict[str, str]:
        import onnxruntime
        import tokenizers

        return {"onnxruntime": onnxruntime.__version__, "tokenizers": tokenizers.__version__}


class GgufReader:
    """llama.cpp through llama-cpp-python, with an fp32 cache; tokenizer and settings are those of the file alone."""

    batched = False

    def __init__(self, path: Path) -> None:
        import llama_cpp

        threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or None
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=0,
            n_gpu_layers=0,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def step(self, ids: list[list[int]], cache: Any) -> tuple[np.ndarray, Any]:
        (row,) = ids
        if cache is None:
            self.llama.reset()
        before = self.llama.n_tokens
        self.llama.eval(row)
        return np.array(self.llama.scores[None, before : before + len(row)], np.float32), self.llama

    def encode(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode("utf-8", "surrogatepass"), add_bos=False, special=True) if text else []

    def versions(self) -> dict[str, str]:
        import llama_cpp

        return {"llama-cpp-python": llama_cpp.__version__}


READERS = {"llama": read_llama, "pt": read_pt, "onnx": OnnxReader, "gguf": GgufReader}


def main() -> None:
    """The fresh process."""
    kind, path, asked, answered = sys.argv[1:]
    questions = Questions(**json.loads(Path(asked).read_text(encoding="utf-8")))
    reader = READERS[kind](Path(path))
    answers = answer(reader, questions)
    imported = sorted(name for name in sys.modules if name.partition(".")[0] == "genesis_hf")
    if imported:
        raise RuntimeError(f"this process was to know nothing of {imported[0]}")
    rest = {
        "loss": answers.loss,
        "greedy": answers.greedy,
        "token_ids": answers.token_ids,
        "margins": answers.margins,
        "versions": {"python": platform.python_version(), **reader.versions()},
    }
    np.savez(answered, logits=answers.logits, rest=json.dumps(rest))


if __name__ == "__main__":
    main()
