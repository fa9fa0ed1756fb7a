"""Losses of the output projection that never hold rows × vocabulary logits in fp32."""

import math

import torch

from genesis_hf.errors import UserError

IGNORE_INDEX = -100
"""Label of a token that is not trained on (torch.nn.functional.cross_entropy's default)."""


def chunk_rows(rows: int, vocab: int, device: str) -> int:
    """Rows whose logits `chunked_cross_entropy` holds at once, on a device of this type.

    Large enough to keep the matrix units busy, small enough that a chunk's fp32 logits stay under 256 MiB; on a CPU
    16 MiB, which its caches hold in part.
    """
    return max(1, min(math.ceil(rows / 4), (2**22 if device == "cpu" else 2**26) // vocab))


def chunked_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of `hidden @ weight.T` against `labels`, in nats; an fp32 scalar.

    Args:
        hidden: (rows, hidden), any float dtype. weight: (vocab, hidden). labels: (rows,) int64.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are taken chunk by chunk in the forward pass, so logits are computed once and never kept."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        rows, vocab = hidden.shape[0], weight.shape[0]
        device = hidden.device.type
        size = chunk_rows(rows, vocab, device)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix = weight.to(dtype)
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for start in range(0, rows, size):
                part = slice(start, start + size)
                states, target = hidden[part].to(dtype), labels[part, None]
                kept = target != IGNORE_INDEX
                target = target.clamp(min=0)
                logits = (states @ matrix.T).float()
                normalizer = logits.logsumexp(dim=-1, keepdim=True)
                total += ((normalizer - logits.gather(1, target)) * kept).sum()
                if not (needs_hidden or needs_weight):
                    continue
                # d loss / d logits = softmax - one-hot, in place of the logits
                grad = logits.sub_(normalizer).exp_()
                grad.scatter_add_(1, target, torch.full_like(normalizer, -1.0))
                grad = grad.mul_(kept).to(dtype)
                if needs_hidden:
                    hidden_grad[part] = grad @ matrix
                if needs_weight:
                    weight_grad += grad.T @ states
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output):
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * grad_output.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * grad_output).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None


def liger_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`chunked_cross_entropy` by Liger's fused Triton kernel (Hsu et al. 2024), for a GPU."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # The function takes its settings by position; behind the last one given, all are off.
    bias = class_weights = softcap = None
    z_loss_scale = label_smoothing = 0.0
    settings = (bias, class_weights, IGNORE_INDEX, z_loss_scale, label_smoothing, "sum", softcap, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, *settings)[0]


def require_liger(device: torch.device) -> None:
    """Raise `UserError` where Liger's kernel can't run."""
    if device.type == "cpu":
        raise UserError("loss_implementation: liger needs a GPU; set loss_implementation: chunked")
    try:
        import liger_kernel.ops.fused_linear_cross_entropy  # noqa: F401
    except (ImportError, RuntimeError) as error:  # Triton without a driver raises the latter
        raise UserError(
            f"loss_implementation: liger can't be imported ({error}); pip install 'genesis-hf[liger]', or set "
            "loss_implementation: chunked"
        ) from None
