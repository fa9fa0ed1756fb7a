"""scripts/plan.py: the reference runs, what it advises, what it refuses."""

import json
import os
import random
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from browser import browser_page, needs_chromium
from conftest import ROOT, TINY_MODEL, run_script

from genesis_hf.cards import CARDS, find_card
from genesis_hf.config import PretrainRecipe, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.planning.page import as_text, write_page
from genesis_hf.planning.planner import Plan, plan
from genesis_hf.planning.recipe import PlanRecipe
from genesis_hf.training.metrics import read_metrics

GENESIS = "recipes/genesis-1b/pretrain.yaml"
TWO_4090 = ("--device", "2x RTX 4090")
ONE_ROW = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "128")
"""No smaller micro-batches to try."""


def planned(config: str, *arguments: str) -> Plan:
    return plan(*parse_recipe(PlanRecipe, PretrainRecipe, argv=["--config", str(ROOT / config), *arguments]))


# ------------------------------------------------------------------------------------------------ the reference runs

AS_RUN = (*TWO_4090, "--program", "transformers")
"""They were trained by another program than this one (docs/planning.md)."""


@pytest.mark.parametrize(
    ("name", "changes", "gigabytes", "tokens_per_second"),
    [
        ("genesis-1b", (), 20.0, 18_950),
        ("genesis-1b-run1", ("--gradient_checkpointing", "none"), 21.0, 6_600),
        ("genesis-1b-run1", (), 16.5, 6_500),
    ],
    ids=["run 2", "run 1 as first run", "run 1 with recomputation"],
)
def test_the_reference_runs_as_they_were_run(name, changes, gigabytes, tokens_per_second):
    found = planned(f"recipes/{name}/pretrain.yaml", *AS_RUN, *changes)
    assert found.memory.total / 1e9 == pytest.approx(gigabytes, rel=0.15)
    assert found.speed.tokens_per_second == pytest.approx(tokens_per_second, rel=0.15)
    assert found.speed.low < tokens_per_second < found.speed.high


@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [
        ("genesis-1b", 1_000_441_344, 41_943_040_000),
        ("genesis-1b-run1", 1_002_522_624, 5_242_880_000),
        ("auto-g-nano-1b", 1_050_002_688, 13_107_200_000),
    ],
)
def test_parameters_and_tokens_are_exact(name, parameters, tokens):
    found = planned(f"recipes/{name}/pretrain.yaml", *TWO_4090)
    assert (found.counted.parameters, found.total_tokens) == (parameters, tokens)
    assert found.chinchilla == pytest.approx(tokens / 20 / parameters)


def test_the_page_says_what_a_plain_program_would_take():
    found = planned(GENESIS, *TWO_4090)
    (plain,) = [variant for variant in found.variants if "program" in variant.changes]
    as_run = planned(GENESIS, *AS_RUN)
    assert (plain.total, plain.tokens_per_second) == (as_run.memory.total, as_run.speed.tokens_per_second)
    assert plain.total > found.memory.total


def test_gathering_once_a_step_hides_what_gathering_each_micro_batch_does_not():
    once = planned("recipes/genesis-1b-run1/pretrain.yaml", *TWO_4090).speed
    each = planned("recipes/genesis-1b-run1/pretrain.yaml", *AS_RUN).speed
    assert once.exchange.sent < each.exchange.sent / 50
    assert once.exposed < 0.05 * once.computing
    assert each.exposed > each.computing


# --------------------------------------------------------------------------------------------------- what it advises


@pytest.mark.parametrize("device", ["2x RTX 4090", "RTX 4090"])
def test_what_is_advised_fits_when_it_is_planned(device):
    wide = ("--gradient_checkpointing", "none", "--per_device_train_batch_size", "2")
    wide += ("--gradient_accumulation_steps", "64", "--num_processes", "null")
    found = planned(GENESIS, "--device", device, *wide)
    assert found.fits == "no"
    assert found.best is not None
    again = planned(GENESIS, "--device", device, *wide, *shlex.split(found.best.flags))
    assert again.fits != "no"
    assert again.memory.total == found.best.total
    assert again.tokens_per_step == found.tokens_per_step


