"""The same run with other settings, and the cheapest of them that fits."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

from genesis_hf.cards import Card
from genesis_hf.config import PretrainRecipe
from genesis_hf.modeling import GenesisConfig
from genesis_hf.planning.devices import Topology, as_transformers
from genesis_hf.planning.memory import Memory, Sizes, memory
from genesis_hf.planning.recipe import TRANSFORMERS
from genesis_hf.planning.speed import OFFLOADED, Speed, speed
from genesis_hf.training.setup import accumulation_steps

LEAST_TOKENS = 2048
"""Of a micro-batch on a card: with fewer, products are too small to keep it busy (assumed)."""

MOST_ROWS = 16
"""More at once than this are not tried in the place of micro-batches."""

EQUAL = 1.01
"""Speeds closer than this count as the same: the setting that changes less is preferred."""


@dataclass(frozen=True)
class Situation:
    """What all variants of a run share, and where they start from.

    Attributes:
        mfu: measured, of the run as it is. link_given: whether the exchange's GB/s were.
        capacity: bytes of a device. full: share of it that may be used. roomy: share that is comfortable.
    """

    recipe: PretrainRecipe
    config: GenesisConfig
    counted: Sizes
    card: Card
    topology: Topology
    bf16: bool
    device: str
    whole_logits: bool
    link_given: bool
    mfu: float | None
    capacity: int
    full: float
    roomy: float


@dataclass(frozen=True)
class Variant:
    """A run with some settings changed.

    Attributes:
        changes: by key, as on the command line; the launch's among them (`accelerate_config`,
            `fsdp_reshard_after_forward`), which belong to its YAML.
        total: bytes on a device. tokens_per_second, relative: None where unknown; relative to the run as it is.
        fits: whether a device holds it.
    """

    changes: dict[str, Any]
    total: int
    activations: int
    tokens_per_second: float | None
    relative: float | None
    fits: bool

    @property
    def flags(self) -> str:
        """The changes as arguments."""
        return " ".join(f"--{key} {str(value).lower()}" for key, value in self.changes.items())


def variants(situation: Situation) -> list[Variant]:
    """One setting changed at a time, each value that it can have here."""
    recipe, shared = situation.recipe, situation.topology
    found = [vary(situation, {})]
    for word in ("none", "selective", "full"):
        if word != recipe.recompute:
            found.append(vary(situation, {"gradient_checkpointing": word}))
    for rows in dict.fromkeys([*rows_at_once(recipe), 2 * recipe.per_device_train_batch_size]):
        if rows != recipe.per_device_train_batch_size and (changes := batch(recipe, rows)):
            found.append(vary(situation, changes))
    found.append(vary(situation, {"optim": "muon" if recipe.optim == "adamw" else "adamw"}))
    if situation.device == "cpu" and recipe.save_async:
        found.append(vary(situation, {"save_async": False}))
    if situation.device == "cuda":
        if recipe.attn_implementation is None and recipe.reset_positions:
            found.append(vary(situation, {"attn_implementation": "documents"}))
        if shared.processes > 1:
            found += [vary(situation, {"accelerate_config": kind}) for kind in ("ddp", "fsdp2") if kind != shared.kind]
        if shared.sharded:
            found.append(vary(situation, {"fsdp_reshard_after_forward": not shared.reshard}))
        found.append(vary(situation, {"cpu_offload": not recipe.cpu_offload}))
        if not situation.whole_logits:
            found.append(vary(situation, {"program": TRANSFORMERS}))
    return [variant for variant in found if variant is not None]


def cheapest(situation: Situation) -> Variant | None:
    """The fastest combination of settings that fits and trains the same: recomputation, rows at once, sharding.

    On equal speed, the one with fewer changes. Offloading comes last, for what it costs isn't known here. None where
    nothing fits, or where the run fits as it is and nothing is known to be faster.
    """
    recipe, shared = situation.recipe, situation.topology
    as_it_is = vary(situation, {})
    launches: list[dict[str, Any]] = [{}]
    if situation.device == "cuda" and shared.processes > 1 and not shared.sharded:
        launches.append({"accelerate_config": "fsdp2"})
    if situation.device == "cuda" and shared.processes > 1 and not shared.reshard:
        launches.append(({} if shared.sharded else launches[-1]) | {"fsdp_reshard_after_forward": True})
    offloads: list[dict[str, Any]] = [{}]
    if situation.device == "cuda":
        offloads.append({"cpu_offload": True})
    if recipe.cpu_offload:
        offloads = [{"cpu_offload": False}, {}]
    for offload in offloads:
        fitting = []
        tried = [*rows_at_once(recipe), *all_rows(recipe, shared.processes)]
        for word, rows, launch in itertools.product(("none", "selective", "full"), tried, launches):
            changes = {} if word == recipe.recompute else {"gradient_checkpointing": word}
            if rows != recipe.per_device_train_batch_size:
                changes |= batch(recipe, rows) or {}
            variant = vary(situation, changes | launch | offload)
            if variant is not None and variant.fits:
                small = rows * recipe.sequence_length < LEAST_TOKENS and rows < recipe.per_device_train_batch_size
                tight = variant.total > situation.roomy * situation.capacity
                fitting.append((small, tight, variant))
        if fitting:
            best = min((small, tight) for small, tight, _ in fitting)
            chosen = fastest([variant for small, tight, variant in fitting if (small, tight) == best])
            if as_it_is.fits and (chosen.relative or 0) < EQUAL:
                return None
            return chosen
    return None


def fastest(fitting: list[Variant]) -> Variant:
    """By speed; where it is equal or unknown, by the number of changes, then by what is recomputed, then by memory."""
    top = max(variant.relative or 0 for variant in fitting)
    near = [variant for variant in fitting if (variant.relative or 0) * EQUAL >= top]
    order = {"none": 0, "selective": 1, "full": 2}

    def rank(variant: Variant) -> tuple:
        return len(variant.changes), order.get(variant.changes.get("gradient_checkpointing", "none"), 0), variant.total

    return min(near, key=rank)


def vary(situation: Situation, changes: dict[str, Any]) -> Variant | None:
    """The run with these changes; None where it can't be had."""
    recipe, shared, whole = situation.recipe, situation.topology, situation.whole_logits
    keys = dict(changes)
    if keys.pop("program", None):
        whole, keys["reset_positions"] = True, False
        shared = as_transformers(shared) if shared.processes > 1 else shared
    kind = keys.pop("accelerate_config", None)
    if kind is not None:
        shards = shared.processes if kind.startswith("fsdp") else 1
        shared = replace(shared, kind=kind, shards=shards, reshard=False)
    shared = replace(shared, reshard=keys.pop("fsdp_reshard_after_forward", shared.reshard))
    if keys.get("cpu_offload") and shared.kind in ("single", "fsdp2"):
        shared = replace(shared, kind="fsdp2")
    elif keys.get("cpu_offload"):
        return None
    recipe = replace(recipe, **keys)
    if shared.kind == "fsdp1" and recipe.optim == "muon":
        return None
    if recipe.gradient_accumulation_steps * (recipe.num_processes or shared.processes) % shared.processes:
        return None
    held = memory(recipe, situation.config, situation.counted, shared, situation.bf16, situation.device, whole)
    estimate, before = speed_of(situation, recipe, shared), speed_of(situation, situation.recipe, situation.topology)
    share = 1.0 if not changes else None if recipe.cpu_offload else relative(estimate, before)
    tokens_per_second = estimate.tokens_per_second
    if situation.mfu is not None:
        measured = speed_of(situation, situation.recipe, situation.topology, situation.mfu).tokens_per_second
        tokens_per_second = None if share is None or measured is None else share * measured
    fits = held.total <= situation.full * situation.capacity
    return Variant(changes, held.total, passing(held), tokens_per_second, share, fits)


