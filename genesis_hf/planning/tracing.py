"""Bytes that a model's forward and backward pass hold, counted on tensors without memory.

The blocks themselves run, with the recipe's settings, under torch's FakeTensorMode: whatever changes in them changes
here. Only the loss is computed by formula, for the size of its chunks depends on the device.
"""

import functools
import json
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from genesis_hf.attention import DOCUMENTS
from genesis_hf.losses import chunk_rows
from genesis_hf.modeling import GenesisConfig, GenesisModel
from genesis_hf.recompute import set_recompute

FLASH = "flash"
"""Attention without a mask. Traced as `documents`, which keeps the same."""

DEPTHS = (1, 2)
"""Layers that are traced; each further one holds as much as the second."""


@dataclass(frozen=True)
class Shape:
    """What decides about activations.

    Attributes:
        rows, length: of a micro-batch on one device.
        recompute: none, selective or full.
        compute: float32; autocast, bf16 over fp32 weights (one process, DDP); bfloat16, weights in bf16 (FSDP).
        attention: documents, on a CPU; flash, any kernel on a card that keeps queries, keys, values and output alone;
            sdpa and eager, with a mask.
        whole_logits: the loss on fp32 logits of all positions, as transformers computes it, instead of in chunks.
        device: cpu or cuda.
    """

    rows: int
    length: int
    recompute: str = "none"
    compute: str = "autocast"
    attention: str = FLASH
    whole_logits: bool = False
    device: str = "cuda"

    @property
    def width(self) -> int:
        """Bytes of a number in a hidden state."""
        return 2 if self.compute == "bfloat16" else 4


@dataclass(frozen=True)
class Activations:
    """Bytes beside weights, gradients and optimizer, at the fullest moment of a micro-batch.

    Attributes:
        kept: what blocks keep for the backward pass.
        weights: weights cast to bf16 by autocast, where they are still held then.
        head: logits, and gradients that the output projection's loss makes, where the loss is the fullest moment.
        passing: what passes through a block in its backward pass, recomputed activations included, where that is.
        shallow: the fullest moment of a model of one layer: what is left at the end of the backward pass.
    """

    kept: int
    weights: int
    head: int
    passing: int
    shallow: int

    @property
    def peak(self) -> int:
        return self.kept + self.weights + self.head + self.passing


