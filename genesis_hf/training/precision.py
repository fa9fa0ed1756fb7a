"""fp8: matrix products in 8-bit floating point over fp32 master weights, by torchao."""

import torch
from torch import nn

from genesis_hf.errors import UserError

FP8_CAPABILITY = (8, 9)
"""The first compute capability with fp8 matrix units: Ada (RTX 40). Hopper and Blackwell come after it."""

FP8_MULTIPLE = 16
"""torch._scaled_mm takes matrices whose dimensions divide by this."""


def require_fp8(device: torch.device) -> None:
    """Raise `UserError` where the card has no fp8 or torchao can't be imported."""
    if device.type != "cuda":
        raise UserError(f"fp8 needs an NVIDIA GPU and this is {device.type}; set fp8: false")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise UserError(
            f"fp8 needs compute capability 8.9 (RTX 40, H100 and later) and {torch.cuda.get_device_name(device)} has "
            f"{capability[0]}.{capability[1]}; set fp8: false"
        )
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"fp8 can't import torchao ({error}); pip install 'genesis-hf[fp8]', or set fp8: false"
        ) from None


def convert_to_fp8(model: nn.Module, emulate: bool = False) -> int:
    """Let the linear layers of the blocks multiply in fp8, forward and backward, scaled a tensor at a time.

    The output projection stays as it is: its loss is sensitive to rounding. Weights, their dtype and the state-dict
    keys don't change.

    Args:
        emulate: round to fp8, multiply in fp32: shows the numerics on any device.

    Returns:
        the number of layers converted; the others have a dimension that doesn't divide by 16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    def fits(module: nn.Module, name: str) -> bool:
        return name != "lm_head" and module.in_features % FP8_MULTIPLE == 0 and module.out_features % FP8_MULTIPLE == 0

    convert_to_float8_training(model, module_filter_fn=fits, config=Float8LinearConfig(emulate=emulate))
    return sum(isinstance(module, Float8Linear) for module in model.modules())
