"""A Llama folder's weights as a state-dict file."""

from pathlib import Path

import torch
from safetensors.torch import load_file

NAME = "model.pt"


def write_state_dict(folder: Path) -> Path:
    """Write `model.pt`, which `torch.load(…, weights_only=True)` reads: Llama's names → tensors, tied ones once."""
    state = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state.update(load_file(shard))
    torch.save(state, folder / NAME)
    return folder / NAME
