import ctypes

import torch

from genesis_hf.training.energy import EnergyMeter, card_counters, open_meter, package_counters

CPU = torch.device("cpu")


def write_zone(powercap, zone, name, microjoules, most=1000_000_000):
    folder = powercap / zone
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")


def test_packages_and_their_memory_count_once(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    write_zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    write_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    meter = open_meter(CPU, tmp_path)
    assert meter.read() == 0.0
    write_zone(tmp_path, "intel-rapl:0", "package-0", 8_000_000)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 3_000_000)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 2_500_000)
    write_zone(tmp_path, "intel-rapl:1", "psys", 20_000_000)
    assert meter.read() == 3.5


def test_a_counter_that_begins_anew_goes_on(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    meter = open_meter(CPU, tmp_path)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 15_000_000)
    assert meter.read() == 25.0


def test_what_can_not_be_read_is_null_and_stays_so(tmp_path):
    assert open_meter(CPU, tmp_path / "none").read() is None
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    meter = open_meter(CPU, tmp_path)
    assert meter.read() == 0.0
    energy = tmp_path / "intel-rapl:0/energy_uj"
    energy.unlink()
    energy.mkdir()
    assert meter.read() is None
    energy.rmdir()
    write_zone(tmp_path, "intel-rapl:0", "package-0", 2_000_000)
    assert meter.read() is None
    (tmp_path / "intel-rapl:0/max_energy_range_uj").write_text("")
    assert package_counters(tmp_path) == []


class Nvml:
    """Answers as NVML does: 0 and a value through the pointer, or an error code."""

    def __init__(self, cards):
        self.cards = cards

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        name = uuid.decode().removeprefix("GPU-")
        if name not in self.cards:
            return 6
        handle._obj.value = 1 + list(self.cards).index(name)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, millijoules):
        value = list(self.cards.values())[handle.value - 1]
        if value is None:
            return 3
        assert isinstance(millijoules._obj, ctypes.c_ulonglong)
        millijoules._obj.value = value
        return 0


def test_cards_are_added_up():
    nvml = Nvml({"other": 7, "a": 10_000, "b": 20_000})
    meter = EnergyMeter(card_counters(["a", "b"], nvml))
    nvml.cards.update(other=9_000_000, a=11_500, b=22_000)
    assert meter.read() == 3.5


def test_cards_without_a_counter_are_not_readable():
    assert EnergyMeter(card_counters(["a"], Nvml({"a": None}))).read() is None
    assert EnergyMeter(card_counters(["a", "gone"], Nvml({"a": 1}))).read() is None