def test_nothing_is_called_faster_that_sends_more_over_an_unknown_link():
    """Resharding would let 1 row without recomputation fit, and send 127 times as much."""
    for unknown in (("--num_machines", "2"), ("--bf16", "false")):
        found = planned(GENESIS, "--device", "2x RTX 4090", *unknown)
        assert found.speed.tokens_per_second is None
        assert found.best is None or "fsdp_reshard_after_forward" not in found.best.changes
        resharded = [v for v in found.variants if "fsdp_reshard_after_forward" in v.changes]
        assert [variant.relative for variant in resharded] == [None]
    assert "speed" in as_text(found)


def test_all_rows_at_once_are_advised_where_only_they_fit():
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    keys = {**shape, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False}
    arguments = [word for key, value in keys.items() for word in (f"--model.{key}", str(value).lower())]
    batch = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4", "--num_processes", "8")
    found = planned(GENESIS, "--device", "8x A100 40GB", *arguments, *batch, "--gradient_checkpointing", "full")
    assert found.fits == "no"
    assert found.best.changes["per_device_train_batch_size"] == 4
    assert "cpu_offload" not in found.best.changes


def test_a_measured_mfu_holds_for_the_variants_too():
    found = planned(GENESIS, *TWO_4090, "--mfu", "0.2")
    as_it_is, full = (
        next(v for v in found.variants if v.changes == c) for c in ({}, {"gradient_checkpointing": "none"})
    )
    assert as_it_is.tokens_per_second == pytest.approx(found.speed.tokens_per_second)
    assert full.tokens_per_second == pytest.approx(full.relative * found.speed.tokens_per_second)


def test_what_offloading_costs_is_unknown():
    found = planned(GENESIS, "--device", "RTX 4090", "--cpu_offload", "true")
    assert (found.speed.tokens_per_second, found.costs.days) == (None, None)
    assert {"cpu_offload": False} in [variant.changes for variant in found.variants]


def test_what_the_clock_saves_is_counted():
    by_steps = planned(GENESIS, *TWO_4090, "--save_steps", "80000", "--save_total_limit", "3")
    by_the_clock = planned(
        GENESIS, *TWO_4090, "--save_steps", "80000", "--save_total_limit", "3", "--save_minutes", "10"
    )
    assert by_the_clock.costs.checkpoints > by_steps.costs.checkpoints


def test_ddps_buckets_stay_with_one_micro_batch_too():
    ddp = (GENESIS, *TWO_4090, "--accelerate_config", "ddp", "--num_processes", "null")
    one, two = (planned(*ddp, "--gradient_accumulation_steps", n).memory for n in ("1", "2"))
    assert one.parts["gradients"] == two.parts["gradients"]


def test_where_nothing_fits_it_says_so():
    found = planned(GENESIS, "--device", "Toy", "--memory_gb", "4", "--num_processes", "1", *ONE_ROW)
    assert found.best is None
    assert "does NOT fit" in as_text(found)
    assert "nothing tried makes it fit" in as_text(found)


def test_a_card_by_numbers_is_planned_like_a_known_one():
    known = planned(GENESIS, "--device", "2x A100", "--mfu", "0.4", "--price_per_hour", "1.5", "--price_per_kwh", "0.3")
    numbers = ("--memory_gb", "80", "--bf16_tflops", "312", "--bandwidth_gb_s", "2039", "--power_w", "400")
    given = planned(GENESIS, "--device", "2x Other", *numbers, "--interconnect_gb_s", "231")
    assert given.memory == known.memory
    assert given.speed.tokens_per_second == pytest.approx(
        planned(GENESIS, "--device", "2x A100").speed.tokens_per_second
    )
    seconds = known.total_tokens * known.speed.flops_per_token / (0.4 * 2 * 312e12)
    assert known.costs.days[0] == pytest.approx(seconds / 86400)
    assert known.costs.kwh[0] == pytest.approx(seconds / 3600 * 2 * 0.4)
    assert known.costs.rent[0] == pytest.approx(seconds / 3600 * 2 * 1.5)
    assert known.costs.electricity[0] == pytest.approx(known.costs.kwh[0] * 0.3)


