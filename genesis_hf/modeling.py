"""The model: Llama's architecture and state-dict keys, with an initialisation and a loss of its own.

`import genesis_hf` registers model_type "genesis" with AutoConfig, AutoModel and AutoModelForCausalLM. An export
(`genesis_hf.export`) is a plain Llama folder, which needs none of this.
"""

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from genesis_hf.config import nearest, read_yaml
from genesis_hf.errors import UserError

IGNORE_INDEX = -100
"""Label of a token that is not trained on (torch.nn.functional.cross_entropy's default)."""

FIRST_LOGIT_STD = 0.2
"""Standard deviation of the logits before training: logits of variance s² lift the first loss s²/2 = 0.02 nats
above ln(vocabulary), well within 1 % of it for any vocabulary above 64."""


@strict
class GenesisConfig(LlamaConfig):
    """LlamaConfig with this project's defaults (genesis-1b). `rope_theta` may be given as a plain number."""

    model_type = "genesis"

    vocab_size: int = 49152
    hidden_size: int = 1536
    intermediate_size: int = 4736
    num_hidden_layers: int = 32
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 6
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    default_theta = 500_000.0


class GenesisInitialization:
    """Initial weights, mixed into both model classes.

    Matrices: normal with `initializer_range`; the two projections that write to the residual stream divided by
    sqrt(2 × layers), so that its variance doesn't grow with depth (GPT-2, Radford et al. 2019, section 2.3). The
    output rows: normal such that logits start with `FIRST_LOGIT_STD`; the final RMSNorm makes the hidden state's
    root mean square 1, so a row of std s gives logits of std s × sqrt(hidden_size).
    """

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        if module is getattr(self, "lm_head", None) or (
            isinstance(module, nn.Embedding) and config.tie_word_embeddings
        ):
            std = min(config.initializer_range, FIRST_LOGIT_STD / math.sqrt(config.hidden_size))
            init.normal_(module.weight, mean=0.0, std=std)
        elif any(module in (layer.self_attn.o_proj, layer.mlp.down_proj) for layer in self.base_model.layers):
            std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)


class GenesisModel(GenesisInitialization, LlamaModel):
    """Token ids (batch, length) → hidden states (batch, length, hidden); no KV cache in training.

    Rows that pack several documents pass `position_ids` restarting at 0 and no `attention_mask`: each token then
    attends within its own document.
    """

    config_class = GenesisConfig

    def forward(self, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        # With a cache, transformers silently drops the document boundaries it reads off position_ids.
        return super().forward(*args, use_cache=False if self.training else use_cache, **kwargs)


class GenesisHead(nn.Linear):
    """The output projection; given labels it returns the summed loss instead of logits.

    The loss is computed inside this module's call, because FSDP2 gathers and frees a module's weight around it.
    """

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(…, hidden) → logits (…, vocab); with labels (rows,) and hidden (rows, hidden): the sum of their losses."""
        return super().forward(hidden) if labels is None else chunked_cross_entropy(hidden, self.weight, labels)


class GenesisForCausalLM(GenesisInitialization, LlamaForCausalLM):
    """Causal language model whose loss never holds rows × vocabulary logits in fp32."""

    config_class = GenesisConfig

    def __init__(self, config: GenesisConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = GenesisModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = GenesisHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss and logits.

        Args:
            input_ids: (batch, length) int64.
            labels: (batch, length) int64, not shifted, `IGNORE_INDEX` where nothing is trained.
            num_items_in_batch: the loss is the sum over trained tokens divided by this; default: their number.
            logits_to_keep: as in transformers; logits of the last so many positions, 0 for all.
            kwargs: as LlamaForCausalLM's (`position_ids`, `attention_mask`, `past_key_values` …).

        Returns:
            `loss` (fp32 scalar) when labels are given; `logits` (batch, kept, vocab), None in training.
        """
        if labels is None:
            return super().forward(input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs)
        hidden = self.model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
        targets = labels[:, 1:].flatten()
        total = self.lm_head(hidden[:, :-1].flatten(0, 1), targets)
        if num_items_in_batch is None:
            num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
        loss = total / num_items_in_batch
        logits = None
        if not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        return CausalLMOutputWithPast(loss=loss, logits=logits)


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
        # Large enough to keep the matrix units busy, small enough that a chunk's fp32 logits stay under 256 MiB.
        chunk_rows = max(1, min(math.ceil(rows / 4), 2**26 // vocab))
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix = weight.to(dtype)
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for start in range(0, rows, chunk_rows):
                part = slice(start, start + chunk_rows)
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


def model_config(model: dict[str, Any] | str, vocab_size: int | None = None) -> GenesisConfig:
    """The `model:` key of a recipe as a configuration.

    Args:
        model: LlamaConfig's keys, or a folder with a config.json (or that file).
        vocab_size: taken where the recipe names none.

    Raises:
        UserError: an unknown key, a shape that doesn't add up, a missing file.
    """
    if isinstance(model, str):
        path = Path(model)
        path = path / "config.json" if path.is_dir() else path
        values = read_yaml(path)  # JSON is YAML
        for key in ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map"):
            values.pop(key, None)
    else:
        values = dict(model)
        known = set(GenesisConfig.__dataclass_fields__) | {"rope_theta"}
        for key in values:
            if key not in known:
                raise UserError(f"model: unknown key `{key}`{nearest(key, known)}")
    if "vocab_size" not in values and vocab_size is not None:
        values["vocab_size"] = vocab_size
    if isinstance(values.get("rope_theta"), int):
        values["rope_theta"] = float(values["rope_theta"])
    try:
        return GenesisConfig(**values)
    except Exception as error:  # the strict dataclass wraps what is wrong in types of its own
        reason = " ".join(str(error).split())
        raise UserError(f"model: {reason}") from None


def parameter_count(config: GenesisConfig) -> int:
    """The number of weights, tied ones once, by building the model without memory."""
    with torch.device("meta"):
        model = GenesisForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def register() -> None:
    """Make the Auto* classes know model_type "genesis"."""
    AutoConfig.register("genesis", GenesisConfig, exist_ok=True)
    AutoModel.register(GenesisConfig, GenesisModel, exist_ok=True)
    AutoModelForCausalLM.register(GenesisConfig, GenesisForCausalLM, exist_ok=True)
