"""Graphics cards: what their makers say of them, and what was measured where makers say nothing.

Nothing is guessed: what isn't known is None, and what rests on it says "unknown".
"""

import re
from dataclasses import dataclass, replace

from genesis_hf.config import nearest
from genesis_hf.errors import UserError

PCIE_4, PCIE_5 = 32.0, 64.0
"""GB/s of 16 lanes in one direction, as the standard counts."""


@dataclass(frozen=True)
class Card:
    """One kind of card.

    Attributes:
        name: what it is called here. pattern: a regular expression for it in a name, such as torch's; what else stands
            there must be in `BESIDES`.
        memory_gib: as the maker states it; the driver keeps a few percent.
        bf16_tflops: dense products in bf16 with fp32 accumulation, 1e12 a second.
        bandwidth_gb_s: of its memory.
        link, link_gb_s: what joins it to others of its kind in one machine; GB/s in one direction.
        peer: whether cards reach each other's memory; without it each byte goes through the computer's.
        power_w: the limit of the board.
        bf16, fp8: whether it has matrix units for them. Without bf16 a run computes in float32.
        price_per_hour: typical US dollars for renting one, lowest and highest, as `PRICES` dates them.
        source: of the figures.
    """

    name: str
    pattern: str
    memory_gib: float
    bf16_tflops: float | None = None
    bandwidth_gb_s: float | None = None
    link: str = "PCIe 4.0"
    link_gb_s: float | None = PCIE_4
    peer: bool = True
    power_w: float | None = None
    bf16: bool = True
    fp8: bool = False
    price_per_hour: tuple[float, float] | None = None
    source: str = ""


PRICES = "RunPod, spot to on demand, March 2026, deploybase.ai/articles/runpod-gpu-pricing"
"""Of `price_per_hour`. Hyperscalers ask up to twice as much, marketplaces less."""

GEFORCE = {"peer": False}
"""GeForce drivers since Ada, and most of Ampere, have no peer access over PCIe."""

GA102 = "NVIDIA GA102 whitepaper"
ADA = "NVIDIA Ada GPU architecture whitepaper"
BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"
HALVED = "half of its figure with sparsity"

PCIE = r"\bpcie?\b"
A100_PCIE = "NVIDIA A100 datasheet, PCIe; without NVLink bridges"