def speed_of(situation: Situation, recipe: PretrainRecipe, shared: Topology, mfu: float | None = None) -> Speed:
    situated = (situation.config, situation.counted, situation.card, shared, situation.bf16, situation.link_given)
    return speed(recipe, *situated, mfu)


def relative(estimate: Speed, before: Speed) -> float | None:
    """Speed by the speed before. Where the link or the peak isn't known, by what is recomputed, and only of runs that
    send the same over the link."""
    if estimate.tokens_per_second and before.tokens_per_second:
        return estimate.tokens_per_second / before.tokens_per_second
    if estimate.source == OFFLOADED or before.source == OFFLOADED or estimate.exchange.sent != before.exchange.sent:
        return None
    return before.recomputed / estimate.recomputed


def passing(held: Memory) -> int:
    """Bytes that grow with rows."""
    names = ("activations", "logits and loss", "passing through a block")
    return sum(held.parts.get(name, 0) for name in names)


def rows_at_once(recipe: PretrainRecipe) -> list[int]:
    """Micro-batches to try: the recipe's, its half, a quarter and an eighth, and one row."""
    rows = recipe.per_device_train_batch_size
    return list(dict.fromkeys(r for r in (rows, rows // 2, rows // 4, rows // 8, 1) if r))


def all_rows(recipe: PretrainRecipe, processes: int) -> list[int]:
    """All of a process's rows at once, where that are few: with one micro-batch no gradients add up in between."""
    rows = recipe.per_device_train_batch_size * accumulation_steps(recipe, processes)
    return [rows] if recipe.per_device_train_batch_size < rows <= MOST_ROWS else []


def batch(recipe: PretrainRecipe, rows: int) -> dict[str, int] | None:
    """As many tokens a step with so many rows at once; None where that doesn't divide."""
    total = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    if total % rows:
        return None
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": total // rows}
