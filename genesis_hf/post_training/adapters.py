"""Low-rank adapters (Hu et al. 2021, LoRA; Liu et al. 2024, DoRA) through PEFT, and the merged model at the end."""

import shutil
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from genesis_hf.chat import CHAT_TOKENS
from genesis_hf.config import AdapterSettings
from genesis_hf.errors import UserError
from genesis_hf.post_training.processes import put_in_place
from genesis_hf.processes import is_main
from genesis_hf.tokenizer import save_tokenizer
from genesis_hf.training.distributed import launched_with_fsdp

# PEFT sees the rows that it ties only after it has looked for them; and says that checkpoints hold the new embedding.
warnings.filterwarnings("ignore", message="You have requested `ensure_weight_tying`")
warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")


def adapter_config(
    settings: AdapterSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None
) -> LoraConfig | None:
    """PEFT's configuration; None where the recipe asks for full training.

    Args:
        tokenizer: its chat tokens' rows of embedding and output matrix are trained whole, as one where these are tied;
            all other rows stay as they are. None: no row is trained.

    Raises:
        UserError: a launch or setting that adapters don't work with.
    """
    if not settings.use_peft:
        return None
    if launched_with_fsdp():
        raise UserError("use_peft: adapters are small; launch with accelerate_configs/ddp_2gpu.yaml instead of FSDP")
    targets = settings.lora_target_modules
    if isinstance(targets, str):  # of a command line
        targets = targets.strip("[]").replace(",", " ").split()
    if targets != ["all-linear"]:
        refuse_unknown_modules(targets, model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,  # all but the output layer
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        **({} if tokenizer is None else chat_rows(model, tokenizer)),
    )


def chat_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """PEFT's settings that train the chat tokens' rows; none where the vocabulary lacks them."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in CHAT_TOKENS if token in vocabulary]
    if not ids:
        return {}
    tied = model.config.tie_word_embeddings
    layers = {model.get_input_embeddings()} if tied else {model.get_input_embeddings(), model.get_output_embeddings()}
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in layers]
    return {"trainable_token_indices": {name: ids for name in names}, "ensure_weight_tying": tied}


def refuse_unknown_modules(names: list[str], model: PreTrainedModel) -> None:
    """Raise `UserError` unless each name is the last part of some module's, and not the output layer's."""
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in names:
        if name not in modules or name == "lm_head":
            reason = "the output layer gets no adapter" if name == "lm_head" else "the model has no such module"
            raise UserError(f"lora_target_modules: {name!r}: {reason}; leave the key out for all linear ones")


def save_adapter(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the adapter as PEFT's folder, put in place when complete, and merge it into the trainer's model.

    Its base is the model with the chat tokens' rows, so the tokenizer lies beside it. Called on every process.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_main():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial, save_embedding_layers=False)
        save_tokenizer(tokenizer, partial)
        put_in_place(partial, folder)
    trainer.model = trainer.model_wrapped = model.merge_and_unload()