CARDS = (
    Card("RTX 3090", "3090", 24, 71.0, 936, power_w=350, price_per_hour=(0.22, 0.39), source=GA102, **GEFORCE),
    Card("RTX 3090 Ti", "3090 ?ti", 24, 80.0, 1008, power_w=450, source="NVIDIA GeForce RTX 3090 Ti", **GEFORCE),
    Card("RTX 4080", "4080", 16, 97.5, 717, power_w=320, fp8=True, source=ADA, **GEFORCE),
    Card(
        "RTX 4090", "4090", 24, 165.2, 1008, power_w=450, fp8=True, price_per_hour=(0.34, 0.60), source=ADA, **GEFORCE
    ),
    Card("RTX 5080", "5080", 16, 112.6, 960, "PCIe 5.0", PCIE_5, power_w=360, fp8=True, source=BLACKWELL, **GEFORCE),
    Card(
        "RTX 5090",
        "5090",
        32,
        209.5,
        1792,
        "PCIe 5.0",
        PCIE_5,
        power_w=575,
        fp8=True,
        price_per_hour=(0.69, 1.22),
        source=BLACKWELL,
        **GEFORCE,
    ),
    Card(
        "RTX PRO 6000",
        "pro ?6000",
        96,
        503.8,
        1792,
        "PCIe 5.0",
        PCIE_5,
        power_w=600,
        fp8=True,
        price_per_hour=(0.89, 1.57),
        source="NVIDIA RTX Blackwell PRO GPU architecture whitepaper; power of the Workstation Edition",
    ),
    Card("RTX 6000 Ada", "6000 ?ada", 48, 364.2, 960, power_w=300, fp8=True, source=f"{ADA} (4 x 91.1 in fp32)"),
    Card("RTX A4000", "a4000", 16, 76.7, 448, power_w=140, source="NVIDIA RTX A4000 datasheet (4 x 19.2 in fp32)"),
    Card("RTX A5000", "a5000", 24, 111.1, 768, power_w=230, source="NVIDIA RTX A5000 datasheet (4 x 27.8 in fp32)"),
    Card("RTX A6000", "a6000", 48, 154.8, 768, power_w=300, source=GA102),
    Card("A10", "a10", 24, 125.0, 600, power_w=150, source="NVIDIA A10 datasheet"),
    Card("A40", "a40", 48, 149.7, 696, power_w=300, source="NVIDIA A40 datasheet; without an NVLink bridge"),
    Card(
        "L4",
        "l4",
        24,
        121.0,
        300,
        power_w=72,
        fp8=True,
        price_per_hour=(0.44, 0.78),
        source=f"NVIDIA L4 datasheet, {HALVED}",
    ),
    Card(
        "L40",
        "l40",
        48,
        181.05,
        864,
        power_w=300,
        fp8=True,
        price_per_hour=(0.69, 1.22),
        source="NVIDIA L40 datasheet",
    ),
    Card(
        "L40S",
        "l40s",
        48,
        362.05,
        864,
        power_w=350,
        fp8=True,
        price_per_hour=(0.79, 1.40),
        source="NVIDIA L40S datasheet",
    ),
    Card("T4", "t4", 16, None, 320, power_w=70, bf16=False, source="NVIDIA T4 datasheet"),
    Card(
        "V100 16GB",
        "v100(?=.* 16 ?gb?)",
        16,
        None,
        900,
        "NVLink 2",
        150.0,
        power_w=300,
        bf16=False,
        source="NVIDIA V100 datasheet, SXM2",
    ),
    Card(
        "V100 32GB",
        "v100",
        32,
        None,
        900,
        "NVLink 2",
        150.0,
        power_w=300,
        bf16=False,
        source="NVIDIA V100 datasheet, SXM2",
    ),
    Card("A100 PCIe 40GB", f"a100(?=.*{PCIE})(?=.* 40 ?gb?)", 40, 312.0, 1555, power_w=250, source=A100_PCIE),
    Card(
        "A100 PCIe 80GB",
        f"a100(?=.*{PCIE})",
        80,
        312.0,
        1935,
        power_w=300,
        price_per_hour=(1.19, 2.10),
        source=A100_PCIE,
    ),
    Card(
        "A100 40GB",
        "a100(?=.* 40 ?gb?)",
        40,
        312.0,
        1555,
        "NVLink 3",
        300.0,
        power_w=400,
        source="NVIDIA A100 datasheet, SXM",
    ),
    Card(
        "A100 80GB",
        "a100",
        80,
        312.0,
        2039,
        "NVLink 3",
        300.0,
        power_w=400,
        price_per_hour=(1.39, 2.45),
        source="NVIDIA A100 datasheet, SXM",
    ),
    Card(
        "H100 PCIe",
        f"h100(?=.*{PCIE})",
        80,
        756.0,
        2000,
        "PCIe 5.0",
        PCIE_5,
        power_w=350,
        fp8=True,
        price_per_hour=(1.99, 3.51),
        source=f"NVIDIA H100 datasheet, {HALVED}; without NVLink bridges",
    ),
    Card(
        "H100 NVL",
        "h100 ?nvl",
        94,
        835.5,
        3900,
        "NVLink bridge",
        300.0,
        power_w=400,
        fp8=True,
        source=f"NVIDIA H100 datasheet, {HALVED}; pairs that a bridge joins",
    ),
    Card(
        "H100",
        "h100",
        80,
        989.0,
        3350,
        "NVLink 4",
        450.0,
        power_w=700,
        fp8=True,
        price_per_hour=(2.69, 4.76),
        source=f"NVIDIA H100 datasheet, SXM, {HALVED}",
    ),
    Card(
        "GH200 96GB",
        "gh200( 480 ?gb)?",  # which is the processor's memory, in torch's name for it
        96,
        989.0,
        4000,
        "NVLink-C2C to its own processor alone",
        None,
        power_w=900,
        fp8=True,
        source=f"NVIDIA GH200 datasheet, {HALVED}; power of processor and card",
    ),
    Card(
        "H200",
        "h200",
        141,
        989.0,
        4800,
        "NVLink 4",
        450.0,
        power_w=700,
        fp8=True,
        price_per_hour=(3.59, 6.35),
        source=f"NVIDIA H200 datasheet, SXM, {HALVED}",
    ),
    Card(
        "B200",
        "b200",
        180,
        2250.0,
        8000,
        "NVLink 5",
        900.0,
        power_w=1000,
        fp8=True,
        price_per_hour=(5.98, 10.57),
        source=f"NVIDIA Blackwell datasheet (HGX B200), {HALVED}",
    ),
    Card(
        "MI300X",
        "mi300x",
        192,
        1307.4,
        5300,
        "Infinity Fabric",
        448.0,
        power_w=750,
        fp8=True,
        source="AMD Instinct MI300X datasheet",
    ),
    Card(
        "MI325X",
        "mi325x",
        256,
        1307.4,
        6000,
        "Infinity Fabric",
        448.0,
        power_w=1000,
        fp8=True,
        source="AMD Instinct MI325X datasheet",
    ),
)
"""Particular names before general ones: the first whose pattern is found and leaves nothing unexplained."""

