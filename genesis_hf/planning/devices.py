"""Devices, and how their processes share the model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from genesis_hf.cards import Card, card_from_numbers
from genesis_hf.config import PretrainRecipe, nearest, read_yaml
from genesis_hf.errors import UserError
from genesis_hf.planning.recipe import TRANSFORMERS, PlanRecipe

CPU = "cpu"

WORDS = ("single", "ddp", "fsdp1", "fsdp2", "hsdp")
"""Kinds of launch that `accelerate_config` may name instead of a YAML."""


@dataclass(frozen=True)
class Topology:
    """How processes share the model.

    Attributes:
        kind: single (one process), ddp, fsdp1 or fsdp2 (hsdp is fsdp2 with replicas).
        processes, machines: in all.
        shards: processes that share one copy of the model.
        reshard: FSDP gives up gathered weights after the forward pass and gathers them again.
        gather_fp32: FSDP gathers fp32 weights, which autocast then casts, instead of bf16 ones.
        said_by: where this comes from.
    """

    kind: str
    processes: int = 1
    machines: int = 1
    shards: int = 1
    reshard: bool = False
    gather_fp32: bool = False
    said_by: str = ""

    @property
    def replicas(self) -> int:
        return self.processes // self.shards

    @property
    def sharded(self) -> bool:
        return self.kind.startswith("fsdp")

    @property
    def name(self) -> str:
        names = {"single": "one process", "ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2"}
        name = names[self.kind]
        if self.sharded and self.replicas > 1:
            name = f"HSDP, {self.replicas} replicas of {self.shards} shards"
        if self.sharded:
            name += ", resharded after the forward pass" if self.reshard else ", weights kept gathered"
        if self.sharded and self.gather_fp32:
            name += ", gathered in fp32"
        return name


def devices(wanted: PlanRecipe) -> tuple[int, Card]:
    """How many of which device.

    Raises:
        UserError: a device that can't be read or isn't known.
    """
    name = wanted.device or this_machine()
    count, name = count_and_name(name)
    if count < 1:
        raise UserError(f"device {wanted.device!r}: write a number and a name, such as '2x RTX 4090', or cpu")
    if name.lower() == CPU:
        if count > 1:
            raise UserError("device: cpu is planned as one process; for several, 'cpu' times their number is near")
        memory = wanted.memory_gb or psutil.virtual_memory().total / 2**30
        return 1, Card(
            CPU, "", memory, wanted.bf16_tflops, link_gb_s=None, power_w=wanted.power_w, source="this machine"
        )
    numbers = {
        "memory_gib": wanted.memory_gb,
        "bf16_tflops": wanted.bf16_tflops,
        "bandwidth_gb_s": wanted.bandwidth_gb_s,
        "link_gb_s": wanted.interconnect_gb_s,
        "power_w": wanted.power_w,
    }
    return count, card_from_numbers(name, **numbers)


COUNTED = (r"(\d+)\s*[x×*]\s*(?P<name>[^\s-].*)", r"(\d{1,3})\s+(?P<name>[a-z].*)", r"(?P<name>\S.*?)\s+[x×*]\s*(\d+)")
"""`2x RTX 4090`, `2 H100`, `RTX 4090 x2`; `3090 Ti` is a name."""


def count_and_name(text: str) -> tuple[int, str]:
    """How many of what; 0 where that can't be told."""
    text = text.strip()
    for pattern in COUNTED:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return int(match[1] if match.start(1) < match.start("name") else match[2]), match["name"]
    return (0 if re.match(r"$|-|\d+\s*[x×*]|\d*[.,]\d", text, re.IGNORECASE) else 1), text


def this_machine() -> str:
    """`device` in words for the machine at hand."""
    if not torch.cuda.is_available():
        return CPU
    return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"


def topology(wanted: PlanRecipe, recipe: PretrainRecipe, count: int) -> Topology:
    """How so many devices share the model.

    Raises:
        UserError: a YAML that can't be read, or that doesn't go with the devices or the recipe.
    """
    word = wanted.accelerate_config
    if word is None and wanted.program == TRANSFORMERS and count > 1:
        word, said_by = "fsdp1", "Accelerate's default"
    elif word is None:
        word, said_by = ("fsdp2", "default for several devices") if count > 1 else ("single", "default for one device")
        if count == 1 and recipe.cpu_offload:
            word, said_by = "fsdp2", "cpu_offload needs it"
    else:
        said_by = f"accelerate_config {word}"
    values = read_launch(word) if word not in WORDS else {"kind": word}
    found = from_launch(values, count, wanted)
    if wanted.fsdp_reshard_after_forward is not None:
        found = replace(found, reshard=wanted.fsdp_reshard_after_forward)
    found = replace(found, said_by=said_by)
    if wanted.program == TRANSFORMERS and count > 1:
        found = as_transformers(found)
    if recipe.cpu_offload and found.kind != "fsdp2":
        raise UserError("cpu_offload needs FSDP2: --accelerate_config fsdp2")
    if recipe.optim == "muon" and found.kind == "fsdp1":
        raise UserError("optim: muon needs whole matrices, which FSDP1 flattens: --accelerate_config fsdp2")
    return found


