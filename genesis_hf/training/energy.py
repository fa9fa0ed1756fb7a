"""Energy that a run's devices have drawn, from counters which the machine keeps itself.

Cards: NVML's `nvmlDeviceGetTotalEnergyConsumption`, since Volta. The library comes with the driver, and three of its
functions do; so it is called directly, and nothing has to be installed. CPUs: RAPL as Linux shows it
(https://docs.kernel.org/power/powercap/powercap.html), which since 2020 only root may read.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """One device's energy."""

    wraps_at: float
    """Joules at which it begins anew; infinite where it doesn't."""

    def joules(self) -> float:
        """Its reading, which counts from some moment before the run.

        Raises:
            OSError: it can't be read.
        """


class EnergyMeter:
    """Joules drawn by some devices since it was made; None from the moment one of them can't be read.

    A counter that wraps must be read at least once a round: for a RAPL package at 100 W that is 45 minutes.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters, self._drawn = counters, 0.0
        self._last = self._joules()

    def read(self) -> float | None:
        """Waits for no kernel: the counters belong to the driver, not to a stream."""
        now = self._joules()
        if now is None or self._last is None:
            self._last = None
            return None
        for counter, before, after in zip(self._counters, self._last, now, strict=True):
            self._drawn += after - before + (counter.wraps_at if after < before else 0.0)
        self._last = now
        return round(self._drawn, 3)

    def _joules(self) -> list[float] | None:
        try:
            return [counter.joules() for counter in self._counters] or None
        except (OSError, ValueError):
            return None


def open_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter:
    """The meter of a run on this machine: the cards of its processes, or else the CPU's packages and memory.

    Other machines' cards are theirs to read. RAPL counts the whole machine, with all that runs beside the training.
    """
    if device.type != "cuda":
        return EnergyMeter(package_counters(powercap))
    cards = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    numbers = [device.index or 0] if cards == 1 else range(cards)
    return EnergyMeter(card_counters([str(torch.cuda.get_device_properties(n).uuid) for n in numbers]))


class Package:
    """A powercap zone."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self.wraps_at = int((folder / "max_energy_range_uj").read_text()) / 1e6

    def joules(self) -> float:
        return int(self._file.read_text()) / 1e6


def package_counters(powercap: Path) -> list[Package]:
    """CPU packages, and memory beside them; `core` and `uncore` are parts of a package, `psys` holds all of them."""
    zones = []
    for name in sorted(powercap.glob("intel-rapl:*/name")):
        try:
            if name.read_text().strip().startswith(("package", "dram")):
                zones.append(Package(name.parent))
        except (OSError, ValueError):
            return []
    return zones


class Card:
    """A card by its UUID, whatever CUDA_VISIBLE_DEVICES calls it."""

    wraps_at = float("inf")

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml, self._handle = nvml, ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(self._handle)):
            raise OSError(f"NVML knows no card {uuid}")

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        if self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules)):
            raise OSError("this card has no energy counter")
        return millijoules.value / 1000


def card_counters(uuids: Sequence[str], nvml: Any = None) -> list[Card]:
    """The cards, or none of them where NVML doesn't know all."""
    try:
        nvml = nvml or ctypes.CDLL("libnvidia-ml.so.1")
        return [] if nvml.nvmlInit_v2() else [Card(nvml, uuid) for uuid in uuids]
    except OSError:
        return []
