"""From a checkpoint to files that need no code of ours, each proved against the live model.

A plain Llama folder is read by transformers 4.x and 5.x, lm-eval, vLLM and llama.cpp; ONNX, GGUF and a state dict are
made from it. All is put in place only after fresh processes have read every file and given the live model's answers
(`genesis_hf.parity`); where one doesn't, what would explain it is looked for (`genesis_hf.exporting.causes`).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from genesis_hf.chat_lint import lint_folder, trains
from genesis_hf.checkpoint.folders import find_checkpoint
from genesis_hf.checkpoint.restore import load_model
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.exporting.causes import find_causes
from genesis_hf.exporting.formats import Written, check_formats, drop_llama, judge, write_formats
from genesis_hf.exporting.llama import DTYPES as DTYPES
from genesis_hf.exporting.llama import check_tokenizer_fits, cut_vocabulary, round_weights, write_llama_folder
from genesis_hf.exporting.llama import speak_transformers_4 as speak_transformers_4
from genesis_hf.files import file_sha256, folder_sha256, read_json
from genesis_hf.parity import Answers, Questions, differences, make_questions, probe, probe_in_fresh_process
from genesis_hf.tokenizer import NASTY_CORPUS, load_tokenizer

REPORT = "parity.json"


MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "tokenizer*", "*.jinja", "merges.txt")
"""What a model's folder is read for; what is downloaded of one on the Hub."""


