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
        name: what it is called here. pattern: a regular expression that finds it in a name, such as torch's.
        memory_gib: as the maker states it; the driver keeps a few percent.
        bf16_tflops: dense products in bf16 with fp32 accumulation, 1e12 a second.
        bandwidth_gb_s: of its memory.
        link, link_gb_s: what joins it to others of its kind in one machine; GB/s in one direction.
        peer: whether cards reach each other's memory; without it each byte goes through the computer's.
        power_w: the limit of the board.
        fp8: whether it has matrix units for it.
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
    fp8: bool = False
    price_per_hour: tuple[float, float] | None = None
    source: str = ""


PRICES = "on demand at specialised clouds, May 2026, mercatus-ai.com/blog/cloud-gpu-pricing"
"""Of `price_per_hour`. Hyperscalers ask up to twice as much, marketplaces half."""

GEFORCE = {"peer": False}
"""GeForce drivers since Ada, and most of Ampere, have no peer access over PCIe."""

CARDS = (
    Card("RTX 3090", r"\b3090\b(?! ?ti)", 24, 71.0, 936, power_w=350, source="NVIDIA GA102 whitepaper", **GEFORCE),
    Card(
        "RTX 4090",
        r"\b4090\b(?! ?d\b)",
        24,
        165.2,
        1008,
        power_w=450,
        fp8=True,
        source="NVIDIA Ada GPU architecture whitepaper",
        **GEFORCE,
    ),
    Card(
        "RTX 5090",
        r"\b5090\b(?! ?d\b)",
        32,
        209.5,
        1792,
        "PCIe 5.0",
        PCIE_5,
        power_w=575,
        fp8=True,
        source="NVIDIA RTX Blackwell GPU architecture whitepaper",
        **GEFORCE,
    ),
    Card(
        "RTX PRO 6000",
        r"pro 6000",
        96,
        503.8,
        1792,
        "PCIe 5.0",
        PCIE_5,
        power_w=600,
        fp8=True,
        source="NVIDIA RTX Blackwell PRO GPU architecture whitepaper; power of the Workstation Edition",
    ),
    Card(
        "RTX 6000 Ada",
        r"6000 ada",
        48,
        364.2,
        960,
        power_w=300,
        fp8=True,
        source="NVIDIA Ada GPU architecture whitepaper (91.1 TFLOP/s in fp32, tensor cores four times that)",
    ),
    Card("RTX A6000", r"a6000\b", 48, 154.8, 768, power_w=300, source="NVIDIA GA102 whitepaper"),
    Card("L40S", r"\bl40s\b", 48, 362.05, 864, power_w=350, fp8=True, source="NVIDIA L40S datasheet"),
    Card(
        "L4",
        r"\bl4\b",
        24,
        121.0,
        300,
        power_w=72,
        fp8=True,
        source="NVIDIA L4 datasheet, half of its figure with sparsity",
    ),
    Card(
        "A100 40GB",
        r"a100.*\b40 ?gb",
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
        r"a100",
        80,
        312.0,
        2039,
        "NVLink 3",
        300.0,
        power_w=400,
        price_per_hour=(1.10, 1.50),
        source="NVIDIA A100 datasheet, SXM",
    ),
    Card(
        "H100 PCIe",
        r"h100.*\bpcie",
        80,
        756.0,
        2000,
        "PCIe 5.0",
        PCIE_5,
        power_w=350,
        fp8=True,
        source="NVIDIA H100 datasheet, half of its figure with sparsity; without NVLink bridges",
    ),
    Card(
        "H100",
        r"h100(?!.*nvl)",
        80,
        989.0,
        3350,
        "NVLink 4",
        450.0,
        power_w=700,
        fp8=True,
        price_per_hour=(2.50, 3.50),
        source="NVIDIA H100 datasheet, SXM, half of its figure with sparsity",
    ),
    Card(
        "H200",
        r"h200(?!.*nvl)",
        141,
        989.0,
        4800,
        "NVLink 4",
        450.0,
        power_w=700,
        fp8=True,
        price_per_hour=(3.50, 4.50),
        source="NVIDIA H200 datasheet, SXM, half of its figure with sparsity",
    ),
    Card(
        "B200",
        r"\bb200\b",
        180,
        2250.0,
        8000,
        "NVLink 5",
        900.0,
        power_w=1000,
        fp8=True,
        source="NVIDIA Blackwell datasheet (HGX B200), half of its figure with sparsity",
    ),
    Card(
        "MI300X",
        r"mi300x",
        192,
        1307.4,
        5300,
        "Infinity Fabric",
        448.0,
        power_w=750,
        fp8=True,
        source="AMD Instinct MI300X datasheet",
    ),
)
"""From the particular name to the general one: the first whose pattern is found."""


def find_card(name: str) -> Card | None:
    """The card of this name, a user's or torch.cuda.get_device_name()'s; None for one that isn't in the table."""
    plain = re.sub(r"[-_]+", " ", name.lower())
    if "laptop" in plain or "max q" in plain:
        return None
    return next((card for card in CARDS if re.search(card.pattern, plain)), None)


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
            f"device {name!r} is not in the table{nearest(name, names).replace('known keys', 'known cards')}. Another "
            "card is described by numbers: --memory_gb, and for speed --bf16_tflops --bandwidth_gb_s "
            "--interconnect_gb_s --power_w"
        )
    link = given.get("link_gb_s")
    return Card(
        name, "", **{"link_gb_s": link, **given}, link="as given" if link else "unknown", source="numbers given"
    )