def test_what_is_not_known_is_called_unknown():
    found = planned(GENESIS, "--device", "2x Other", "--memory_gb", "48")
    assert (found.speed.tokens_per_second, found.costs.days, found.costs.rent) == (None, None, None)
    assert len(re.findall("unknown", as_text(found))) > 4


@pytest.mark.parametrize(
    ("yaml_name", "name"),
    [
        ("ddp_2gpu", "DDP"),
        ("fsdp2_2gpu", "FSDP2, weights kept gathered"),
        ("fsdp1_2gpu", "FSDP1, weights kept gathered"),
        ("hsdp_multinode", "HSDP, 2 replicas of 4 shards, weights kept gathered"),
        ("ddp_multinode", "DDP"),
    ],
)
def test_the_launch_is_read_from_its_yaml(yaml_name, name):
    path = str(ROOT / "accelerate_configs" / f"{yaml_name}.yaml")
    found = planned(GENESIS, "--device", "8x H100", "--accelerate_config", path)
    assert found.topology.name == name
    assert found.accumulation == 8
    assert found.topology.machines == (2 if "multinode" in yaml_name else 1)


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("2xRTX4090", 2, "RTX 4090"),
        ("rtx 4090 x2", 2, "RTX 4090"),
        ("2 H100", 2, "H100"),
        ("3090 Ti", 1, "RTX 3090 Ti"),
        ("2 × A100 80GB PCIe", 2, "A100 PCIe 80GB"),
    ],
)
def test_devices_are_written_in_many_ways(text, count, name):
    found = planned(GENESIS, "--device", text)
    assert (found.topology.processes, found.card.name) == (count, name)


def test_cards_have_a_source_and_are_found_by_torchs_names():
    names = {
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A100-SXM4-80GB": "A100 80GB",
        "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
        "A100-PCIE-40GB": "A100 PCIe 40GB",
        "A100-40G": "A100 40GB",
        "NVIDIA RTX A1000": None,
        "NVIDIA GH200 480GB": "GH200 96GB",
        "NVIDIA H100 NVL": "H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
        "H100 96GB": None,
        "RTX 4090 48GB": None,
        "NVIDIA GeForce RTX 4090 D": None,
        "Tesla V100-SXM2-16GB": "V100 16GB",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "NVIDIA L40": "L40",
        "AMD Instinct MI300X": "MI300X",
    }
    found = {name: card and card.name for name, card in ((name, find_card(name)) for name in names)}
    assert found == names
    assert all(card.source and find_card(card.name) is card for card in CARDS)


# ------------------------------------------------------------------------------------------------------- the script