def export_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    dtype: str = "float32",
    formats: Sequence[str] = ("llama",),
    tokenizer: str | None = None,
    held_out: Sequence[str] = (),
    overwrite: bool = False,
    vocabulary: str = "keep",
    max_shard_size: str = "5GB",
    llama_cpp: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint in the formats asked for, compare every file with the live model and put all in place.

    Args:
        checkpoint: a checkpoint's folder of any world size, or a run directory.
        output_dir: the folder to make.
        dtype: of the weights, `float32` or `bfloat16`; the other formats are made from weights so rounded.
        formats: what to write, of `genesis_hf.exporting.formats.FORMATS`; config and tokenizer always are.
        tokenizer: a tokenizer's folder; default the checkpoint's own.
        held_out: text that the model wasn't trained on, for the comparison.
        overwrite: replace another export that stands in `output_dir`.
        vocabulary: rows of the embedding beyond the tokenizer's ids: `keep` or `cut`.
        max_shard_size: weights of the Llama folder beyond it are spread over several files.
        llama_cpp: a folder of llama.cpp's source, for GGUF; default the converter in the cache.

    Returns:
        the parity report, as in `parity.json`, and `already_exported`.

    Raises:
        UserError: an unknown format, or one that lacks its software; a tokenizer that doesn't fit; an `output_dir` in
            use; an export that does not compute what the live model computes (nothing is then left in `output_dir`).
    """
    check_formats(list(formats), llama_cpp)
    checkpoint, output_dir = find_checkpoint(Path(checkpoint)), Path(output_dir)
    tokenizer_dir = Path(tokenizer or checkpoint / "tokenizer")
    source = {
        "checkpoint_sha256": file_sha256(checkpoint / "manifest.json"),  # which holds those of all its files
        "tokenizer_sha256": folder_sha256(tokenizer_dir),
        "dtype": dtype,
        "formats": list(formats),
        "vocabulary": vocabulary,
    }
    standing = standing_export(output_dir, source, overwrite)
    if standing:
        return {**standing, "already_exported": True}

    model, fast = load_model(checkpoint), load_tokenizer(str(tokenizer_dir))
    rows = model.config.vocab_size
    check_tokenizer_fits(fast, rows, tokenizer_dir)
    kept = max(fast.get_vocab().values()) + 1 if vocabulary == "cut" else rows
    questions = make_questions(fast, kept, model.config.max_position_embeddings, NASTY_CORPUS, held_out)
    live = expected = probe(model, fast, questions)

    def exported_model(model: PreTrainedModel) -> PreTrainedModel:
        if kept < rows:
            cut_vocabulary(model, kept)
        if dtype != "float32":
            round_weights(model, DTYPES[dtype])
        return model

    model = exported_model(model)
    if dtype != "float32":
        expected = probe(model, fast, questions)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_dir.with_name(f".{output_dir.name}.exporting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_llama_folder(model, fast, temporary, DTYPES[dtype], max_shard_size)
        if trains(fast):  # a chat model; a base model may carry a template that nothing was trained with
            lint_folder(temporary)
        del model  # so that the other processes have the memory
        compared = {}
        for file in write_formats(temporary, list(formats), llama_cpp):
            compared[file.name] = compare_with(
                expected, questions, file, temporary, lambda: exported_model(load_model(checkpoint))
            )
        if "llama" not in formats:
            drop_llama(temporary)
        report = {
            "checkpoint": checkpoint.name,
            **source,
            "training": training_figures(checkpoint),
            "held_out_text": bool(held_out),
            "vocabulary_rows": {"model": rows, "exported": kept},
            "formats_compared": compared,
        }
        if dtype != "float32":
            report["rounding"] = rounding_report(live, expected, dtype)
        write_text(temporary / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        put_in_place(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**report, "already_exported": False}


# ---------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------


def compare_with(
    expected: Answers, questions: Questions, file: Written, folder: Path, live: Callable[[], PreTrainedModel]
) -> dict[str, Any]:
    """Figures of an exported file in a fresh process against the live answers.

    Args:
        folder: the Llama folder that the file was made from, or is.
        live: the model that gave `expected`, loaded again to look for the cause of a difference.

    Raises:
        UserError: they disagree, or the file can't be read; the likely cause is named.
    """
    found = None
    try:
        found, versions = probe_in_fresh_process(file.path, questions, file.kind)
        figures, wrong = judge(file.name, expected, found)
        wrong = wrong and [f"does not compute what the live model computes: {'; '.join(wrong)}"]
    except RuntimeError as error:
        wrong = [f"can't be read back: {error}"]
    if wrong:
        cause = find_causes(live(), questions, expected, found, folder if file.kind == "llama" else None)
        raise UserError(f"the export ({file.name}) {wrong[0]}; likely cause: {cause}; it was not put in place")
    return {**figures, "agrees": True, "read_by": versions, "compute_dtype": "float32"}


def rounding_report(live: Answers, rounded: Answers, dtype: str) -> dict[str, Any]:
    """What rounding the weights alone changes, against the fp32 model: information, nothing is refused for it."""
    figures = differences(live, rounded)
    return {
        "what": f"fp32 weights against the same rounded to {dtype}, both computed in fp32; no bound is set",
        "max_logit_difference": figures["max_logit_difference"],
        "top1_agreement": figures["top1_agreement"],
        "loss_float32": live.loss,
        f"loss_{dtype}": rounded.loss,
    }


def training_figures(checkpoint: Path) -> dict[str, Any]:
    """What training recorded at this step, where it is known: losses in nats per token, held-out bits per byte."""
    state = read_json(checkpoint / "trainer_state.json")
    return {key: state[key] for key in ("step", "tokens_seen", "loss", "held_out") if key in state}


# ---------------------------------------------------------------------------------------------------------
# The folder's place
# ---------------------------------------------------------------------------------------------------------


def standing_export(output_dir: Path, source: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The report of the same export if it stands in `output_dir`; None where there is room to write.

    Raises:
        UserError: something else stands there.
    """
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return None
    report = read_json(output_dir / REPORT)
    if not report:
        raise UserError(f"output_dir {output_dir} holds something that is not an export; name another folder")
    recorded = {"vocabulary": "keep", **report}  # which older reports don't tell
    if all(recorded.get(key) == value for key, value in source.items()):
        return report
    if not overwrite:
        raise UserError(
            f"output_dir {output_dir} holds another export ({report.get('checkpoint')}, {report.get('dtype')}); "
            "name another folder, or replace it with --overwrite true"
        )
    return None


def put_in_place(temporary: Path, output_dir: Path) -> None:
    """Rename a finished folder to its name; an older one is moved aside first and then removed."""
    old = output_dir.with_name(f".{output_dir.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if output_dir.exists():
        output_dir.rename(old)
    temporary.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)


def resolve_model(name: str) -> Path:
    """The folder of a model that a phase was given by any of its names.

    An exported folder as it is; a checkpoint or run directory exported first; a Hub id downloaded.

    Raises:
        UserError: nothing of that name.
    """
    path = Path(name)
    for folder in (path, path / "final"):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    if path.exists():
        checkpoint = find_checkpoint(path)
        folder = checkpoint.parent.parent / "exports" / f"{checkpoint.name}-float32"
        export_checkpoint(checkpoint, folder)
        return folder
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(f"model {name}: no such folder, and not the form of a Hub id (owner/name)")
    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model {name}: neither a folder nor a model of the Hub ({reason})") from None
