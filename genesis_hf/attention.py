"""Attention within documents, computed from where they begin.

For rows that pack several documents transformers builds a (rows, 1, length, length) mask, for which it waits for the
device; scaled_dot_product_attention then visits every pair of positions and takes one key head a query head. Here only
pairs of one document are visited (in blocks on a CPU, exactly on a GPU), and there is no mask.

`attn_implementation: documents`. Without `cu_seq_lens`, as in generation, it is sdpa.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

DOCUMENTS = "documents"
"""The name under which transformers knows this attention."""

BLOCK = 128
"""Queries computed together on a CPU. 64 made more calls and 256 more needless pairs; both were slower."""


def document_bounds(position_ids: Tensor) -> Tensor:
    """(documents + 1,) int32: where documents begin in the flattened rows, and the number of tokens.

    Args:
        position_ids: (rows, length), 0 where a document begins. Each row begins one, whatever its first position.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    return F.pad(starts, (0, 1), value=position_ids.numel()).int()


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, in transformers' form.

    Args:
        query: (rows, heads, length, head dimension); key and value alike with as many heads or a divisor of that.
        attention_mask: None where `cu_seq_lens` is given.
        cu_seq_lens: as `document_bounds` makes it; values that repeat stand for no document.

    Returns:
        (rows, length, heads, head dimension) in value's dtype, and None for the probabilities.
    """
    if cu_seq_lens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # RoPE's fp32 tables lift query and key to fp32 under autocast, which custom operators don't undo.
    query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    if query.device.type == "cpu":
        return torch.ops.genesis_hf.block_attention(query, key, value, cu_seq_lens, scaling), None
    return flash_attention(query, key, value, cu_seq_lens, scaling), None


def flash_attention(query: Tensor, key: Tensor, value: Tensor, cu_seq_lens: Tensor, scale: float) -> Tensor:
    """(rows, length, heads, dimension) → the same shape, by torch's own flash kernel for documents of any length.

    It takes bf16 and fp16 only. No document is longer than a row, which spares asking the device for the longest.
    """
    rows, length, heads = query.shape[:3]
    flat = (x.flatten(0, 1) for x in (query, key, value))
    causal = (-1, 0)  # all keys before a query's own, none after it
    output = varlen_attn(
        *flat,
        cu_seq_lens,
        cu_seq_lens,
        length,
        length,
        scale=scale,
        window_size=causal,
        enable_gqa=heads != key.shape[2],
    )
    return output.unflatten(0, (rows, length))


# ---------------------------------------------------------------------------------------------------------
# On a CPU: blocks of queries, each with the blocks of keys back to where its first document begins. Those that need
# equally many are computed together. Like flash attention, the backward pass computes the probabilities again.
# ---------------------------------------------------------------------------------------------------------


@torch.library.custom_op("genesis_hf::block_attention", mutates_args=(), device_types="cpu")
def block_attention(query: Tensor, key: Tensor, value: Tensor, cu_seq_lens: Tensor, scale: float) -> Tensor:
    """(rows, length, heads, dimension) → the same shape; an operator, so that torch.compile leaves it as it is."""
    heads, key_heads, block = query.shape[2], key.shape[2], min(BLOCK, query.shape[1])
    queries, keys, values = (_split(x, block) for x in (query, key, value))
    output = torch.empty_like(queries)
    for blocks, reach, hidden in _windows(query, cu_seq_lens, block):
        q, k, v = (
            _gather(queries, blocks, key_heads),
            _gather(keys, reach, key_heads),
            _gather(values, reach, key_heads),
        )
        output[blocks] = _ungather(torch.bmm(_probabilities(q, k, hidden, scale), v), block, heads)
    return _join(output, query)


@torch.library.custom_op("genesis_hf::block_attention_backward", mutates_args=(), device_types="cpu")
def block_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seq_lens: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: products in the inputs' precision, sums over blocks in fp32."""
    heads, key_heads, block = query.shape[2], key.shape[2], min(BLOCK, query.shape[1])
    grads, queries, keys, values = (_split(x, block) for x in (grad, query, key, value))
    query_grad = torch.empty_like(queries)
    key_grad, value_grad = (torch.zeros(x.shape, dtype=torch.float32) for x in (keys, values))
    for blocks, reach, hidden in _windows(query, cu_seq_lens, block):
        q, g = _gather(queries, blocks, key_heads), _gather(grads, blocks, key_heads)
        k, v = _gather(keys, reach, key_heads), _gather(values, reach, key_heads)
        p = _probabilities(q, k, hidden, scale)
        score_grad = torch._softmax_backward_data(torch.bmm(g, v.mT), p, -1, p.dtype)
        query_grad[blocks] = _ungather(_scaled_product(score_grad, k, scale), block, heads)
        for total, part in ((key_grad, _scaled_product(score_grad.mT, q, scale)), (value_grad, torch.bmm(p.mT, g))):
            part = _ungather(part, reach.shape[1] * block, key_heads).reshape(-1, *total.shape[1:])
            total.index_add_(0, reach.flatten(), part.float())
    return _join(query_grad, query), _join(key_grad, key), _join(value_grad, value)


