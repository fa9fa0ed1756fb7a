"""Write a checkpoint as a plain Llama folder, ONNX, GGUF or a state dict, and prove each against the live model.

    python scripts/export.py --checkpoint RUN_OR_CHECKPOINT --output_dir DIR [--formats llama,onnx,gguf,pt]
        [--dtype bfloat16]

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
        vocabulary=recipe.vocabulary,
        max_shard_size=recipe.max_shard_size,
        llama_cpp=recipe.llama_cpp,
    )
    print_report(report, recipe.output_dir)


def print_report(report: dict, output_dir: str) -> None:
    words = "already exported" if report["already_exported"] else "exported"
    print(f"{words}: {report['checkpoint']} in {report['dtype']} → {output_dir}")
    header = ["file", "logits differ by", "at most", "top-1", "loss", "greedy text", "tokenizer", "read by"]
    table = [header, *(row(name, figures) for name, figures in report["formats_compared"].items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    first = next(iter(report["formats_compared"].values()))
    print(
        f"  live model: loss {first['loss_live']:.6f} nats a token; {first['tokens_compared']} tokens compared, "
        "each file in a fresh process, computed in fp32"
    )
    if "rounding" in report:
        rounding = report["rounding"]
        print(
            f"  rounding the weights alone moves logits by up to {rounding['max_logit_difference']:.2g} "
            f"and the loss from {rounding['loss_float32']:.6f} to {rounding['loss_' + report['dtype']]:.6f}"
        )


def row(name: str, figures: dict) -> list[str]:
    versions = [f"{library} {version}" for library, version in figures["read_by"].items() if library != "python"]
    return [
        name,
        f"{figures['max_logit_difference']:.2g}",
        f"{figures['tolerance']:.2g}",
        f"{figures['top1_agreement']:.2%}",
        f"{figures['loss_exported']:.6f}",
        f"{figures['greedy_same']}/{figures['greedy_prompts']}",
        f"{figures['tokenizer_same']}/{figures['tokenizer_texts']}",
        ", ".join(versions),
    ]


if __name__ == "__main__":
    with report_user_errors():
        main()
