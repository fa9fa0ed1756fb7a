"""Turn another program's state dict into a plain Llama folder and prove it against the file's own tensors.

    python scripts/import_checkpoint.py --checkpoint FILE --mapping llama2c --output_dir DIR [--tokenizer PATH]

The mapping is a file, or the name of one that comes with the package; docs/import.md says what may stand in it.
"""

import _env  # noqa: F401

from itertools import islice

from genesis_hf.config import ImportRecipe, parse_recipe, recipe_yaml
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import report_user_errors
from genesis_hf.importing.importer import import_checkpoint


def main() -> None:
    (recipe,) = parse_recipe(ImportRecipe, defaults={"model": {}})
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    held_out = [text for source in recipe.held_out_sources for text in islice(read_documents(source), 4)]
    report = import_checkpoint(recipe, held_out)
    print_report(report, recipe.output_dir)


def print_report(report: dict, output_dir: str) -> None:
    figures, text, proof = report["formats_compared"]["llama"], report["text_loss"], report["tokenizer_proof"]
    reader = f"transformers {figures['read_by']['transformers']}"
    words = "already imported" if report["already_imported"] else "imported"
    print(f"{words}: {report['checkpoint']} in {report['dtype']} → {output_dir}")
    print(
        f"  read back by {reader} in a fresh process, against the file's own tensors, fp32:\n"
        f"  logits differ by at most {figures['max_logit_difference']:.2g} (tolerance {figures['tolerance']:.2g}), "
        f"top 10 and their order the same at {figures['top10_agreement']:.2%} of {figures['tokens_compared']} tokens\n"
        f"  greedy text the same {figures['greedy_same']}/{figures['greedy_prompts']}; tokenizer the same as "
        f"{proof['compared_with']} on {proof['texts']} texts\n"
        f"  text costs {text['nats_per_token']:.3f} nats a token (chance {text['chance']:.3f}): {text['verdict']}"
    )
    for words, loss in text["otherwise"].items():
        print(f"    with {words}: {loss:.3f}")
    if "rounding" in report:
        rounding = report["rounding"]
        print(
            f"  rounding the weights alone moves logits by up to {rounding['max_logit_difference']:.2g} "
            f"and the loss from {rounding['loss_float32']:.6f} to {rounding['loss_' + report['dtype']]:.6f}"
        )


if __name__ == "__main__":
    with report_user_errors():
        main()
