"""What is exported: a checkpoint of a run, or a plain Llama folder that was exported, imported or fine-tuned before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import OffloadedWeightsLoader
from safetensors import safe_open
from transformers import GenerationConfig, LlamaConfig

from genesis_hf.checkpoint.folders import complete_checkpoints, find_checkpoint
from genesis_hf.errors import UserError
from genesis_hf.exporting.live import LiveModel, read_live
from genesis_hf.files import file_sha256, folder_sha256, read_json
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM

WEIGHTS = ("config.json", "*.safetensors")
TOKENIZER = ("tokenizer*", "*.jinja", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Source:
    """A checkpoint, or a Llama folder."""

    folder: Path
    tokenizer: Path
    """its folder, which may be the model's own"""

    def is_checkpoint(self) -> bool:
        return (self.folder / "manifest.json").is_file()

    def hashes(self) -> dict[str, str]:
        """What the weights and the tokenizer are told by."""
        if self.is_checkpoint():  # its manifest holds the hashes of all its files
            weights = file_sha256(self.folder / "manifest.json")
        else:
            weights = folder_sha256(self.folder, WEIGHTS)
        return {"checkpoint_sha256": weights, "tokenizer_sha256": folder_sha256(self.tokenizer, TOKENIZER)}

    def live(self) -> LiveModel:
        """The live model, in fp32.

        Raises:
            UserError: a damaged checkpoint, a folder of another architecture, weights that don't fit its config.
        """
        return read_live(self.folder) if self.is_checkpoint() else read_llama(self.folder)

    def training(self) -> dict[str, Any]:
        """What training recorded, where it is known: losses in nats per token, held-out bits per byte."""
        if not self.is_checkpoint():
            return read_json(self.folder / "parity.json").get("training", {})
        state = read_json(self.folder / "trainer_state.json")
        return {key: state[key] for key in ("step", "tokens_seen", "loss", "held_out") if key in state}

    def generation_config(self) -> GenerationConfig | None:
        """A folder's own, which may name several stop tokens; None: what the tokenizer says."""
        if not (self.folder / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(self.folder)


def find_source(path: str | Path, tokenizer: str | None = None) -> Source:
    """A checkpoint, a run directory's newest, a Llama folder, or a run directory with one as `final/`.

    Raises:
        UserError: none of these.
    """
    path = Path(path)
    for folder in (path, path / "final"):
        if holds_llama(folder) and not (folder / "manifest.json").is_file():
            return Source(folder, Path(tokenizer or folder))
    if path.is_dir() and not (path / "manifest.json").is_file() and not complete_checkpoints(path):
        raise UserError(
            f"{path} holds neither a complete checkpoint (looked for checkpoints/step_*/manifest.json) nor a Llama "
            "folder (looked for config.json with *.safetensors, there and in final/)"
        )
    checkpoint = find_checkpoint(path)
    return Source(checkpoint, Path(tokenizer or checkpoint / "tokenizer"))


def holds_llama(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def read_llama(folder: Path) -> LiveModel:
    """The model of a plain Llama folder, in fp32, each weight read when it is asked for.

    Raises:
        UserError: another architecture; weights that are damaged, missing or don't fit config.json.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "llama":
        raise UserError(f"{folder}: model_type is {kind!r}; only llama is exported")
    index, shapes = {}, {}
    try:
        values = LlamaConfig.from_pretrained(folder).to_dict()
        config = GenesisConfig(**{key: value for key, value in values.items() if key != "model_type"})
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    index[name] = {"safetensors_file": str(path), "weight_name": name, "dtype": "float32"}
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    except Exception as error:  # the loaders raise OSError, ValueError, SafetensorError …
        raise UserError(f"{folder}: can't be loaded ({' '.join(str(error).split())[:200]})") from None
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if config.tie_word_embeddings and embedding in index:
        index[head], shapes[head] = index[embedding], shapes[embedding]
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in GenesisForCausalLM(config).state_dict().items()}
    for name in sorted({*wanted, *shapes}):
        if wanted.get(name) != shapes.get(name):
            found = " ".join(map(str, (shapes.get(name, "nothing"), "of", name, "where", wanted.get(name, "nothing"))))
            raise UserError(f"{folder}: its weights don't fit its config.json: {found} is expected")
    return LiveModel(config, OffloadedWeightsLoader(index=index))
