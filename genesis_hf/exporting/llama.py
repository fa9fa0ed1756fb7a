"""A model as a plain `model_type: llama` folder, which needs no code of ours."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.chat import MAX_UNUSED_ROWS
from genesis_hf.errors import UserError
from genesis_hf.exporting.live import LiveModel
from genesis_hf.files import edit_json
from genesis_hf.tokenizer import save_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write_llama_folder(
    model: PreTrainedModel | LiveModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    generation_config: GenerationConfig | None = None,
) -> None:
    """Write a model whose state-dict keys are Llama's, with its tokenizer, as a plain `model_type: llama` folder.

    The tokenizer is the authority on which ids end and pad a text, where no `generation_config` is given. Tied weights
    are stored once; weights beyond `max_shard_size` are spread over several files.
    """
    eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    pad = eos if pad is None else pad
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
        values.pop(key, None)
    config = LlamaConfig(**{**values, "eos_token_id": eos, "pad_token_id": pad, "bos_token_id": bos})
    with torch.device("meta"):  # the weights come from the state dict: none are drawn, none are held twice
        llama = LlamaForCausalLM(config)
    weights = model.state_dict()
    names = [name for name in weights if not (config.tie_word_embeddings and name == "lm_head.weight")]
    state = {name: weights[name].detach().to(dtype) for name in names}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama.load_state_dict(state, strict=True, assign=True)
    llama.tie_weights()
    llama.generation_config = generation_config or GenerationConfig(
        eos_token_id=eos, pad_token_id=pad, bos_token_id=bos
    )
    llama.save_pretrained(folder, max_shard_size=max_shard_size)
    for path in folder.glob("*.safetensors"):  # which safetensors lets their owner alone read
        shutil.copymode(folder / "config.json", path)
    edit_json(folder / "config.json", speak_transformers_4)
    save_tokenizer(tokenizer, folder)

    def mend(settings: dict[str, Any]) -> None:
        if isinstance(settings.get("extra_special_tokens"), list):  # 4.x expects a mapping under this name
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        if tokenizer.chat_template:  # older 4.x and transformers.js look for it here, not in a file of its own
            settings["chat_template"] = tokenizer.chat_template

    edit_json(folder / "tokenizer_config.json", mend)


def speak_transformers_4(config: dict[str, Any]) -> None:
    """Add what transformers 4.x reads: without these it silently takes θ = 10,000 and fp32."""
    rope = config["rope_parameters"]
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["torch_dtype"] = config["dtype"]


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerFast, vocab_size: int, folder: Path) -> None:
    """Raise `UserError` unless every id has a row of the embedding and few rows are without an id."""
    ids = max(tokenizer.get_vocab().values()) + 1
    if ids > vocab_size or vocab_size - ids > MAX_UNUSED_ROWS:
        raise UserError(
            f"{folder}: this tokenizer has {ids:,} ids and the model {vocab_size:,}; "
            "give the tokenizer that the model was trained with"
        )
