"""Documents whose every token is another one, so that a test can account for each."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = 6000


def word_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """`w17` is id 17; `</s>` is the last."""
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    backend = Tokenizer(models.WordLevel({**vocabulary, "<unk>": WORDS, "</s>": WORDS + 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=10**9
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def documents_of(lengths: list[int], first: int = 0) -> list[str]:
    """Documents of so many tokens, no token in two of them."""
    documents = []
    for length in lengths:
        documents.append(" ".join(f"w{i}" for i in range(first, first + length)))
        first += length
    assert first <= WORDS
    return documents


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)
