"""Seconds of a step: products on the device, and what goes over the wire.

A step takes as long as the longer of the two: FSDP gathers the next block while one computes, and gradients leave while
earlier blocks' are computed. What of the exchange can't hide (the first gather, the last gradients) is a block's share.
"""

from dataclasses import dataclass

from genesis_hf.cards import Card
from genesis_hf.config import PretrainRecipe
from genesis_hf.modeling import GenesisConfig
from genesis_hf.planning.devices import Topology
from genesis_hf.planning.memory import Sizes
from genesis_hf.training.metrics import flops_per_token
from genesis_hf.training.setup import accumulation_steps

EFFICIENCY_LINE = (0.890, 0.00509)
"""1 / (share of the peak that training reaches) = a + b × (peak FLOP/s by bytes/s of memory).

What is no product waits for memory, so the share falls as products get faster. The line goes through two measured runs
of one program: a 1.3B model, 2,048 tokens, no recomputation, 8 cards, bf16 (MosaicML llm-foundry,
scripts/train/benchmarking/README.md): 59.86 % on A100 80GB (312e12 / 2039e9 = 153), 41.82 % on H100
(989e12 / 3350e9 = 295).
"""

HIGHEST = 0.70
"""No run of that table without recomputation is above 0.64: no share above this is promised."""

EFFICIENCY_RANGE = (0.8, 1.2)
"""Of the line's share: kernels, shapes and cooling differ. Most of that table's runs of 1B to 7B lie within it."""

STAGED = (0.07, 0.21, 0.34)
"""Share of a link's nominal GB/s that two cards without peer access reach through the computer's memory: low, expected,
high. 3.32 of PCIe 3.0's 16 GB/s on a consumer board as it came, 5.55 after its memory was set up for it (CUDA's test,
forum.level1techs.com/t/gpu-gpu-expected-bandwidth/185531); 2.29 of 32 on a rented machine with two A100 PCIe."""

PEER = (0.62, 0.77, 0.82)
"""The same with peer access, by NCCL: 24.5 of PCIe 4.0's 32 GB/s (tinygrad/open-gpu-kernel-modules, README, six
patched RTX 4090); 370 of NVLink 4's 450 (an NCCL author, NVIDIA/nccl-tests issue 212). The low one is a fifth less."""

OFFLOADED = "the way to the computer's memory and the update there are not modelled"
"""Of `cpu_offload`."""


@dataclass(frozen=True)
class Exchange:
    """What one process sends in an optimizer step.

    Attributes:
        gathers, reductions: bytes that leave this process for weights, and for gradients.
        seconds: of both, at `gb_s`; None where that is unknown.
        gb_s: that the exchange reaches. source: of that.
    """

    gathers: int
    reductions: int
    gb_s: float | None
    source: str

    @property
    def sent(self) -> int:
        return self.gathers + self.reductions

    @property
    def seconds(self) -> float | None:
        if not self.sent:
            return 0.0
        return self.sent / (1e9 * self.gb_s) if self.gb_s else None


@dataclass(frozen=True)
class Speed:
    """An estimate, with a low and a high one.

    Attributes:
        flops_per_token: forward and backward, recomputation not counted. recomputed: FLOPs done by FLOPs counted.
        efficiency: share of the peak that products reach, recomputed ones counted; None where unknown.
        computing: seconds of an optimizer step's products. exchange: what is sent meanwhile.
        exposed: seconds of the exchange that nothing hides.
        tokens_per_second, low, high: of all devices. mfu: of that.
        source: where the efficiency comes from.
    """

    flops_per_token: float
    recomputed: float
    efficiency: float | None
    computing: float | None
    exchange: Exchange
    exposed: float | None
    tokens_per_second: float | None
    low: float | None
    high: float | None
    mfu: float | None
    source: str


def efficiency(card: Card) -> tuple[float | None, str]:
    """The share of its peak that a card is expected to reach, and why."""
    if card.bf16_tflops is None:
        return None, "the card's peak is unknown (--bf16_tflops)"
    if card.bandwidth_gb_s is None:
        return 0.5, "assumed, midway between A100 and H100 in llm-foundry's table; --bandwidth_gb_s would say more"
    a, b = EFFICIENCY_LINE
    ratio = 1000 * card.bf16_tflops / card.bandwidth_gb_s
    return min(HIGHEST, 1 / (a + b * ratio)), (
        f"{ratio:.0f} FLOP a byte of memory, on the line through llm-foundry's 1B runs on A100 (60 %) and H100 (42 %)"
    )


