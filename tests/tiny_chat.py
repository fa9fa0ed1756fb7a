"""A tokenizer, models and conversations small enough to train on in a second."""

import json
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from genesis_hf.config import Source, TokenizerRecipe
from genesis_hf.tokenizer_training import build_tokenizer

VOCABULARY = 400
WORDS = ["river", "stone", "walks", "under", "assistant", "user", "system", "hello", "there", "answer"]


def make_tokenizer(folder: Path) -> Path:
    """A folder with a SentencePiece tokenizer of 400 pieces."""
    lines = [" ".join(WORDS[i:] + WORDS[:i]) + f" {i}.\n" for i in range(len(WORDS))] * 20
    (folder / "text.txt").write_text("".join(lines) + "A quick brown fox: jumps, over (the) lazy dog!\n" * 20)
    source = Source(name="text", paths=[str(folder / "text.txt")])
    build_tokenizer(TokenizerRecipe(output_dir=str(folder / "made"), vocab_size=VOCABULARY, sources=[source]))
    return folder / "made"


def small_model(tied: bool = True, rows: int = VOCABULARY, hidden_size: int = 24) -> LlamaForCausalLM:
    """A random Llama of one layer, the same one every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=hidden_size, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, pad_token_id=2, eos_token_id=2, bos_token_id=None, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for position, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[position % 2], "content": content})
    return messages


def write_rows(path: Path, rows: list[dict]) -> str:
    """A .jsonl file of rows; its path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def echo_rows(count: int, seed: int) -> list[dict]:
    """Conversations in which the answer repeats the question's words: one can learn them."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(1, 5))
        rows.append({"messages": turns(" ".join(words), " ".join(words))})
    return rows


def hedged_pairs(count: int, seed: int) -> list[dict]:
    """Pairs whose rejected answer begins with a hedge."""
    pairs = []
    for row in echo_rows(count, seed):
        question, answer = row["messages"]
        pairs.append({"prompt": [question], "chosen": [answer], "rejected": f"under stone, {answer['content']}"})
    return pairs