@block_attention.register_fake
def _(query, key, value, cu_seq_lens, scale):
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@block_attention_backward.register_fake
def _(grad, query, key, value, cu_seq_lens, scale):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return *block_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


block_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _split(x: Tensor, block: int) -> Tensor:
    """(rows, length, heads, dimension) → (blocks of all rows, block, heads, dimension), the last of a row padded."""
    padding = -x.shape[1] % block
    padded = F.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
    return padded.reshape(-1, block, *x.shape[2:])


def _join(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_split`, in the shape and dtype of `like`."""
    return blocks.to(like.dtype).reshape(like.shape[0], -1, *like.shape[2:])[:, : like.shape[1]].contiguous()


def _windows(query: Tensor, cu_seq_lens: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each number of key blocks that some query blocks need: those (m,), theirs (m, count), what they don't see.

    The last is (m, block, count × block), true for keys of other documents and of the future.
    """
    rows, length = query.shape[:2]
    starts = cu_seq_lens.long()
    first = starts[:-1].repeat_interleave(starts.diff()).view(rows, length) % length
    # Padding sees nothing but padding.
    first = F.pad(first, (0, -length % block), value=length).view(-1, block)
    all_blocks = torch.arange(len(first))
    in_row = all_blocks % (len(first) // rows)
    needed = in_row - first[:, 0] // block + 1
    for count in needed.unique().tolist():
        blocks = all_blocks[needed == count]
        begin = (in_row[blocks] * block)[:, None, None]
        token = begin + torch.arange(block)[:, None]
        seen = begin + torch.arange((1 - count) * block, block)
        hidden = (seen < first[blocks][:, :, None]) | (seen > token)
        yield blocks, blocks[:, None] + torch.arange(1 - count, 1), hidden


def _gather(blocks: Tensor, index: Tensor, key_heads: int) -> Tensor:
    """The blocks at index (m,) or (m, count) → (m × key heads, heads of a key head × [count ×] block, dimension)."""
    heads, dimension = blocks.shape[2:]
    chosen = blocks[index].view(len(index), -1, key_heads, heads // key_heads, dimension)
    return chosen.permute(0, 2, 3, 1, 4).reshape(len(index) * key_heads, -1, dimension)


def _ungather(x: Tensor, length: int, heads: int) -> Tensor:
    """The inverse of `_gather`'s reordering: → (m, length, heads, dimension)."""
    return x.view(-1, heads, length, x.shape[-1]).transpose(1, 2)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale × left @ right, scaled before the result is rounded."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def _probabilities(query: Tensor, key: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Softmax of the scaled scores, computed in fp32, in the inputs' dtype."""
    scores = _scaled_product(query, key.mT, scale)
    scores.view(len(hidden), -1, *hidden.shape[1:]).masked_fill_(hidden[:, None], float("-inf"))
    return scores.softmax(dim=-1)


AttentionInterface.register(DOCUMENTS, document_attention)
AttentionMaskInterface.register(DOCUMENTS, sdpa_mask)
