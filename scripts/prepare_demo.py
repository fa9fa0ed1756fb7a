"""Make the demo's data from what every machine with Python has, or from a folder of your own text.

    python scripts/prepare_demo.py --output_dir runs/demo/data [--text DIR] [--seed 42]

A second run says that the data are there. `summary.json` in the folder counts everything.
"""

import _env  # noqa: F401

from pathlib import Path

from genesis_hf.config import DemoCorpusRecipe, parse_recipe, recipe_yaml
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(DemoCorpusRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    # After the dry run: the readers bring pyarrow.
    from genesis_hf.demo.prepare import prepare_demo

    there = (Path(recipe.output_dir) / "summary.json").exists()
    summary = prepare_demo(recipe)

    print(f"{recipe.output_dir}: {'already there' if there else 'written'}")
    for name, figures in summary["files"].items():
        print(f"  {name:34} {figures['lines']:>7,} lines {figures['bytes']:>12,} bytes")
    for kind, bits in summary["heldout_xz_bits_per_byte"].items():
        print(f"  xz -9 on held-out {kind}: {bits} bits per byte")
    for name in summary["tasks_left_out"]:
        print(f"  left out: {name} (the held-out text gives too few items)")


if __name__ == "__main__":
    with report_user_errors():
        main()
