"""Try a recipe on this machine before a month is spent on it.

python scripts/preflight.py --config R.yaml [--accelerate_config accelerate_configs/fsdp2_2gpu.yaml] [--key value …]
    --preflight_steps 100 --scratch_dir DIR --silent_minutes 15 --output_file verdicts.json

Devices and the exchange between them, the disk, memory, the first steps at the recipe's real shape, a save, a resume
in a new process, a second save over the first, an export: ok, slow or wrong, and what to do. It is plain `python`:
preflight launches the processes itself, by the YAML that the run will be launched with. The recipe's output_dir is not
touched. Exit code 2 when something is wrong.
"""

import _env  # noqa: F401

import sys
from pathlib import Path

from genesis_hf.config import PretrainRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors
from genesis_hf.preflight.preflight import PreflightRecipe, preflight
from genesis_hf.preflight.verdicts import exit_code, table


def main() -> int:
    wanted, recipe = parse_recipe(PreflightRecipe, PretrainRecipe)
    if recipe.dry_run:
        print(recipe_yaml(wanted), recipe_yaml(recipe), sep="", end="")
        return 0
    verdicts = preflight(wanted, recipe, Path(__file__).parent)
    print("\n" + table(verdicts))
    code = exit_code(verdicts)
    print(f"\n{'ready' if code == 0 else 'not ready: mend what is wrong first'}")
    return code


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
