"""The launch and the machine, judged by what `probe` found."""

import importlib.metadata
import os
import shutil
import subprocess
from typing import Any

from genesis_hf.config import PretrainRecipe
from genesis_hf.preflight.verdicts import Verdict

PACKAGES = ("torch", "transformers", "accelerate")


def judge_launch(recipe: PretrainRecipe, found: dict[str, Any]) -> Verdict:
    """Versions, devices, and whether they are what the recipe is written for."""
    names = [process["device"] for process in found["processes"]]
    devices = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    versions = {"python": found["python"], **{name: importlib.metadata.version(name) for name in PACKAGES}}
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    count = found["num_processes"]
    figure = f"{count} process{'es' if count > 1 else ''} ({found['distributed_type']}) on {devices}; {words}"
    values = {key: found[key] for key in ("num_processes", "distributed_type", "processes")} | {"versions": versions}
    cards = installed_cards()
    if names[0] == "cpu" and cards:
        mend = "install the torch build for this card's driver, or look at CUDA_VISIBLE_DEVICES"
        return Verdict("launch", "wrong", f"{figure}; nvidia-smi shows {cards[0]}, torch sees no card", mend, values)
    if recipe.num_processes and recipe.num_processes != found["num_processes"]:
        mend = "name the YAML that the run will be launched with: --accelerate_config accelerate_configs/….yaml"
        figure = f"{figure}; the recipe is written for {recipe.num_processes} processes"
        return Verdict("launch", "slow", figure, mend, values)
    return Verdict("launch", "ok", figure, "", values)


def installed_cards() -> list[str]:
    """What nvidia-smi lists, a line a card; nothing where there is no such program."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(" (UUID")[0] for line in listed.stdout.splitlines()] if listed.returncode == 0 else []


def judge_all_reduce(found: dict[str, Any], parameters: int, step_seconds: float | None) -> Verdict:
    """Whether the exchange of fp32 gradients, once an optimizer step, is a small part of the step.

    The all-reduce was timed as a whole, so its bytes by its seconds are the speed at which gradients go both ways.
    """
    measured = found["all_reduce"]
    if measured is None:
        return Verdict("all-reduce", "ok", "one process: nothing to exchange")
    speed = measured["bytes"] / measured["seconds"]
    seconds = 4 * parameters / speed
    peers = {None: "", True: ", peer access", False: ", no peer access between the cards"}[found["peer_access"]]
    figure = (
        f"{speed / 1e9:.2f} GB/s of gradients over {found['backend']}{peers}: {seconds:.2f} s an optimizer step"
        f"{f', {seconds / step_seconds:.0%} of it' if step_seconds else ''}"
    )
    values = {**measured, "bytes_per_second": speed, "gradient_seconds": seconds, "peer_access": found["peer_access"]}
    if not measured["correct"]:
        mend = 'env: {NCCL_P2P_DISABLE: "1"}; if sums stay wrong, look at the driver and the cards'
        return Verdict("all-reduce", "wrong", f"sums over the processes are wrong; {figure}", mend, values)
    if step_seconds and seconds > 0.25 * step_seconds:
        mend = "more gradient_accumulation_steps: gradients are exchanged once an optimizer step"
        if found["peer_access"] and os.environ.get("NCCL_P2P_DISABLE") == "1":
            mend += "; or try without NCCL_P2P_DISABLE, for the cards can read each other"
        return Verdict("all-reduce", "slow", figure, mend, values)
    return Verdict("all-reduce", "ok", figure, "", values)
