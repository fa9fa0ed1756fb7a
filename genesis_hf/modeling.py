"""The model: Llama's architecture and state-dict keys, with an initialisation and a loss of its own.

`import genesis_hf` registers model_type "genesis" with AutoConfig, AutoModel and AutoModelForCausalLM. An export
(`genesis_hf.export`) is a plain Llama folder, which needs none of this.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from genesis_hf.attention import DOCUMENTS, document_bounds
from genesis_hf.config import nearest, read_yaml
from genesis_hf.errors import UserError
from genesis_hf.losses import IGNORE_INDEX, chunked_cross_entropy

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
    attends within its own document. Where `config._attn_implementation` is "documents", `cu_seq_lens` (int32, as
    `genesis_hf.attention.document_bounds` makes it) says where they begin; left out, it is read off `position_ids`,
    for which a GPU must be waited for.
    """

    config_class = GenesisConfig

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        # With a cache, transformers silently drops the document boundaries it reads off position_ids.
        use_cache = False if self.training else use_cache
        by_documents = self.config._attn_implementation == DOCUMENTS and attention_mask is None and use_cache is False
        if input_ids is None or kwargs.get("past_key_values") is not None or not by_documents:
            return super().forward(
                input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache, **kwargs
            )
        if position_ids is None:  # a row is one context
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if cu_seq_lens is None:
            cu_seq_lens = document_bounds(position_ids)
        torch._dynamo.maybe_mark_dynamic(cu_seq_lens, 0)  # each batch has another number of documents
        hidden = self.embed_tokens(input_ids)
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary, cu_seq_lens=cu_seq_lens)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class GenesisHead(nn.Linear):
    """The output projection; given labels it returns the summed loss instead of logits.

    The loss is computed inside this module's call, because FSDP2 gathers and frees a module's weight around it.

    Attributes:
        summed_loss: one of `genesis_hf.losses`: hidden (rows, hidden), weight, labels (rows,) → fp32 scalar.
    """

    summed_loss = staticmethod(chunked_cross_entropy)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(…, hidden) → logits (…, vocab); with labels (rows,) and hidden (rows, hidden): the sum of their losses."""
        return super().forward(hidden) if labels is None else self.summed_loss(hidden, self.weight, labels)


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


COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


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
        values = read_config(path)
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
    for key, value in values.items():
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?e[+-]?\d+", value):  # YAML takes 1e-05 for text
            values[key] = float(value)
    if isinstance(values.get("rope_theta"), int):
        values["rope_theta"] = float(values["rope_theta"])
    for key in COUNTS:
        number = values.get(key)
        if isinstance(number, int) and number < 1:
            raise UserError(f"model: {key} must be above 0, not {number}")
    try:
        return GenesisConfig(**values)
    except Exception as error:  # the strict dataclass wraps what is wrong in types of its own
        reason = " ".join(str(error).split())
        raise UserError(f"model: {reason}") from None


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json, or the same as YAML.

    Raises:
        UserError: it can't be read, or is of another architecture.
    """
    values = read_yaml(path)
    if path.suffix == ".json":  # YAML takes 1e-05 for text
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: no JSON ({error})") from None
    kind = values.get("model_type", "llama")
    if kind not in ("llama", GenesisConfig.model_type):
        raise UserError(f"{path}: model_type {kind!r} is not trained here; it must be llama or genesis")
    return values


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