def test_the_script_prints_a_page_and_writes_files(tmp_path):
    page = tmp_path / "plan.json"
    text = run_script("scripts/plan.py", "--config", GENESIS, *TWO_4090, *ONE_ROW, "--output_file", page).stdout
    for words in (
        "1,000,441,344",
        "fits: ",
        "With one setting changed",
        "GB sent by each",
        "days",
        "kWh",
        "checkpoints of",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 160
    values = json.loads(page.read_text())
    assert values["parameters"] == 1_000_441_344
    assert values["memory"]["total"] == sum(values["memory"]["parts"].values())
    assert values["speed"]["low"] < values["speed"]["tokens_per_second"] < values["speed"]["high"]


@needs_chromium
def test_the_html_asks_nothing_of_other_hosts(tmp_path):
    path = tmp_path / "plan.html"
    write_page(planned(GENESIS, "--device", "H100", *ONE_ROW), path)
    with browser_page(width=390, dark=True) as watched:
        watched.page.goto(path.as_uri())
        assert watched.page.locator("h2").count() == 5
        assert watched.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert (watched.outside, watched.errors) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "2x RTX 4099"), ("RTX 4099", "did you mean `RTX 4090`", "--memory_gb")),
        (("--device", "2x"), ("write a number and a name",)),
        (("--device", "0x H100"), ("write a number and a name",)),
        (("--device", "3x H100"), ("can't be shared by 3 processes evenly",)),
        (("--device", "-1x H100"), ("write a number and a name",)),
        (("--device", "1.5x H100"), ("write a number and a name",)),
        (("--device", "two H100"), ("'two H100' is not in the table",)),
        (("--device", "2x Foo", "--memory_gb", "nan"), ("memory_gb must be above 0",)),
        (("--mfu", "nan", *TWO_4090), ("mfu must be above 0",)),
        (("--model.num_hidden_layers", "0", *TWO_4090), ("num_hidden_layers must be above 0",)),
        (("--fp8", "true", "--device", "A100"), ("fp8: A100 80GB has nothing for it",)),
        (("--cpu_offload", "true", "--device", "cpu"), ("cpu_offload: cpu has nothing for it",)),
        (("--device", "2x cpu"), ("planned as one process",)),
        (("--accelerate_config", "fdsp2", *TWO_4090), ("did you mean `fsdp2`",)),
        (("--accelerate_config", "no/such.yaml", *TWO_4090), ("no such file",)),
        (("--accelerate_config", "single", *TWO_4090), ("2 devices and a launch of one process",)),
        (("--accelerate_config", "hsdp", *TWO_4090), ("--num_machines",)),
        (("--accelerate_config", "ddp", "--cpu_offload", "true", *TWO_4090), ("cpu_offload needs FSDP2",)),
        (("--output_file", "plan.pdf", *TWO_4090), ("must end with .md, .html or .json",)),
        (("--mfu", "40", *TWO_4090), ("a share of the peak",)),
        (("--sequence_length", "4096", *TWO_4090), ("max_position_embeddings",)),
        (("--devise", "H100"), ("did you mean `device`",)),
    ],
)
def test_a_mistake_is_one_line(arguments, words):
    found = run_script("scripts/plan.py", "--config", GENESIS, *arguments, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    for word in words:
        assert word in found.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fsdp_version": "two"}, "fsdp_version must be a whole number"),
        ({"fsdp_version": 3}, "fsdp_version is 1 or 2"),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": "NO_SHARD"}, "NO_SHARD is not planned"),
        ("hello", "fsdp_config must hold keys"),
    ],
)
def test_a_launch_that_cannot_be_planned_is_one_line(tmp_path, values, words):
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": values}))
    with pytest.raises(UserError, match=words):
        planned(GENESIS, *TWO_4090, "--accelerate_config", str(path))


@pytest.mark.parametrize("phase", ["sft", "cycle", "tokenizer"])
def test_another_phase_is_refused(phase):
    found = run_script("scripts/plan.py", "--config", f"recipes/genesis-1b/{phase}.yaml", *TWO_4090, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "only pretraining is planned" in found.stderr


# ---------------------------------------------------------------------------------------------- against a real process


def test_a_run_on_a_cpu_takes_what_was_planned(tokenizer_folder, tmp_path):
    """The largest resident set of a process of its own; benchmarks/plan_memory.py has more cases."""
    rng, words = (
        random.Random(0),
        ["river", "stone", "walks", "under", "bright", "cloud", "seven", "letters", "and", "the"],
    )
    texts = (" ".join(rng.choices(words, k=2500)) for _ in range(500))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = {**TINY_MODEL, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 384}
    values = {
        "output_dir": str(tmp_path / "run"),
        "model": {**model, "max_position_embeddings": 512},
        "tokenizer": str(tokenizer_folder),
        "sequence_length": 512,
        "sources": [{"name": "prose", "paths": [str(tmp_path / "text.jsonl")]}],
        "max_steps": 10,
        "warmup_steps": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    # Linux counts what a process was before it became another program: a shell between keeps the tests' own size out.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "scripts/pretrain.py", "--config", str(path)]
    subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True, capture_output=True)
    measured = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["memory_gib"]
    predicted = planned(str(path), "--device", "cpu").memory.total / 2**30
    assert predicted == pytest.approx(measured, rel=0.2)