def as_transformers(shared: Topology) -> Topology:
    """FSDP1 as Accelerate sets it up unless told otherwise: all of it sharded, weights in fp32 that autocast casts."""
    return replace(shared, kind="fsdp1", shards=shared.processes, reshard=True, gather_fp32=True)


def read_launch(path: str) -> dict[str, Any]:
    """A YAML of `accelerate launch` as `{"kind": …, "reshard": …, "replicas": …, "machines": …}`.

    Raises:
        UserError: no such file, or a kind of launch that isn't planned.
    """
    if not Path(path).exists() and "/" not in path and not path.endswith((".yaml", ".yml")):
        raise UserError(
            f"accelerate_config {path!r} is neither a file nor a word that is known{nearest(path, set(WORDS))}"
        )
    values = read_yaml(path)
    kind = str(values.get("distributed_type", "NO")).upper()
    machines = whole_number(values, "num_machines", path)
    if kind in ("NO", "MULTI_CPU"):
        return {"kind": "single"}
    if kind in ("MULTI_GPU", "DDP"):
        return {"kind": "ddp", "machines": machines}
    if kind != "FSDP":
        raise UserError(f"{path}: distributed_type {kind} is not planned; it must be NO, MULTI_GPU or FSDP")
    fsdp, mesh = (section(values, key, path) for key in ("fsdp_config", "parallelism_config"))
    version = whole_number(fsdp, "fsdp_version", path)
    if version > 2:
        raise UserError(f"{path}: fsdp_version is 1 or 2, not {version}")
    if str(fsdp.get("fsdp_sharding_strategy")) in ("NO_SHARD", "3"):
        raise UserError(f"{path}: fsdp_sharding_strategy NO_SHARD is not planned; distributed_type: MULTI_GPU does it")
    reshard = fsdp.get("fsdp_reshard_after_forward", True)
    if version == 1 and "fsdp_sharding_strategy" in fsdp:
        reshard = str(fsdp["fsdp_sharding_strategy"]) in ("FULL_SHARD", "1", "HYBRID_SHARD", "4")
    replicas = whole_number(mesh, "parallelism_config_dp_replicate_size", path)
    return {
        "kind": f"fsdp{version}",
        "reshard": str(reshard).lower() in ("true", "full_shard"),
        "replicas": replicas,
        "machines": machines,
    }


def section(values: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """A mapping inside a launch's YAML; empty where there is none."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: {key} must hold keys, not {found!r}")
    return found


def whole_number(values: dict[str, Any], key: str, path: str) -> int:
    """A number of 1 or more in a launch's YAML, 1 where it isn't named."""
    found = values.get(key)
    found = 1 if found is None else found
    if not str(found).isdigit() or int(found) < 1:
        raise UserError(f"{path}: {key} must be a whole number above 0, not {found!r}")
    return int(found)


def from_launch(values: dict[str, Any], count: int, wanted: PlanRecipe) -> Topology:
    """The topology of `count` devices; the word hsdp means a replica a machine.

    Raises:
        UserError: devices that machines or replicas can't share evenly, or a kind that doesn't go with their number.
    """
    kind, machines, replicas = values["kind"], wanted.num_machines, values.get("replicas", 1)
    if machines == 1:
        machines = values.get("machines", 1)
    if count % machines:
        raise UserError(f"{count} devices can't be spread over {machines} machines evenly")
    if kind == "hsdp":
        if machines == 1:
            raise UserError("hsdp has a replica a machine: give --num_machines")
        kind, replicas = "fsdp2", machines
    if replicas > 1:
        if count % replicas:
            raise UserError(f"{count} devices can't be shared by {replicas} replicas evenly")
        if count == replicas:
            raise UserError("hsdp with one device a replica shards nothing; --accelerate_config ddp")
        return Topology(kind, count, machines, count // replicas, values.get("reshard", False))
    if kind == "single" and count > 1:
        raise UserError(f"{count} devices and a launch of one process; --accelerate_config fsdp2 or ddp")
    if kind == "ddp" and count == 1:
        kind = "single"
    shards = count if kind.startswith("fsdp") else 1
    return Topology(kind, count, machines, shards, values.get("reshard", False))
