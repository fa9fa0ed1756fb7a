"""What `--dry_run` says of the three reference runs."""

import itertools
import math
import re

import pytest
from conftest import ROOT, run_script

from genesis_hf.config import PretrainRecipe, parse_recipe
from genesis_hf.training.plan import plan
from genesis_hf.training.schedule import learning_rate

EXTENDED = ("--max_steps", "80000", "--extended_at", "[20000, 40000, 60000]")
"""How genesis-1b was run: to 20,000 steps, then on to each of the others and to 80,000."""

REFERENCE = {
    "genesis-1b": {
        "parameters": "1,000,441,344",
        "tokens per step": "524,288",
        "total tokens": "41,943,040,000",
        "rates": (1e-4, 1e-5),
        "warmup": 1000,
        "steps": 80_000,
    },
    "genesis-1b-run1": {
        "parameters": "1,002,522,624",
        "tokens per step": "262,144",
        "total tokens": "5,242,880,000",
        "rates": (3e-4, 3e-5),
        "warmup": 500,
        "steps": 20_000,
    },
    "auto-g-nano-1b": {
        "parameters": "1,050,002,688",
        "tokens per step": "262,144",
        "total tokens": "13,107,200,000",
        "rates": (3e-4, 3e-5),
        "warmup": 500,
        "steps": 50_000,
    },
}


def read(name, *overrides):
    path = ROOT / "recipes" / name / "pretrain.yaml"
    (recipe,) = parse_recipe(PretrainRecipe, argv=["--config", str(path), *overrides])
    return recipe


def stated(text, words):
    """The figure after some words at the beginning of a line."""
    return re.search(rf"^{words} +([\d,]+)", text, re.MULTILINE)[1]


def stated_rates(text):
    """The learning rate by step, from the plan's table."""
    lines = re.findall(r"^  step +([\d,]+)  (\S+)$", text, re.MULTILINE)
    return {int(step.replace(",", "")): float(rate) for step, rate in lines}


def cosine(step, begin, end, high, low):
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))


@pytest.mark.parametrize("name", REFERENCE)
def test_the_plan_is_that_of_the_reference_run(name):
    expected, text = REFERENCE[name], plan(read(name))
    for words in ("parameters", "tokens per step", "total tokens"):
        assert stated(text, words) == expected[words]
    warmup, steps, (high, low) = expected["warmup"], expected["steps"], expected["rates"]
    rates = stated_rates(text)
    assert rates[1] == pytest.approx(high / warmup, rel=1e-3)
    assert rates[warmup] == high
    assert rates[steps] == low
    for step in (steps // 4, steps // 2, 3 * steps // 4):
        assert rates[step] == pytest.approx(cosine(step, warmup, steps, high, low), rel=1e-3)
    middle = (warmup + steps) // 2
    assert learning_rate(middle, read(name)) == pytest.approx((high + low) / 2)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_optimizer_is_that_of_the_reference_run(name):
    recipe = read(name)
    assert (recipe.optim, recipe.adam_beta1, recipe.adam_beta2, recipe.weight_decay) == ("adamw", 0.9, 0.95, 0.1)
    assert (recipe.lr_scheduler_type, recipe.num_processes, recipe.max_grad_norm) == ("cosine", 2, 1.0)


def test_the_extension_of_genesis_1b():
    """Each part but the first warms up from where the part before it ended, then decays to its own end."""
    recipe = read("genesis-1b", *EXTENDED)
    ends, warmup, high, low = [0, 20_000, 40_000, 60_000, 80_000], 1000, 1e-4, 1e-5
    assert recipe.milestones >= set(ends[1:])
    for begin, end in itertools.pairwise(ends):
        bottom = low if begin else 0.0
        for step in (begin + 1, begin + 250, begin + warmup):
            rising = bottom + (high - bottom) * (step - begin) / warmup
            assert learning_rate(step, recipe) == pytest.approx(rising)
        for step in (begin + warmup + 1, (begin + warmup + end) // 2, end - 1, end):
            assert learning_rate(step, recipe) == pytest.approx(cosine(step, begin + warmup, end, high, low))
    first = read("genesis-1b", "--max_steps", "20000")
    assert [learning_rate(s, recipe) for s in range(1, 20_001)] == [learning_rate(s, first) for s in range(1, 20_001)]


def test_dry_run_shows_the_extension():
    arguments = ("--config", "recipes/genesis-1b/pretrain.yaml", "--dry_run", "true", *EXTENDED)
    text = run_script("scripts/pretrain.py", *arguments).stdout
    assert stated(text, "total tokens") == "41,943,040,000"
    rates = stated_rates(text)
    for begin in (0, 20_000, 40_000, 60_000):
        assert rates[begin + 1000] == 1e-4
        assert rates[begin + 20_000] == 1e-5
