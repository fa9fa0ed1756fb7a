"""Write a checkpoint as a plain Llama folder and prove it against the live model.

    python scripts/export.py --checkpoint RUN_OR_CHECKPOINT --output_dir DIR [--dtype bfloat16]

A second run with the same checkpoint says that it is there. `parity.json` in the folder holds the proof.
"""

import _env  # noqa: F401

from itertools import islice

from genesis_hf.config import ExportRecipe, parse_recipe, recipe_yaml
from genesis_hf.data.readers import read_documents
from genesis_hf.export import export_checkpoint
from genesis_hf.errors import report_user_errors


def main() -> None:
    (recipe,) = parse_recipe(ExportRecipe)
    if recipe.dry_run:
        print(recipe_yaml(recipe), end="")
        return

    held_out = [text for source in recipe.held_out_sources for text in islice(read_documents(source), 4)]
    report = export_checkpoint(
        recipe.checkpoint,
        recipe.output_dir,
        dtype=recipe.dtype,
        formats=recipe.formats,
        tokenizer=recipe.tokenizer,
        held_out=held_out,
        overwrite=recipe.overwrite,
    )
    print_report(report, recipe.output_dir)


def print_report(report: dict, output_dir: str) -> None:
    figures = report["formats_compared"]["llama"]
    words = "already exported" if report["already_exported"] else "exported"
    print(f"{words}: {report['checkpoint']} in {report['dtype']} → {output_dir}")
    print(
        f"  read back by transformers {figures['read_by']['transformers']} in a fresh process, fp32:\n"
        f"  logits differ by at most {figures['max_logit_difference']:.2g} (tolerance {figures['tolerance']:g}), "
        f"top-1 agreement {figures['top1_agreement']:.2%} over {figures['tokens_compared']} tokens\n"
        f"  loss {figures['loss_exported']:.6f} against {figures['loss_live']:.6f} nats a token, "
        f"greedy text the same {figures['greedy_same']}/{figures['greedy_prompts']}, "
        f"tokenizer the same {figures['tokenizer_same']}/{figures['tokenizer_texts']}"
    )
    if "rounding" in report:
        rounding = report["rounding"]
        print(
            f"  rounding the weights alone moves logits by up to {rounding['max_logit_difference']:.2g} "
            f"and the loss from {rounding['loss_float32']:.6f} to {rounding['loss_' + report['dtype']]:.6f}"
        )


if __name__ == "__main__":
    with report_user_errors():
        main()
