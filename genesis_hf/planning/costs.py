"""What a run takes besides a card's memory: days, energy, money, disk, the computer's memory."""

from dataclasses import dataclass

from genesis_hf.cards import PRICES, Card
from genesis_hf.checkpoint.space import MARGIN
from genesis_hf.config import PretrainRecipe
from genesis_hf.planning.devices import CPU, Topology
from genesis_hf.planning.memory import CPU_BASE, CPU_TEXT, Memory, Sizes, optimizer_bytes
from genesis_hf.planning.recipe import PlanRecipe
from genesis_hf.planning.speed import Speed
from genesis_hf.preflight.disk import checkpoints_kept

Range = tuple[float, float, float]
"""Expected, lowest, highest."""


@dataclass(frozen=True)
class Costs:
    """None where what it follows from is unknown.

    Attributes:
        days, kwh: kwh of the cards alone, at their power limit. rent, electricity: money, `rent_source` says whose.
        checkpoint: bytes of one on disk. checkpoints: most that stand at once, the one being written included.
        disk: bytes of all of them, in every folder they are written to.
        host: bytes of one machine's memory: its processes, offloaded state, the staging of a save.
    """

    days: Range | None
    kwh: Range | None
    rent: Range | None
    rent_source: str
    electricity: Range | None
    checkpoint: int
    checkpoints: int
    disk: int
    host: int


def costs(
    wanted: PlanRecipe,
    recipe: PretrainRecipe,
    counted: Sizes,
    card: Card,
    topology: Topology,
    held: Memory,
    estimate: Speed,
    total_tokens: int,
) -> Costs:
    """All of them for the whole schedule."""
    days = spread(total_tokens / 86400, estimate)
    hours = None if days is None else tuple(24 * day for day in days)
    kwh = None
    if hours is not None and card.power_w is not None:
        kwh = tuple(hour * topology.processes * card.power_w / 1000 for hour in hours)
    rent, source = None, "unknown (--price_per_hour)"
    if wanted.price_per_hour is not None:
        prices, source = (wanted.price_per_hour,) * 2, "price_per_hour as given"
    else:
        prices = card.price_per_hour
        source = f"typical, US dollars: {PRICES}" if prices else source
    if hours is not None and prices is not None:
        low, high = prices
        rent = tuple(h * topology.processes * p for h, p in zip(hours, ((low + high) / 2, low, high), strict=True))
    electricity = None
    if kwh is not None and wanted.price_per_kwh is not None:
        electricity = tuple(k * wanted.price_per_kwh for k in kwh)
    one = 4 * counted.parameters + optimizer_bytes(recipe, counted)
    one += one // 100 + MARGIN
    kept = checkpoints_kept(recipe)
    local = topology.processes // topology.machines
    host = held.total if card.name == CPU else local * (CPU_BASE + CPU_TEXT + sum(held.host.values()))
    folders = 2 if recipe.save_copy_dir else 1
    return Costs(days, kwh, rent, source, electricity, one, kept, folders * kept * one, host)


def spread(tokens_per_unit: float, estimate: Speed) -> Range | None:
    """Expected, lowest and highest, from the speed's expected, high and low."""
    if estimate.tokens_per_second is None:
        return None
    speeds = (estimate.tokens_per_second, estimate.high, estimate.low)
    return tuple(tokens_per_unit / (speed or estimate.tokens_per_second) for speed in speeds)
