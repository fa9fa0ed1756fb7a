"""Models that come in and go out."""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from genesis_hf.chat_lint import lint_folder
from genesis_hf.errors import UserError
from genesis_hf.export import resolve_model, speak_transformers_4
from genesis_hf.files import edit_json
from genesis_hf.post_training.processes import put_in_place
from genesis_hf.processes import barrier, is_main
from genesis_hf.tokenizer import save_tokenizer
from genesis_hf.training.distributed import checkpoint_as_dtensors

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process that it is one of several."""

EXPORT = "import sys; from genesis_hf.export import resolve_model; resolve_model(sys.argv[1])"


def resolve_together(name: str, training: TrainingArguments) -> Path:
    """`export.resolve_model`, which every process calls; one of them exports or downloads while the others wait.

    Raises:
        UserError: nothing of that name.
    """
    with training.main_process_first(local=False):
        several, folders = training.world_size > 1, (Path(name), Path(name, "final"))
        if several and training.should_save and Path(name).exists() and not any(map(holds_model, folders)):
            # A checkpoint is read with collectives where there is a process group, so that one process alone would
            # wait for ever. A process of its own, which has none, exports; what stands is not exported again.
            export_alone(name)
        return resolve_model(name)


def holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def export_alone(name: str) -> None:
    """`resolve_model` in a process that is none of several; its one line of complaint is raised here."""
    code = f"from genesis_hf.errors import *\nwith report_user_errors():\n    {EXPORT}"
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    child = subprocess.run([sys.executable, "-c", code, name], env=environment, stderr=subprocess.PIPE, text=True)
    if child.returncode:
        raise UserError(child.stderr.strip().rpartition("\n")[2].removeprefix("error: "))


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder (`export.resolve_model`); never runs code that comes with it.

    Tensors that the model has no use for are left out; transformers lists them on stderr.

    Raises:
        UserError: no model that can be read in it, or one that lacks tensors.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {folder}: can't be loaded ({' '.join(str(error).split())[:200]})") from None
    # transformers would draw them at random. Tied weights are not among them.
    if info["missing_keys"]:
        unknown = f"; it has {named(info['unexpected_keys'])} instead" if info["unexpected_keys"] else ""
        raise UserError(
            f"model {folder}: its files lack {named(info['missing_keys'])} of {type(model).__name__}{unknown}; "
            "export or download it again"
        )
    return model


def named(keys: Collection[str]) -> str:
    """The first names of some tensors, and how many more there are."""
    more = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
    return ", ".join(sorted(keys)[:3]) + more


def refuse_other_weights(folder: Path) -> None:
    """Raise `UserError`, with the mend, where all that a folder holds is a LoRA adapter or pickled weights."""
    if any(not path.name.startswith("adapter_") for path in folder.glob("*.safetensors")):
        return
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model {folder}: a LoRA adapter without the model that it belongs to; take the merged one (final/ of the "
            "same run), or merge it: peft.AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload()"
            ".save_pretrained(…)"
        )
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"model {folder}: its weights are pickled (pytorch_model.bin); write them as safetensors: transformers."
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…), or scripts/import_checkpoint.py for those of "
            "other programs"
        )


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer, chat template and generation config as one folder, put in place when complete.

    It is read by transformers 4.x and 5.x with no code of ours. Called on every process; a sharded model is gathered
    in the main one's memory.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        model = whole_model(model, gathered_state(trainer))
    if not is_main():
        barrier()
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    edit_json(partial / "config.json", speak_transformers_4)
    save_tokenizer(tokenizer, partial)
    lint_folder(partial)
    put_in_place(partial, folder)
    barrier()


def gathered_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights of a sharded model, gathered one at a time, on the main process's CPU; {} on the others."""
    checkpoint_as_dtensors(trainer.model, trainer.accelerator)
    state = {}
    for name, tensor in get_model_state_dict(trainer.model).items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main():
            state[name] = whole.cpu()
    return state


def whole_model(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> PreTrainedModel | None:
    """A plain model of the same configuration with this state; None where there is none."""
    if not state:
        return None
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
