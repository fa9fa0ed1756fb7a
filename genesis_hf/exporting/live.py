"""The live model in the memory of its largest tensors: weights that are read, used and forgotten one at a time."""

import contextlib
import copy
import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import cpu_offload, init_empty_weights
from accelerate.utils import OffloadedWeightsLoader
from safetensors.torch import save_file

from genesis_hf.checkpoint.restore import StoredWeights
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM

RETURNED_FROM = 2**20
"""Bytes from which the memory of a freed tensor goes back to the system in an export and in what reads it."""

M_MMAP_THRESHOLD, LARGEST_THRESHOLD = -3, 32 * 2**20
"""mallopt(3): glibc raises its threshold by itself up to 32 MB, and keeps what is smaller for later use."""

VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class LiveModel:
    """A model of this package, its weights made when they are asked for; to be written as any model is."""

    config: GenesisConfig
    weights: Mapping[str, torch.Tensor]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        return self.weights

    def rounded(self, dtype: torch.dtype) -> "LiveModel":
        """With weights of another dtype."""
        return LiveModel(self.config, Changed(self.weights, lambda _, weight: weight.to(dtype)))

    def cut(self, size: int) -> "LiveModel":
        """Without the rows of embedding and output layer from id `size` on."""
        config = copy.deepcopy(self.config)
        config.vocab_size = size

        def rows(name: str, weight: torch.Tensor) -> torch.Tensor:
            return weight[:size] if name in VOCABULARY_ROWS else weight

        return LiveModel(config, Changed(self.weights, rows))

    def spilled(self, folder: Path) -> "LiveModel":
        """The same weights in a new folder: reading them there takes a tenth of what it takes from a checkpoint."""
        folder.mkdir(parents=True)
        index = {}
        for name, weight in self.weights.items():
            file = folder / f"{name}.safetensors"
            save_file({name: weight.contiguous()}, file)
            index[name] = {"safetensors_file": str(file)}
        return LiveModel(self.config, OffloadedWeightsLoader(index=index))

    def computing(self) -> GenesisForCausalLM:
        """The module, in fp32 and evaluation mode; each part of it has its weights only while it computes."""
        with init_empty_weights():
            model = GenesisForCausalLM(self.config)
        return cpu_offload(model.eval(), torch.device("cpu"), state_dict=self.weights)


def read_live(checkpoint: Path) -> LiveModel:
    """The model of a checkpoint, in fp32.

    Raises:
        UserError: a damaged checkpoint.
    """
    weights = StoredWeights(checkpoint)
    return LiveModel(weights.config, weights)


class Changed(Mapping[str, torch.Tensor]):
    """Weights that are changed when they are asked for."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], change: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> None:
        self.weights, self.change = weights, change

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.change(name, self.weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@contextlib.contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Have glibc give the system back each freed tensor of `RETURNED_FROM` bytes; nothing with another C library.

    Small tensors that stay lie between large ones that go, so that the room of these is not found again: with layers of
    15 MB, over 2 GB more were held than were in use.
    """
    libc("mallopt", M_MMAP_THRESHOLD, RETURNED_FROM)
    try:
        yield
    finally:
        libc("mallopt", M_MMAP_THRESHOLD, LARGEST_THRESHOLD)


def return_small_memory() -> None:
    """Have glibc give back what it keeps of all that was smaller: 0.1 GB after a 1B model."""
    libc("malloc_trim", 0)


def libc(function: str, *values: int) -> None:
    """Call a function of the C library, where it has one of that name."""
    getattr(ctypes.CDLL(None), function, lambda *_: None)(*values)
