"""A whole plan for one recipe."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from genesis_hf.cards import Card
from genesis_hf.config import PretrainRecipe
from genesis_hf.errors import UserError
from genesis_hf.modeling import GenesisConfig, model_config
from genesis_hf.planning.costs import Costs, costs
from genesis_hf.planning.devices import CPU, Topology, devices, topology
from genesis_hf.planning.memory import GIB, Memory, Sizes, memory, sizes
from genesis_hf.planning.recipe import TRANSFORMERS, PlanRecipe
from genesis_hf.planning.speed import Speed, speed, tokens_per_step
from genesis_hf.planning.variants import Situation, Variant, cheapest, variants
from genesis_hf.training.distributed import use_bf16
from genesis_hf.training.setup import accumulation_steps

CHINCHILLA = 20
"""Tokens a parameter that train a model of a given compute best; Hoffmann et al. 2022, table 3."""

MOST_IN_A_MACHINE = 8
"""Cards; more are seldom joined as the table says."""

FULL, TIGHT = 0.97, 0.90
"""Shares of a card's memory: above the one a run doesn't fit (the driver keeps some), above the other it is tight."""


@dataclass(frozen=True)
class Plan:
    """What `scripts/plan.py` prints.

    Attributes:
        fits: yes, tight or no.
        situation: what variants start from.
        notes: what was assumed that the recipe doesn't say.
    """

    recipe: PretrainRecipe
    card: Card
    topology: Topology
    config: GenesisConfig
    bf16: bool
    counted: Sizes
    accumulation: int
    tokens_per_step: int
    total_tokens: int
    memory: Memory
    fits: str
    speed: Speed
    costs: Costs
    situation: Situation
    notes: list[str]

    @functools.cached_property
    def variants(self) -> list[Variant]:
        """The run with one setting changed, for each that can be."""
        return variants(self.situation)

    @functools.cached_property
    def best(self) -> Variant | None:
        """The fastest that fits; None where nothing does, or where this run does and nothing is faster."""
        return cheapest(self.situation)

    @property
    def chinchilla(self) -> float:
        """Tokens of the run by those that Hoffmann et al. would give its parameters."""
        return self.total_tokens / (CHINCHILLA * self.counted.parameters)

    def as_values(self) -> dict[str, Any]:
        """Plain values, for a program."""
        values = {
            "device": dataclasses.asdict(self.card) | {"count": self.topology.processes},
            "topology": dataclasses.asdict(self.topology) | {"name": self.topology.name},
            "bf16": self.bf16,
            "parameters": self.counted.parameters,
            "flops_per_token": self.speed.flops_per_token,
            "tokens_per_step": self.tokens_per_step,
            "total_tokens": self.total_tokens,
            "chinchilla": self.chinchilla,
            "memory": dataclasses.asdict(self.memory)
            | {"allocated": self.memory.allocated, "total": self.memory.total, "fits": self.fits},
            "speed": dataclasses.asdict(self.speed) | {"exchange_seconds": self.speed.exchange.seconds},
            "costs": dataclasses.asdict(self.costs),
            "variants": [dataclasses.asdict(variant) for variant in self.variants],
            "best": self.best and dataclasses.asdict(self.best),
            "notes": self.notes,
        }
        values["device"].pop("pattern")
        return values


def plan(wanted: PlanRecipe, recipe: PretrainRecipe) -> Plan:
    """Everything about a run, from its recipe and a device; nothing is downloaded and no data is read.

    Raises:
        UserError: a device, a launch or a recipe that doesn't add up.
    """
    count, card = devices(wanted)
    shared = topology(wanted, recipe, count)
    whole_logits = wanted.program == TRANSFORMERS
    if whole_logits:
        recipe = dataclasses.replace(recipe, reset_positions=False)
    refuse_what_the_device_lacks(recipe, card)
    config, notes = configuration(recipe)
    on_card = card.name != CPU
    bf16 = recipe.bf16 is not False and card.bf16 if on_card else use_bf16(recipe.bf16)
    if on_card and recipe.bf16 is None:
        notes.append(f"bf16: null is planned as {'bfloat16' if bf16 else 'float32: this card has no bf16'}")
    if count > MOST_IN_A_MACHINE and shared.machines == 1:
        notes.append(f"planned as one machine with {count} devices; --num_machines says otherwise")
    if recipe.torch_compile:
        notes.append("torch_compile is not modelled: it takes less memory and time than this says")
    if recipe.fp8:
        notes.append("fp8 is planned as bf16: it takes about as much memory, and its gain in speed is not known here")
    counted = sizes(config)
    situation = Situation(
        recipe,
        config,
        counted,
        card,
        shared,
        bf16,
        "cuda" if on_card else "cpu",
        whole_logits,
        wanted.interconnect_gb_s is not None,
        wanted.mfu,
        round(card.memory_gib * GIB),
        FULL,
        TIGHT,
    )
    held = memory(recipe, config, counted, shared, bf16, situation.device, whole_logits)
    estimate = speed(recipe, config, counted, card, shared, bf16, situation.link_given, wanted.mfu)
    per_step = tokens_per_step(recipe, count)
    total = per_step * recipe.last_step
    share = held.total / situation.capacity
    fits = "yes" if share <= TIGHT else "tight" if share <= FULL else "no"
    return Plan(
        recipe,
        card,
        shared,
        config,
        bf16,
        counted,
        accumulation_steps(recipe, count),
        per_step,
        total,
        held,
        fits,
        estimate,
        costs(wanted, recipe, counted, card, shared, held, estimate, total),
        situation,
        notes,
    )


def refuse_what_the_device_lacks(recipe: PretrainRecipe, card: Card) -> None:
    """Raise `UserError` where the run itself would."""
    on_card = card.name != CPU
    for key, wanted, able in (
        ("fp8", recipe.fp8, on_card and (card.fp8 or not card.source.startswith("NVIDIA"))),
        ("loss_implementation: liger", recipe.loss_implementation == "liger", on_card),
        ("cpu_offload", recipe.cpu_offload, on_card),
        ("bf16: true", recipe.bf16 is True, card.bf16),
    ):
        if wanted and not able:
            raise UserError(f"{key}: {card.name} has nothing for it; leave the key out, or name another device")


def configuration(recipe: PretrainRecipe) -> tuple[GenesisConfig, list[str]]:
    """The model's configuration without its tokenizer, and what that leaves open.

    Raises:
        UserError: rows longer than the model's positions.
    """
    config, notes = model_config(recipe.model), []
    if isinstance(recipe.model, dict) and "vocab_size" not in recipe.model:
        notes.append(
            f"model.vocab_size is not in the recipe: {config.vocab_size:,} is assumed; the run takes the tokenizer's"
        )
    if recipe.sequence_length > config.max_position_embeddings:
        raise UserError(
            f"sequence_length {recipe.sequence_length} exceeds model.max_position_embeddings "
            f"{config.max_position_embeddings}; raise the one or lower the other"
        )
    return config, notes