@dataclass(frozen=True)
class Phases:
    """Bytes of one traced stack of blocks.

    Attributes:
        forward, backward: the fullest moment of each pass, casts of weights apart; `…_cast` those.
        kept: between the passes, outside autocast. inside_cast, kept_cast: casts of weights at the end of the forward
            pass inside autocast, and outside it.
    """

    forward: int
    forward_cast: int
    inside_cast: int
    kept: int
    kept_cast: int
    backward: int
    backward_cast: int


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while it is on, until they are gone.

    Attributes:
        live, peak: bytes now, and at most since `restart`.
        cast: of those live, casts of `parameters`; `cast_at_peak` at the moment of `peak`.
    """

    def __init__(self, parameters: Any = ()) -> None:
        super().__init__()
        self.live = self.peak = self.cast = self.cast_at_peak = 0
        self._known: dict[int, Any] = {}
        self._held = [parameter.untyped_storage() for parameter in parameters]  # so that their ids stay theirs
        self._parameters = {id(storage) for storage in self._held}

    def restart(self) -> None:
        """The peak is sought from here on."""
        self.peak, self.cast_at_peak = self.live, self.cast

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        of_parameter = func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._parameters
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), of_parameter)
        return result

    def _add(self, storage: torch.UntypedStorage, of_parameter: bool) -> None:
        key = id(storage)
        if key in self._known or key in self._parameters:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, functools.partial(self._remove, key, size, of_parameter))
        self.live += size
        self.cast += size if of_parameter else 0
        if self.live > self.peak:
            self.peak, self.cast_at_peak = self.live, self.cast

    def _remove(self, key: int, size: int, of_parameter: bool, _: Any) -> None:
        if self._known.pop(key, None) is not None:
            self.live -= size
            self.cast -= size if of_parameter else 0


# ---------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def trace(config_json: str, shape: Shape, layers: int) -> Phases:
    """Run so many blocks, the embedding before and the norm behind them, without memory.

    Gradients of weights stand already, as from the second micro-batch of a step on.
    """
    config = GenesisConfig(**json.loads(config_json), num_hidden_layers=layers)
    config._attn_implementation = DOCUMENTS if shape.attention == FLASH else shape.attention
    with FakeTensorMode():
        with no_init_weights():
            dtype = torch.bfloat16 if shape.compute == "bfloat16" else torch.float32
            model = GenesisModel._from_config(config, dtype=dtype)
        set_recompute(model, shape.recompute)
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        batch = fake_batch(shape)
        with LiveBytes([*model.parameters(), *(p.grad for p in model.parameters()), *batch.values()]) as counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.compute == "autocast"):
                hidden = model(**batch, use_cache=False).last_hidden_state
                forward, forward_cast, inside_cast = counter.peak, counter.cast_at_peak, counter.cast
            kept, kept_cast = counter.live - counter.cast, counter.cast
            counter.restart()
            hidden.backward(torch.empty_like(hidden))
            backward, backward_cast = counter.peak, counter.cast_at_peak
    return Phases(
        forward - forward_cast, forward_cast, inside_cast, kept, kept_cast, backward - backward_cast, backward_cast
    )


def fake_batch(shape: Shape) -> dict[str, torch.Tensor]:
    """Inputs of a micro-batch; call under FakeTensorMode."""
    ids = torch.empty(shape.rows, shape.length, dtype=torch.long)
    batch = {"input_ids": ids}
    if shape.attention in (DOCUMENTS, FLASH):
        batch["position_ids"] = torch.empty_like(ids)
        batch["cu_seq_lens"] = torch.empty(shape.rows + 1, dtype=torch.int32)
    else:
        batch["attention_mask"] = torch.empty(shape.rows, 1, shape.length, shape.length, dtype=torch.bool)
    return batch


# ---------------------------------------------------------------------------------------------------------
# The loss, and both together
# ---------------------------------------------------------------------------------------------------------


def loss_bytes(config: GenesisConfig, shape: Shape) -> tuple[int, int]:
    """What the loss makes beside its inputs: the most in its forward pass, and in its backward pass.

    In chunks (`losses._ChunkedCrossEntropy`): while a chunk's logits become fp32 (in bf16 2 + 4 bytes a logit, in fp32
    4 and as much for their logsumexp), those of the chunk before and their gradient still stand (4 + 2; 4); the
    weight's gradient in fp32; the hidden states, made contiguous, and their gradient; under autocast the weight in
    bf16. Then both gradients once more, multiplied by the gradient that comes in, and the weight's in its precision.

    Whole: logits in bf16 and fp32 and their log-softmax; then that, its gradient and the logits' gradient.
    """
    vocab, width = config.vocab_size, config.hidden_size
    weight, hidden = vocab * width, shape.rows * (shape.length - 1) * width * shape.width
    if shape.whole_logits:
        logits = shape.rows * shape.length * vocab
        return (8 if shape.compute == "float32" else 10) * logits, 12 * logits
    chunk = chunk_rows(shape.rows * (shape.length - 1), vocab, shape.device) * vocab
    cast = 2 * weight if shape.compute == "autocast" else 0
    narrowed = 2 * weight if shape.compute == "bfloat16" else 0
    return 12 * chunk + 4 * weight + cast + 2 * hidden, 8 * weight + narrowed + 2 * hidden


def activations(config: GenesisConfig, shape: Shape) -> Activations:
    """What a micro-batch of this shape holds at its fullest moment, gradients of weights apart."""
    values = config.to_dict()
    values.pop("num_hidden_layers")
    one, two = (trace(json.dumps(values, sort_keys=True), shape, depth) for depth in DEPTHS)
    layers = config.num_hidden_layers

    def at_depth(name: str) -> int:
        return getattr(one, name) + (layers - 1) * (getattr(two, name) - getattr(one, name))

    kept, scratch = at_depth("kept"), attention_scratch(config, shape)
    loss_forward, loss_backward = loss_bytes(config, shape)
    # total, casts of weights, head, passing
    moments = [
        (at_depth("forward") + scratch, at_depth("forward_cast"), 0),
        (kept + loss_forward, at_depth("inside_cast"), loss_forward),
        (kept + loss_backward, at_depth("kept_cast"), loss_backward),
        (at_depth("backward") + scratch, at_depth("backward_cast"), 0),
    ]
    total, cast, head = max(moments, key=lambda moment: moment[0] + moment[1])
    held = min(kept, total - head)
    shallow = max(one.backward, one.kept) + scratch
    return Activations(held, cast, head, total - head - held, shallow)


def attention_scratch(config: GenesisConfig, shape: Shape) -> int:
    """What attention's kernel holds inside, which a trace doesn't see: the CPU's blocks of queries and scores.

    At worst all blocks of queries see as far back as the row: fp32 scores and their softmax.
    """
    if shape.device != "cpu" or shape.attention != DOCUMENTS:
        return 0
    product = 4 if shape.compute == "float32" else 2
    return shape.rows * config.num_attention_heads * min(128, shape.length) * shape.length * (2 * product + 1)