def link(card: Card, topology: Topology, given: bool) -> tuple[float | None, tuple[float, float], str]:
    """GB/s that an exchange reaches, what range of it is likely, and why."""
    if topology.processes == 1:
        return None, (1, 1), "one process: nothing to exchange"
    if given:
        return card.link_gb_s, (0.8, 1.2), "as given"
    if topology.machines > 1:
        return None, (1, 1), "between machines: unknown (--interconnect_gb_s)"
    if card.link_gb_s is None:
        return None, (1, 1), "unknown (--interconnect_gb_s)"
    low, expected, high = PEER if card.peer else STAGED
    path = "" if card.peer else ", through the computer's memory (no peer access)"
    words = f"{expected:.0%} of {card.link}'s {card.link_gb_s:.0f} GB/s{path}; {low:.0%} to {high:.0%} were measured"
    return expected * card.link_gb_s, (low / expected, high / expected), words


def exchanged(recipe: PretrainRecipe, counted: Sizes, topology: Topology, bf16: bool) -> tuple[int, int]:
    """Bytes that leave a process in an optimizer step: for gathering weights, for reducing gradients.

    A ring over W processes sends (W - 1) / W of all bytes to gather or to reduce and scatter, twice that to all-reduce.
    FSDP that keeps weights gathered does so from one micro-batch to the next (FSDP2), or gathers for each (FSDP1).
    """
    micro_batches = accumulation_steps(recipe, topology.processes)
    weights = (2 if bf16 and not topology.gather_fp32 else 4) * counted.parameters
    gradients = 4 * counted.parameters
    if topology.processes == 1:
        return 0, 0
    if not topology.sharded:
        return 0, round(2 * (topology.processes - 1) / topology.processes * gradients)
    gathers = 2 * micro_batches if topology.reshard else 1
    share = (topology.shards - 1) / topology.shards
    between = 2 * (topology.replicas - 1) / topology.replicas * gradients / topology.shards
    return round(share * weights * gathers), round(share * gradients + between)


def recomputed(recipe: PretrainRecipe, config: GenesisConfig, counted: Sizes) -> float:
    """FLOPs done by FLOPs counted: `full` runs each block's forward pass once more; `selective` no large product.

    A forward pass is a third of what is counted; blocks are all of it but the output projection.
    """
    if recipe.recompute != "full":
        return 1.03 if recipe.recompute == "selective" else 1.0
    head = 6.0 * config.vocab_size * config.hidden_size
    return 1 + (1 - head / flops_per_token(config, recipe.sequence_length, counted.parameters)) / 3


def speed(
    recipe: PretrainRecipe,
    config: GenesisConfig,
    counted: Sizes,
    card: Card,
    topology: Topology,
    bf16: bool,
    link_given: bool = False,
    mfu: float | None = None,
) -> Speed:
    """Tokens a second of all devices together.

    Args:
        mfu: measured; speed follows from it alone.
    """
    flops = flops_per_token(config, recipe.sequence_length, counted.parameters)
    again = recomputed(recipe, config, counted)
    tokens = tokens_per_step(recipe, topology.processes)
    gb_s, spread, source = link(card, topology, link_given)
    exchange = Exchange(*exchanged(recipe, counted, topology, bf16), gb_s, source)
    peak = None if card.bf16_tflops is None else 1e12 * card.bf16_tflops * topology.processes
    if mfu is not None and peak is not None:
        seconds = tokens * flops / (mfu * peak)
        return Speed(flops, again, None, seconds, exchange, None, tokens / seconds, None, None, mfu, "mfu as given")
    share, why = efficiency(card)
    if not bf16 and share is not None:
        share, why = None, "float32 products: their peak is not in the table"
    if recipe.cpu_offload:
        share, why = None, OFFLOADED
    if share is None or exchange.seconds is None:
        computing = None if share is None else tokens * flops * again / (share * peak)
        reason = why if share is None else exchange.source
        return Speed(flops, again, share, computing, exchange, None, None, None, None, None, reason)

    def seconds_at(product: float, wire: float) -> tuple[float, float, float]:
        computing, sending = tokens * flops * again / (share * product * peak), exchange.seconds / wire
        hidden = min(computing, sending * (1 - 1 / config.num_hidden_layers))
        return computing + sending - hidden, computing, sending - hidden

    seconds, computing, exposed = seconds_at(1, 1)
    low, high = (tokens / seconds_at(p, w)[0] for p, w in zip(EFFICIENCY_RANGE, spread, strict=True))
    return Speed(
        flops,
        again,
        share,
        computing,
        exchange,
        exposed,
        tokens / seconds,
        low,
        high,
        tokens * flops / seconds / peak,
        why,
    )


def tokens_per_step(recipe: PretrainRecipe, processes: int) -> int:
    """Tokens of an optimizer step on so many processes."""
    rows = recipe.per_device_train_batch_size * accumulation_steps(recipe, processes) * processes
    return rows * recipe.sequence_length
