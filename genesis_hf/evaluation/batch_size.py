"""How many sequences memory has room for at once, without trying until it runs out (which a CPU doesn't survive)."""

import psutil
import torch
from transformers import PretrainedConfig

MOST = 64
"""lm-eval's own upper end; beyond it nothing gets faster."""

SHARE = 0.5
"""Of the free memory that is used: the weights are loaded already, but other programs may grow."""

LOGIT_COPIES = 3
"""Of the logits at once, in fp32: the model's, their log-softmax, and the slice that is looked at."""

LAYER_COPIES = 8
"""Hidden and feed-forward states of a layer at once; without gradients one layer is live at a time."""


def fitting_batch_size(config: PretrainedConfig, length: int, device: torch.device, processes: int = 1) -> int:
    """Sequences of `length` tokens whose logits fit a share of the free memory; 1 to 64.

    Args:
        processes: that share this computer's memory; a GPU is taken to be one process's own.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // processes
    return max(1, min(MOST, int(free * SHARE) // (length * token_bytes(config))))


def token_bytes(config: PretrainedConfig) -> int:
    """Bytes that a forward pass needs for each token of a batch, from the model's dimensions, in fp32."""
    states = config.hidden_size + getattr(config, "intermediate_size", 4 * config.hidden_size)
    return 4 * (LOGIT_COPIES * config.vocab_size + LAYER_COPIES * states)
