"""From a checkpoint to files that need no code of ours, each proved against the live model.

A plain Llama folder is read by transformers 4.x and 5.x, lm-eval, vLLM and llama.cpp; ONNX, GGUF and a state dict are
made from it. All is put in place only after fresh processes have read every file and given the live model's answers
(`genesis_hf.parity`); where one doesn't, what would explain it is looked for (`genesis_hf.exporting.causes`).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from genesis_hf.chat_lint import lint_folder, trains
from genesis_hf.checkpoint.folders import find_checkpoint
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.exporting.causes import find_causes
from genesis_hf.exporting.formats import Written, check_formats, drop_llama, judge, write_formats
from genesis_hf.exporting.live import LiveModel, freed_memory_returned, return_small_memory
from genesis_hf.exporting.llama import DTYPES as DTYPES
from genesis_hf.exporting.llama import check_tokenizer_fits, write_llama_folder
from genesis_hf.exporting.llama import speak_transformers_4 as speak_transformers_4
from genesis_hf.exporting.source import find_source, holds_llama
from genesis_hf.files import MODEL_FILES, read_json
from genesis_hf.parity import Answers, Questions, logit_differences, make_questions, probe, probe_in_fresh_process
from genesis_hf.tokenizer import NASTY_CORPUS, load_tokenizer

REPORT = "parity.json"


@freed_memory_returned()
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
        checkpoint: a checkpoint's folder of any world size, a run directory, or a plain Llama folder.
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
    source, output_dir = find_source(checkpoint, tokenizer), Path(output_dir)
    if output_dir.resolve() == source.folder.resolve():
        raise UserError(f"output_dir {output_dir} is what is to be exported; name another folder")
    stamp = {**source.hashes(), "dtype": dtype, "formats": list(formats), "vocabulary": vocabulary}
    standing = standing_export(output_dir, stamp, overwrite)
    if standing:
        return {**standing, "already_exported": True}

    live, fast = source.live(), load_tokenizer(str(source.tokenizer))
    rows = live.config.vocab_size
    check_tokenizer_fits(fast, rows, source.tokenizer)
    kept = max(fast.get_vocab().values()) + 1 if vocabulary == "cut" else rows
    questions = make_questions(fast, kept, live.config.max_position_embeddings, NASTY_CORPUS, held_out)
    rounded = live.rounded(DTYPES[dtype])
    exported = rounded.cut(kept) if kept < rows else rounded

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_dir.with_name(f".{output_dir.name}.exporting")
    spill = output_dir.with_name(f".{output_dir.name}.live")
    clear(temporary, spill)
    try:
        write_llama_folder(exported, fast, temporary, DTYPES[dtype], max_shard_size, source.generation_config())
        if trains(fast):  # a chat model; a base model may carry a template that nothing was trained with
            lint_folder(temporary)
        expected = probe(rounded.spilled(spill).computing(), fast, questions)
        report = {
            "checkpoint": source.folder.name,
            **stamp,
            "training": source.training(),
            "held_out_text": bool(held_out),
            "vocabulary_rows": {"model": rows, "exported": kept},
            "formats_compared": {},
        }
        if dtype != "float32":
            unrounded = probe(live.computing(), fast, replace(questions, prompts=[], texts=[]))
            report["rounding"] = rounding_report(unrounded, expected, dtype)
            del unrounded
        clear(spill)
        return_small_memory()  # the processes that follow may need it
        compared = report["formats_compared"]
        for file in write_formats(temporary, list(formats), llama_cpp):
            compared[file.name] = compare_with(expected, questions, file, temporary, exported, compared)
        if "llama" not in formats:
            drop_llama(temporary)
        write_text(temporary / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        put_in_place(temporary, output_dir)
    except SafetensorError as error:  # no OSError, whatever the disk said
        raise UserError(f"{output_dir.parent}: {error}; nothing was exported") from None
    finally:
        clear(temporary, spill)
    return {**report, "already_exported": False}


# ---------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------


def compare_with(
    expected: Answers, questions: Questions, file: Written, folder: Path, live: LiveModel, judged: dict
) -> dict[str, Any]:
    """Figures of an exported file in a fresh process against the live answers.

    Args:
        folder: the Llama folder that the file was made from, or is.
        live: the model that gave `expected`, to look for the cause of a difference.
        judged: figures of the files that were compared before.

    Raises:
        UserError: they disagree, or the file can't be read; the likely cause is named.
    """
    found = None
    try:
        found, versions = probe_in_fresh_process(file.path, questions, file.kind)
        figures, wrong = judge(file.name, expected, found, judged)
        wrong = wrong and [f"does not compute what the live model computes: {'; '.join(wrong)}"]
    except RuntimeError as error:
        wrong = [f"can't be read back: {error}"]
    if wrong:
        cause = find_causes(live, questions, expected, found, folder if file.kind == "llama" else None)
        raise UserError(f"the export ({file.name}) {wrong[0]}; likely cause: {cause}; it was not put in place")
    return {**figures, "agrees": True, "read_by": versions, "compute_dtype": "float32"}


def rounding_report(live: Answers, rounded: Answers, dtype: str) -> dict[str, Any]:
    """What rounding the weights alone changes, against the fp32 model: information, nothing is refused for it."""
    return {
        "what": f"fp32 weights against the same rounded to {dtype}, both computed in fp32; no bound is set",
        **logit_differences(live, rounded),
        "loss_float32": live.loss,
        f"loss_{dtype}": rounded.loss,
    }


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


def clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(temporary: Path, output_dir: Path) -> None:
    """Rename a finished folder to its name; an older one is moved aside first and then removed."""
    old = output_dir.with_name(f".{output_dir.name}.replaced")
    clear(old)
    if output_dir.exists():
        output_dir.rename(old)
    temporary.rename(output_dir)
    clear(old)


def resolve_model(name: str) -> Path:
    """The folder of a model that a phase was given by any of its names.

    An exported folder as it is; a checkpoint or run directory exported first; a Hub id downloaded.

    Raises:
        UserError: nothing of that name.
    """
    path = Path(name)
    for folder in (path, path / "final"):
        if holds_llama(folder):
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
