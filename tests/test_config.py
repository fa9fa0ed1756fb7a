import pytest
from conftest import ROOT, run_script

from genesis_hf.config import PretrainRecipe, TokenizerRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import UserError

MINIMAL = """
output_dir: runs/x
model: {hidden_size: 64}
tokenizer: t
sources: [{name: a, paths: [a.txt]}]
max_steps: 1e3
learning_rate: 1e-4
warmup_steps: 10
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "pretrain.yaml"
    path.write_text(MINIMAL)
    return path


def parse(path, *arguments):
    return parse_recipe(PretrainRecipe, argv=["--config", str(path), *arguments])[0]


def test_yaml_and_command_line(recipe_file):
    recipe = parse(
        recipe_file, "--seed", "7", "--bf16=false", "--model.hidden_size", "128", "--save_total_limit", "null"
    )
    assert recipe.max_steps == 1000
    assert isinstance(recipe.max_steps, int)
    assert recipe.learning_rate == 1e-4  # YAML 1.1 reads it as text
    assert recipe.seed == 7
    assert recipe.bf16 is False
    assert recipe.model == {"hidden_size": 128}
    assert recipe.save_total_limit is None
    assert recipe.sources[0].paths == ["a.txt"]
    assert parse(recipe_file, "--dry_run").dry_run is True


def test_the_resolved_recipe_reads_back_as_itself(recipe_file, tmp_path):
    recipe = parse(recipe_file, "--seed", "7")
    again = tmp_path / "again.yaml"
    again.write_text(recipe_yaml(recipe))
    assert parse(again) == recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learnin_rate", "1"], "did you mean `learning_rate`"),
        (["--max_steps", "many"], "max_steps must be a whole number"),
        (["--max_steps", "1.5"], "max_steps must be a whole number"),
        (["--max_steps", "0"], "max_steps must be above 0"),
        (["--bf16", "perhaps"], "bf16 must be true or false"),
        (["--lr_scheduler_type", "cosin"], "must be one of cosine"),
        (["--sources", "[]"], "`sources` is empty"),
        (["--sources", "[{name: a}]"], "exactly one of `paths`, `dataset` and `prepared`"),
        (["--sources", "[{name: a, paths: [x], wieght: 2}]"], "did you mean `weight`"),
        (["--sources", "[{name: a, paths: [x]}, {name: a, paths: [y]}]"], "holds a name twice"),
        (["--warmup_steps", "5000"], "warmup_steps"),
        (["stray"], "expected --key"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(recipe_file, arguments, words):
    with pytest.raises(UserError, match=words) as raised:
        parse(recipe_file, *arguments)
    assert "\n" not in str(raised.value)


def test_a_missing_key_and_a_broken_file_are_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(UserError, match=r"bad.yaml, line 2: not valid YAML"):
        parse(path)
    path.write_text("vocab_size: 100")
    with pytest.raises(UserError, match="`output_dir` is missing"):
        parse_recipe(TokenizerRecipe, argv=["--config", str(path)])
    with pytest.raises(UserError, match="no such file"):
        parse(tmp_path / "none.yaml")


def test_scripts_leave_with_code_2_and_no_traceback(recipe_file):
    result = run_script("scripts/pretrain.py", "--config", recipe_file, "--max_stepz", "3", check=False)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "max_steps" in result.stderr
    assert "Traceback" not in result.stderr


def test_env_of_a_recipe_is_set_before_torch_is_imported(recipe_file):
    recipe_file.write_text(MINIMAL + 'env: {NCCL_P2P_DISABLE: "1"}\n')
    program = (
        f"import os, sys; sys.argv = ['x', '--config', {str(recipe_file)!r}]; sys.path.insert(0, 'scripts'); "
        "import _env; print(os.environ.get('NCCL_P2P_DISABLE'), 'torch' in sys.modules)"
    )
    assert run_script("-c", program, warm=()).stdout.split() == ["1", "False"]


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("recipes/*/pretrain.yaml")))
def test_dry_run_needs_neither_data_nor_gpu(path):
    (recipe,) = parse_recipe(PretrainRecipe, argv=["--config", str(ROOT / path)])
    from genesis_hf.training.plan import plan

    expected = {
        "genesis-1b": ("1,000,441,344", "524,288", "41,943,040,000"),
        "genesis-1b-run1": ("1,002,522,624", "262,144", "5,242,880,000"),
        "auto-g-nano-1b": ("1,050,002,688", "262,144", "13,107,200,000"),
        "demo": (),
    }[path.split("/")[1]]
    text = plan(recipe)
    for figure in expected:
        assert figure in text


def test_secrets_in_env_are_neither_printed_nor_stored(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL + "env: {HF_TOKEN: hf_abc, WANDB_API_KEY: wandb_abc, TOKENIZERS_PARALLELISM: 'yes'}\n")
    (recipe,) = parse_recipe(PretrainRecipe, argv=["--config", str(path)])
    text = recipe_yaml(recipe)
    assert "abc" not in text
    assert "TOKENIZERS_PARALLELISM: 'yes'" in text
