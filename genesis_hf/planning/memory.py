"""Memory of one device, by what it holds."""

import math
from dataclasses import dataclass, field

import torch

from genesis_hf.attention import DOCUMENTS
from genesis_hf.config import PretrainRecipe
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM
from genesis_hf.planning.devices import Topology
from genesis_hf.planning.tracing import FLASH, Shape, activations
from genesis_hf.training.muon import MAX_ELEMENTS
from genesis_hf.training.setup import accumulation_steps

GIB = 2**30

CONTEXT = round(0.6 * GIB)
"""CUDA's context and the libraries' workspaces on a card. Assumed: between 0.4 and 0.8 GiB by card and driver."""

COMMUNICATOR = round(0.3 * GIB)
"""NCCL's buffers, where there are several processes. Assumed."""

FRAGMENTS = 0.08
"""Memory that torch's allocator holds beyond what is live, as a share of it; half with expandable_segments. Assumed."""

CPU_BASE = round(0.545 * GIB)
"""Resident memory of scripts/pretrain.py around a model and a text of nothing: Python and libraries.

Measured on Linux with the versions of constraints.txt (docs/planning.md).
"""

CPU_TEXT = round(0.11 * GIB)
"""What text read ahead and its tokens take: measured with the demo's 11 MB, all of which is one block. It grows with
`shuffle_block` documents of each source."""

CPU_FRAGMENTS = 1.45
"""Memory that a process grows by for each byte of activations: glibc keeps what is freed, in pieces.

Measured: 1.1 to 2.5, most near this (docs/planning.md).
"""


@dataclass(frozen=True)
class Sizes:
    """Weights of a model, tied ones once.

    Attributes:
        parameters: of the model. blocks: of all blocks. block: of one.
        shapes: of hidden matrices, which Muon takes, and how many there are of each.
    """

    parameters: int
    blocks: int
    block: int
    shapes: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def root(self) -> int:
        """Those outside the blocks: embedding, output projection, final norm."""
        return self.parameters - self.blocks

    @property
    def matrices(self) -> int:
        return sum(math.prod(shape) * count for shape, count in self.shapes)


