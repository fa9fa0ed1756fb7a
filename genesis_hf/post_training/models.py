"""Models that come in and go out."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer

from genesis_hf.errors import UserError
from genesis_hf.export import speak_transformers_4
from genesis_hf.files import edit_json
from genesis_hf.tokenizer import save_tokenizer


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder (`export.resolve_model`); never runs code that comes with it.

    Raises:
        UserError: no model that can be read in it.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model {folder}: can't be loaded ({' '.join(str(error).split())[:200]})") from None


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer, chat template and generation config as one folder, put in place when complete.

    It is read by transformers 4.x and 5.x with no code of ours. Called on every process.
    """
    temporary = folder.with_name(f".{folder.name}.saving")
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    (temporary / "training_args.bin").unlink(missing_ok=True)
    edit_json(temporary / "config.json", speak_transformers_4)
    save_tokenizer(tokenizer, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
