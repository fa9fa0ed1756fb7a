"""A model of the catalogue → one that answers. Nothing is written into a run; no code and no pickle is loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.checkpoint import restore
from genesis_hf.errors import UserError
from genesis_hf.exporting.source import find_source
from genesis_hf.generate import context_length
from genesis_hf.playground.catalogue import Entry
from genesis_hf.playground.names import HUB_ID
from genesis_hf.post_training.models import load_model, refuse_other_weights
from genesis_hf.tokenizer import load_tokenizer

FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "*.jinja")
"""Of a model on the Hub; what lies in folders beside it (ONNX, GGUF, a training checkpoint) stays there."""


@dataclass(frozen=True)
class Speaker:
    """A model in memory, ready to write."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def chat(self) -> bool:
        """Whether it has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return context_length(self.model)

    def stop_ids(self) -> list[int]:
        """What ends a text: the tokenizer's stop token, and what the model's generation config names."""
        named = self.model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        return sorted({i for i in (self.tokenizer.eos_token_id, *named) if i is not None})


def load_entry(entry: Entry) -> Speaker:
    """The model that an entry of the catalogue names.

    Raises:
        UserError: it can't be read; the line names the entry, not where it lies.
    """
    try:
        return read_speaker(entry.folder or download(entry.key), entry.key)
    except UserError as error:
        line = str(error)
        for path in filter(None, (entry.folder, entry.folder and entry.folder.resolve())):
            line = line.replace(str(path), entry.key)
        raise UserError(line if entry.key in line else f"{entry.key}: {line}") from None


def load_named(name: str) -> Speaker:
    """A model by a name as every phase takes it: a folder, a run directory, a checkpoint or a Hub id with a revision.

    Raises:
        UserError: nothing of that name, or it can't be read.
    """
    if Path(name).exists():
        return read_speaker(Path(name), name)
    if not HUB_ID.fullmatch(name):
        raise UserError(f"model {name}: no such folder, and not the form of a Hub id (owner/name)")
    return read_speaker(download(name), name)


def read_speaker(folder: Path, name: str) -> Speaker:
    """The model of a folder: on the GPU in bf16 where there is one, else in fp32.

    Raises:
        UserError: it can't be read, or model and tokenizer don't fit each other.
    """
    refuse_other_weights(folder)
    source = find_source(folder)
    try:
        model = restore.load_model(source.folder) if source.is_checkpoint() else load_model(source.folder)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"model {source.folder}: can't be loaded ({type(error).__name__}: {reason})") from error
    tokenizer = load_tokenizer(source.tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"model {name}: the tokenizer has {len(tokenizer):,} tokens and the model {model.config.vocab_size:,} rows"
        )
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    return Speaker(name, model.eval(), tokenizer)


def download(name: str) -> Path:
    """The folder of a Hub model, in the Hub client's cache.

    Raises:
        UserError: it isn't there, or it has no safetensors.
    """
    match = HUB_ID.fullmatch(name)
    try:
        folder = Path(
            snapshot_download(
                match["id"], revision=match["revision"], allow_patterns=list(FILES), ignore_patterns=["*/*"]
            )
        )
    except (OSError, HFValidationError) as error:
        raise UserError(f"model {name}: can't be had from the Hub ({str(error).splitlines()[0][:160]})") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model {name}: holds no *.safetensors; other weights may carry code and are not loaded")
    return folder