def sizes(config: GenesisConfig) -> Sizes:
    """Counted on the model itself, built without memory."""
    with torch.device("meta"):
        model = GenesisForCausalLM(config)
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    hidden = [tuple(p.shape) for p in model.model.layers.parameters() if p.ndim == 2]
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        blocks=blocks,
        block=blocks // config.num_hidden_layers,
        shapes=tuple((shape, hidden.count(shape)) for shape in dict.fromkeys(hidden)),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the fullest moment of training.

    Attributes:
        parts: bytes by what they are, overhead last; `overhead` is what torch's own count leaves out.
        moment: when that is.
        host: bytes in the computer's memory for this process: offloaded state and the staging of a save.
    """

    parts: dict[str, int]
    moment: str
    host: dict[str, int] = field(default_factory=dict)

    @property
    def allocated(self) -> int:
        """What torch counts, `memory_gib` in metrics.jsonl of a run on a card."""
        return sum(size for name, size in self.parts.items() if name != "overhead")

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def shape_of(recipe: PretrainRecipe, topology: Topology, bf16: bool, device: str, whole_logits: bool) -> Shape:
    """What decides about activations, from a recipe."""
    compute = ("bfloat16" if topology.sharded and not topology.gather_fp32 else "autocast") if bf16 else "float32"
    name = recipe.attn_implementation or (DOCUMENTS if device == "cpu" else "sdpa")
    attention = FLASH
    if name in ("sdpa", "eager"):
        # transformers makes a mask where positions restart, and for eager always
        attention = name if recipe.reset_positions or name == "eager" else FLASH
    elif name == DOCUMENTS and device == "cpu":
        attention = DOCUMENTS
    return Shape(
        recipe.per_device_train_batch_size,
        recipe.sequence_length,
        recipe.recompute,
        compute,
        attention,
        whole_logits,
        device,
    )


def memory(
    recipe: PretrainRecipe,
    config: GenesisConfig,
    counted: Sizes,
    topology: Topology,
    bf16: bool,
    device: str = "cuda",
    whole_logits: bool = False,
) -> Memory:
    """Memory of one process, at the fullest of three moments: the loss and the backward pass behind it, the backward
    pass's end, the optimizer's step.

    FSDP2's and FSDP1's figures follow torch's code: while a step has further micro-batches, gradients add up whole, in
    fp32 (FSDP2) or in the products' precision (FSDP1). `FSDPParam.to_accumulated_grad_if_needed`,
    `_runtime_utils._post_backward_hook`.
    """
    parameters, shards = counted.parameters, topology.shards
    product = 2 if bf16 and not topology.gather_fp32 else 4
    held = activations(config, shape_of(recipe, topology, bf16, device, whole_logits))
    several = accumulation_steps(recipe, topology.processes) > 1
    state = optimizer_bytes(recipe, counted) // shards
    shard = 4 * parameters // shards

    gathered = buffers = 0
    # DDP's buckets stay from one step to the next, and gradients are views of them.
    standing, final = 4 * parameters if several or topology.kind == "ddp" else 0, 4 * parameters
    if topology.sharded:
        final = shard
        gathered = product * parameters
        if topology.reshard:
            gathered = product * min(parameters, counted.root + 2 * counted.block)
        # What a block's gather writes to and the next one's; its gradients as they come, and what is sent of them.
        buffers = min(2 * product * counted.block + (product + 4) * counted.block, (3 * product + 4) * parameters)
        standing = (4 if topology.kind == "fsdp2" else product) * parameters if several else 0
    offload = recipe.cpu_offload
    weights = 0 if offload else shard
    moments = [
        ("the loss and the last blocks' backward pass", held.kept, held.weights, held.head, held.passing, standing),
        ("the end of the backward pass", 0, 0, 0, held.shallow, 0 if offload else final),
    ]
    candidates = []
    for moment, kept, cast, head, passing, gradients in moments:
        candidates.append(
            Memory(
                {
                    "weights": weights,
                    "optimizer": 0 if offload else state,
                    "gradients": gradients,
                    "gathered weights": gathered,
                    "bf16 weights": cast,
                    "activations": kept,
                    "logits and loss": head,
                    "passing through a block": passing,
                    "exchange": buffers,
                },
                moment,
            )
        )
    step = 0 if offload else muon_bytes(recipe, counted) // shards
    candidates.append(
        Memory(
            {
                "weights": weights,
                "optimizer": 0 if offload else state,
                "gradients": 0 if offload else final,
                "the optimizer's step": step,
            },
            "the optimizer's step",
        )
    )
    fullest = max(candidates, key=lambda candidate: candidate.total)
    parts = dict.fromkeys(candidates[0].parts, 0) | fullest.parts
    host = {}
    if recipe.save_async:
        host["staging of a save"] = shard + state
    if offload:
        host["offloaded weights, gradients, optimizer"] = 2 * shard + state
    if device == "cpu":
        return Memory(cpu_parts(parts, host), fullest.moment)
    parts["overhead"] = overhead(recipe, topology, sum(parts.values()))
    return Memory({name: size for name, size in parts.items() if size}, fullest.moment, host)


def optimizer_bytes(recipe: PretrainRecipe, counted: Sizes) -> int:
    """fp32 moments: two of AdamW, one of Muon for hidden matrices."""
    return 8 * counted.parameters - (4 * counted.matrices if recipe.optim == "muon" else 0)


def muon_bytes(recipe: PretrainRecipe, counted: Sizes) -> int:
    """What a step of Muon holds for the matrices it takes together (`Muon._update`).

    At the end: gradients (4), the bf16 stack and its orthogonal factor (2 + 2), that in fp32 and scaled (4 + 4).
    """
    if recipe.optim != "muon":
        return 0
    kinds = [(math.prod(shape), count) for shape, count in counted.shapes]
    return 16 * max(size * min(count, max(1, MAX_ELEMENTS // size)) for size, count in kinds)


def overhead(recipe: PretrainRecipe, topology: Topology, live: int) -> int:
    """What a card holds beyond torch's live tensors."""
    setting = recipe.env.get("PYTORCH_ALLOC_CONF") or recipe.env.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    share = FRAGMENTS / 2 if "expandable_segments:True" in setting else FRAGMENTS
    return CONTEXT + (COMMUNICATOR if topology.processes > 1 else 0) + round(share * live)


def cpu_parts(parts: dict[str, int], host: dict[str, int]) -> dict[str, int]:
    """A process on a CPU: the staging of a save and the libraries lie in the same memory."""
    passing = ("bf16 weights", "activations", "logits and loss", "passing through a block", "the optimizer's step")
    growth = round((CPU_FRAGMENTS - 1) * sum(parts.get(name, 0) for name in passing))
    parts = {name: size for name, size in (parts | host).items() if size}
    return parts | {"kept by the C library": growth, "text read ahead": CPU_TEXT, "Python and libraries": CPU_BASE}