BESIDES = re.compile(
    r"nvidia|geforce|tesla|quadro|amd|radeon|instinct|oam|rtx|gpu|ada|blackwell|hopper|generation|"
    r"(server|workstation) edition|sxm\d?|pcie?|hbm\d?e?|(?P<gb>\d+) ?gi?b?"
)
"""What a name may hold beside the card's own: makers and words that change none of its figures, and its memory."""


def find_card(name: str) -> Card | None:
    """The card of this name, a user's or torch.cuda.get_device_name()'s; None for one that isn't in the table.

    A name with a word too many (`4090 D`, `Laptop`, `MIG 1g.10gb`) or with another memory is another card.
    """
    plain = re.sub(r"[-_\s]+", " ", name.lower())
    plain = re.sub(r"\brtx(?=\d)", "rtx ", plain).strip()
    return next((card for card in CARDS if is_named(card, plain)), None)


def is_named(card: Card, plain: str) -> bool:
    """Whether a name in lower case with single blanks is this card's and no other's."""
    found = re.search(rf"(?<![a-z\d])({card.pattern})(?![a-z\d])", plain)
    if found is None:
        return False
    rest = (plain[: found.start()] + " " + plain[found.end() :]).strip()
    while rest:
        word = BESIDES.match(rest)
        if word is None or (word["gb"] and float(word["gb"]) != card.memory_gib):
            return False
        rest = rest[word.end() :].strip()
    return True


def card_from_numbers(name: str, **numbers: float | None) -> Card:
    """A card of the table, with those of its numbers that are given replaced; or one made of them.

    Raises:
        UserError: a name that the table lacks, and no memory_gib.
    """
    given = {key: value for key, value in numbers.items() if value is not None}
    known = find_card(name)
    if known is not None:
        return replace(known, **given, source=known.source + ("; numbers given" if given else ""))
    if "memory_gib" not in given:
        names = {card.name for card in CARDS}
        raise UserError(
            f"device {name!r} is not in the table{nearest(name, names).replace('known keys', 'known cards')}; another "
            "card is described by numbers: --memory_gb, and for speed --bf16_tflops --bandwidth_gb_s "
            "--interconnect_gb_s --power_w"
        )
    link = given.get("link_gb_s")
    return Card(
        name, "", **{"link_gb_s": link, **given}, link="as given" if link else "unknown", source="numbers given"
    )
