"""Continuations of fixed prompts by the live model: how it reads, from evaluation to evaluation."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import PretrainRecipe
from genesis_hf.tokenizer import encode_documents
from genesis_hf.training.metrics import append_json
from genesis_hf.training.step import evaluating


class Samples:
    """Continues `sample_prompts` greedily, so that no random number is drawn; appends to samples.jsonl.

    Every process computes the same forward passes, as sharded models need. There is no KV cache: a prompt and its few
    tokens are read anew for each token, in one batch of a fixed shape.
    """

    def __init__(
        self, recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, device: torch.device, is_main: bool
    ) -> None:
        self.prompts = recipe.sample_prompts
        self.steps = recipe.sample_steps
        self.tokenizer = tokenizer
        self.path = Path(recipe.output_dir) / "samples.jsonl"
        self.is_main = is_main
        room = max(1, recipe.sequence_length - recipe.sample_max_new_tokens)
        # A document begins after EOS, as the model knows it from training.
        encoded = encode_documents(tokenizer, self.prompts)
        ids = [[tokenizer.eos_token_id, *map(int, row)][-room:] for row in encoded]
        self._lengths = torch.tensor([len(row) for row in ids], device=device)
        self._new_tokens = min(recipe.sample_max_new_tokens, recipe.sequence_length - 1)
        width = max(map(len, ids), default=0) + self._new_tokens
        padded = [row + [tokenizer.eos_token_id] * (width - len(row)) for row in ids]
        self._ids = torch.tensor(padded, device=device)

    def due(self, step: int, evaluating: bool) -> bool:
        """Every `sample_steps`; without that key, with each evaluation."""
        return bool(self.prompts) and (evaluating if self.steps is None else step % self.steps == 0)

    def write(self, model: nn.Module, step: int, beat: Callable[[], None] = lambda: None) -> list[str]:
        """A line for each prompt, with its continuation to EOS or `sample_max_new_tokens`."""
        ids, rows = self._ids.clone(), torch.arange(len(self.prompts), device=self._ids.device)
        with evaluating(model):
            for count in range(self._new_tokens):
                last = self._lengths - 1 + count
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=last).logits
                ids[rows, last + 1] = logits[rows, rows].argmax(-1)
                beat()
        texts = []
        for row, length in zip(ids.tolist(), self._lengths.tolist(), strict=True):
            new = row[length : length + self._new_tokens]
            end = new.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in new else len(new)
            texts.append(self.tokenizer.decode(new[:end]))
        if self.is_main:
            pairs = zip(self.prompts, texts, strict=True)
            record = {"step": step, "samples": [{"prompt": prompt, "continuation": text} for prompt, text in pairs]}
            append_json(self.path, record)
        return [f"{prompt} → {text}" for prompt, text in zip(self.prompts, texts, strict=True)]
