"""The constitution a person edits, and the prompts that follow from it."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from small_synthesis import CONSTITUTION, constitution

from genesis_hf.config import parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.synthesis.constitution import load_constitution
from genesis_hf.synthesis.prompts import STRATUM, check_prompts, plan_conversation
from genesis_hf.synthesis.recipe import SynthesizeRecipe

PRINCIPLE = {"name": "kind", "text": "Be kind."}


def category(**changes: Any) -> dict[str, Any]:
    return {"name": "one", "share": 1.0, "templates": ["What is {topic}?"]} | changes


# ---------------------------------------------------------------------------------------------------------
# The constitution
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": [category(share=0.5)]}, "shares of categories add up to 0.5, not 1"),
        ({"languages": {"en": 0.7, "de": 0.2}}, "shares of languages add up to 0.9, not 1"),
        ({"turns": {1: 0.5, 2: 0.4}}, "shares of turns add up to 0.9, not 1"),
        ({"turns": {0: 1.0}}, "turns has 0"),
        ({"languages": {"en": 1.5, "de": -0.5}}, "the share of en is 1.5"),
        ({"languages": {"english": 1.0}}, "'english', which is none of the ISO 639-1 codes"),
        ({"categories": [category(templates=[])]}, "templates is empty"),
        ({"categories": [category(templates=["Of {thing}?"])]}, "{thing} in 'Of {thing}?' is neither"),
        ({"categories": [category(templates=["Of {}?"])]}, "{} in 'Of {}?' is neither"),
        ({"categories": [category(templates=["A?", "A?"])]}, "templates has 'A?' twice"),
        ({"categories": [category(principles=["brave"])]}, "names the principle 'brave'"),
        ({"categories": [category(thinking=2)]}, "thinking must lie between 0 and 1, not 2"),
        ({"categories": [category()], "topics": []}, "asks for {topic}, and there are no topics"),
        ({"categories": [category(templates=["I, {persona}"])], "personas": []}, "and there are no personas"),
        ({"topics": ["tea", "tea"]}, "topics has 'tea' twice"),
        ({"personas": [" "]}, "personas has an empty text"),
        ({"principles": []}, "principles is empty"),
        ({"principles": [PRINCIPLE, PRINCIPLE]}, "principles has 'kind' twice"),
        ({"principles": [{"name": "kind"}]}, "`text` is missing"),
        ({"topic": ["tea"]}, "did you mean `topics`?"),
    ],
)
def test_a_wrong_constitution_is_one_line_that_names_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        constitution(**changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_braces_of_templates_and_topics_stay() -> None:
    read = constitution(
        categories=[category(templates=[r"What is {topic} in $\frac{{a}}{{b}}$?"])], topics=["{persona} in a {dict}"]
    )
    assert plan_conversation(read, 0, 0).opening == r"What is {persona} in a {dict} in $\frac{a}{b}$?"


def test_recipe_file_and_constitution_file_say_the_same(tmp_path) -> None:
    alone, inside, named = (tmp_path / name for name in ("alone.yaml", "inside.yaml", "named.yaml"))
    alone.write_text(json.dumps(CONSTITUTION))
    inside.write_text(json.dumps({"output_dir": "x", "constitution": CONSTITUTION}))
    named.write_text(json.dumps({"constitution": str(alone)}))
    assert load_constitution(str(alone)) == load_constitution(str(inside)) == load_constitution(str(named))


RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/*/constitution.yaml"))


@pytest.mark.parametrize("path", RECIPES)
def test_recipes_have_a_prompt_of_its_own_for_every_conversation(path: str) -> None:
    (recipe,) = parse_recipe(SynthesizeRecipe, argv=["--config", str(ROOT / path)])
    read = load_constitution(recipe.constitution)
    openings = {plan_conversation(read, recipe.seed, index).opening for index in range(recipe.num_conversations)}
    assert len(openings) == recipe.num_conversations


# ---------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------


def shares(count: int) -> st.SearchStrategy[list[float]]:
    """Shares of `count` things that add up to 1; some may be 0."""
    weights = st.lists(st.integers(0, 20), min_size=count, max_size=count).filter(any)
    return weights.map(lambda values: [value / sum(values) for value in values])


@settings(max_examples=60, deadline=None)
@given(shares=st.integers(1, 7).flatmap(shares), size=st.integers(1, 400), seed=st.integers(0, 3))
def test_each_prefix_has_each_categorys_share_to_within_one(shares: list[float], size: int, seed: int) -> None:
    categories = [category(name=str(i), share=share) for i, share in enumerate(shares)]
    read = constitution(categories=categories, topics=[str(i) for i in range(400)])
    counts: Counter[str] = Counter()
    for index in range(size):
        counts[plan_conversation(read, seed, index).category] += 1
        for number, share in enumerate(shares):
            assert abs(counts[str(number)] - share * (index + 1)) < 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    templates=st.lists(
        st.sampled_from(["a {topic}", "b {persona}", "c {topic} {persona}", "d", "e {persona} {topic}"]),
        min_size=1,
        unique=True,
    ),
    seed=st.integers(),
)
def test_all_combinations_are_asked_once_and_no_more(sizes: tuple[int, int], templates: list[str], seed: int) -> None:
    topics, personas = [f"t{i}" for i in range(sizes[0])], [f"p{i}" for i in range(sizes[1])]
    read = constitution(categories=[category(templates=templates)], topics=topics, personas=personas)
    fields = [("{topic}" in template, "{persona}" in template) for template in templates]
    there = sum((sizes[0] if topic else 1) * (sizes[1] if persona else 1) for topic, persona in fields)
    check_prompts(read, there)
    openings = {plan_conversation(read, seed, index).opening for index in range(there)}
    assert len(openings) == there
    for ask in (lambda: check_prompts(read, there + 1), lambda: plan_conversation(read, seed, there)):
        with pytest.raises(UserError, match=f"'one' is asked for {there + 1:,} conversations and has {there:,} "):
            ask()


def test_templates_take_turns_until_one_is_used_up() -> None:
    templates = ["a {topic}", "b {topic} {persona}", "c"]
    read = constitution(categories=[category(templates=templates)])
    asked = [plan_conversation(read, 5, index).template[0] for index in range(8 + 64 + 1)]
    assert asked[:3] == ["a", "b", "c"]
    assert asked[3:17] == ["a", "b"] * 7
    assert set(asked[17:]) == {"b"}


def test_languages_turns_and_thinking_have_their_shares_and_are_independent() -> None:
    read = constitution(
        categories=[category(thinking=0.25)],
        topics=[str(i) for i in range(1000)],
        languages={"en": 0.5, "de": 0.3, "ja": 0.2},
        turns={1: 0.5, 3: 0.5},
    )
    plans = [plan_conversation(read, 7, index) for index in range(1000)]
    for key, wanted in {"language": read.languages, "turns": read.turns, "thinking": {True: 0.25, False: 0.75}}.items():
        for stratum in range(0, 1000, STRATUM):
            counts = Counter(getattr(plan, key) for plan in plans[stratum : stratum + STRATUM])
            assert all(abs(counts[value] - share * STRATUM) <= 1 for value, share in wanted.items())
    together = Counter((plan.language, plan.turns, plan.thinking) for plan in plans)
    assert len(together) == 12
    assert abs(together["en", 1, True] - 1000 * 0.5 * 0.5 * 0.25) < 30


def test_seed_decides_and_more_conversations_change_nothing() -> None:
    read = constitution(languages={"en": 0.8, "fr": 0.2}, turns={1: 0.5, 2: 0.5})
    # Past the first 1,024, where the schedule of categories is made anew, twice as long.
    wide = constitution(topics=[f"t{i}" for i in range(500)])
    late = plan_conversation(wide, 3, 1023)
    assert plan_conversation(wide, 3, 1500) != late == plan_conversation(wide, 3, 1023)
    first = [plan_conversation(read, 3, index) for index in range(60)]
    assert first == [plan_conversation(read, 3, index) for index in range(60)]
    assert first != [plan_conversation(read, 4, index) for index in range(60)]
    assert len({plan.prompt_seed for plan in first}) == 60
    assert {plan.principles for plan in first} == {("helpful", "curious"), ("curious", "helpful")}


def test_prompts_are_the_same_in_another_process() -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from small_synthesis import constitution\n"
        "from genesis_hf.synthesis.prompts import plan_conversation\n"
        "print([plan_conversation(constitution(), 42, index) for index in range(20)])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str([plan_conversation(constitution(), 42, index) for index in range(20)])
