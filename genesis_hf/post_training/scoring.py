"""Losses of answers, computed inside the model's own call and for trained positions only.

Prompts are often half of the tokens, and the output matrix a third of the work: their positions never meet it. The
output layer is called as a module, because FSDP2 gathers its weight around that call.
"""

import functools
import types
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from genesis_hf.attention import DOCUMENTS, document_bounds
from genesis_hf.errors import UserError
from genesis_hf.losses import chunked_cross_entropy
from genesis_hf.modeling import IGNORE_INDEX

SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Keys of configurations whose models do more to logits than one matrix product."""


class AnswerHead(nn.Linear):
    """The output layer; given labels it returns losses instead of logits."""

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(…, hidden) → logits; with labels (n,) and hidden (n, hidden): what `losses` returns."""
        return super().forward(hidden) if labels is None else losses(hidden, self.weight, labels)


def losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `hidden @ weight.T` in nats, fp32: its sum where gradients are taken, else (n,) each token's."""
    if torch.is_grad_enabled():
        return chunked_cross_entropy(hidden, weight, labels)
    rows = max(1, 2**24 // weight.shape[0])  # 64 MiB of fp32 logits
    parts = [
        nn.functional.cross_entropy(nn.functional.linear(states, weight).float(), targets, reduction="none")
        for states, targets in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def score_answers(model: PreTrainedModel) -> None:
    """Teach a causal language model, in place and before it is wrapped, to return losses instead of logits.

    `model(input_ids, labels=labels, before_answers=indices, …)` then gives `{"loss": scalar}`, the sum over trained
    tokens, where gradients are taken; else `{"losses": (rows,), "tokens": (rows,)}`, sum and number of each row's.
    `before_answers` is what `before_answers` finds: made beside the batch, it saves the device a look at the labels.

    Raises:
        UserError: a model whose logits are more than a matrix product.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = [key for key in SCALED_LOGITS if getattr(config, key, None) not in (None, 1.0)]
    if scaled or not isinstance(head, nn.Linear) or head.bias is not None:
        raise UserError(f"a {config.model_type} model can't be trained here: its logits have {scaled or 'a bias'}")
    head.__class__ = AnswerHead
    original = model.forward

    @functools.wraps(type(model).forward)  # whose signature Trainer and `generate` look at
    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: torch.Tensor | None = None,
        before_answers: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if before_answers is None:
            return original(*args, **kwargs) if labels is None else original(*args, labels=labels, **kwargs)
        kwargs["use_cache"] = False  # with a cache, transformers drops the boundaries it reads off position_ids
        positions = kwargs.get("position_ids")
        if positions is not None and config._attn_implementation == DOCUMENTS:
            kwargs["cu_seq_lens"] = document_bounds(positions)
        hidden = self.base_model(*args, **kwargs).last_hidden_state.flatten(0, 1)
        targets = labels.flatten()[before_answers + 1]
        scores = apply_head(self.get_output_embeddings(), hidden[before_answers], targets)
        if scores.dim() == 0:
            return {"loss": scores}
        losses = torch.zeros(labels.numel(), device=scores.device).index_copy_(0, before_answers, scores)
        return {"losses": losses.view_as(labels).sum(dim=1), "tokens": (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)}

    model.forward = types.MethodType(forward, model)


def before_answers(labels: torch.Tensor) -> torch.Tensor:
    """(trained,) int64: of (rows, length) labels, flattened, the positions whose next token is trained."""
    trained = labels != IGNORE_INDEX
    trained[:, 0] = False
    return trained.flatten().nonzero().flatten() - 1


def apply_head(head: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`losses` by the output layer, also where PEFT trains single rows of it."""
    adapter = getattr(head, "token_adapter", None)
    if adapter is None:
        return head(hidden, labels)
    return losses(hidden, adapter.get_merged_weights(adapter.active_adapters), labels)
