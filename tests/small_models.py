"""A byte tokenizer and random models, made in a moment."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from genesis_hf import GenesisConfig, GenesisForCausalLM


def byte_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerFast:
    """Ids 0…255 are GPT-2's byte letters, 256 is `</s>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    (folder / "tokenizer.model").write_bytes(b"a SentencePiece model")
    return tokenizer


def random_model(tied: bool, **changes: object) -> GenesisForCausalLM:
    torch.manual_seed(0)
    config = GenesisConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": tied,
            **changes,
        }
    )
    model = GenesisForCausalLM(config).eval()
    with torch.no_grad():  # far from where training starts, so that attention looks at positions
        for weight in model.parameters():
            weight.mul_(4)
    return model
