"""From a checkpoint to a plain Llama folder that needs no code of ours, proved against the live model.

The folder is read by transformers 4.x and 5.x, lm-eval, vLLM and llama.cpp. It is put in place only after a fresh
process has read it and given the live model's answers (`genesis_hf.parity`).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from genesis_hf.chat import MAX_UNUSED_ROWS
from genesis_hf.chat_lint import lint_folder, trains
from genesis_hf.checkpoint.folders import find_checkpoint
from genesis_hf.checkpoint.restore import load_model
from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.files import edit_json, file_sha256, folder_sha256, read_json
from genesis_hf.parity import (
    TOLERANCE,
    Answers,
    Questions,
    differences,
    disagreements,
    make_questions,
    probe,
    probe_in_fresh_process,
)
from genesis_hf.tokenizer import NASTY_CORPUS, load_tokenizer, save_tokenizer

FORMATS = ("llama",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

REPORT = "parity.json"


MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "tokenizer*", "*.jinja", "merges.txt")
"""What a model's folder is read for; what is downloaded of one on the Hub."""


def export_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    dtype: str = "float32",
    formats: Sequence[str] = FORMATS,
    tokenizer: str | None = None,
    held_out: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint as a Llama folder, compare it with the live model and put it in place.

    Args:
        checkpoint: a checkpoint's folder of any world size, or a run directory.
        output_dir: the folder to make.
        dtype: of the weights in the file, `float32` or `bfloat16`.
        formats: what to write; `llama`.
        tokenizer: a tokenizer's folder; default the checkpoint's own.
        held_out: text that the model wasn't trained on, for the comparison.
        overwrite: replace another export that stands in `output_dir`.

    Returns:
        the parity report, as in `parity.json`, and `already_exported`.

    Raises:
        UserError: an unknown format; a tokenizer that doesn't fit; an `output_dir` in use; an export that does
            not compute what the live model computes (nothing is then left in `output_dir`).
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"formats: unknown format {name!r}; known: {', '.join(FORMATS)}")
    checkpoint, output_dir = find_checkpoint(Path(checkpoint)), Path(output_dir)
    tokenizer_dir = Path(tokenizer or checkpoint / "tokenizer")
    source = {
        "checkpoint_sha256": file_sha256(checkpoint / "manifest.json"),  # which holds those of all its files
        "tokenizer_sha256": folder_sha256(tokenizer_dir),
        "dtype": dtype,
        "formats": list(formats),
    }
    standing = standing_export(output_dir, source, overwrite)
    if standing:
        return {**standing, "already_exported": True}

    model, fast = load_model(checkpoint), load_tokenizer(str(tokenizer_dir))
    check_tokenizer_fits(fast, model.config.vocab_size, tokenizer_dir)
    questions = make_questions(
        fast, model.config.vocab_size, model.config.max_position_embeddings, NASTY_CORPUS, held_out
    )
    live = expected = probe(model, fast, questions)
    if dtype != "float32":
        round_weights(model, DTYPES[dtype])
        expected = probe(model, fast, questions)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_dir.with_name(f".{output_dir.name}.exporting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_llama_folder(model, fast, temporary, DTYPES[dtype])
        if trains(fast):  # a chat model; a base model may carry a template that nothing was trained with
            lint_folder(temporary)
        del model  # so that the fresh process has the memory
        report = {
            "checkpoint": checkpoint.name,
            **source,
            "training": training_figures(checkpoint),
            "held_out_text": bool(held_out),
            "formats_compared": {"llama": compare_with(expected, questions, temporary)},
        }
        if dtype != "float32":
            report["rounding"] = rounding_report(live, expected, dtype)
        write_text(temporary / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        put_in_place(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**report, "already_exported": False}


# ---------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------


def write_llama_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model whose state-dict keys are Llama's, with its tokenizer, as a plain `model_type: llama` folder.

    The tokenizer is the authority on which ids end and pad a text.
    """
    eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    pad = eos if pad is None else pad
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
        values.pop(key, None)
    config = LlamaConfig(**{**values, "eos_token_id": eos, "pad_token_id": pad, "bos_token_id": bos})
    with torch.device("meta"):  # the weights come from the state dict: none are drawn, none are held twice
        llama = LlamaForCausalLM(config)
    state = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama.load_state_dict(state, strict=True, assign=True)
    llama.tie_weights()
    llama.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, bos_token_id=bos)
    llama.save_pretrained(folder)
    edit_json(folder / "config.json", speak_transformers_4)
    save_tokenizer(tokenizer, folder)

    def mend(settings: dict[str, Any]) -> None:
        if isinstance(settings.get("extra_special_tokens"), list):  # 4.x expects a mapping under this name
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        if tokenizer.chat_template:  # older 4.x and transformers.js look for it here, not in a file of its own
            settings["chat_template"] = tokenizer.chat_template

    edit_json(folder / "tokenizer_config.json", mend)


def speak_transformers_4(config: dict[str, Any]) -> None:
    """Add what transformers 4.x reads: without these it silently takes θ = 10,000 and fp32."""
    rope = config["rope_parameters"]
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["torch_dtype"] = config["dtype"]


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerFast, vocab_size: int, folder: Path) -> None:
    """Raise `UserError` unless every id has a row of the embedding and few rows are without an id."""
    ids = max(tokenizer.get_vocab().values()) + 1
    if ids > vocab_size or vocab_size - ids > MAX_UNUSED_ROWS:
        raise UserError(
            f"{folder}: this tokenizer has {ids:,} ids and the model {vocab_size:,}; "
            "give the tokenizer that the model was trained with"
        )


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round fp32 weights in place to what `dtype` can hold, so that the file and the live model hold the same."""
    for weight in model.parameters():
        weight.copy_(weight.to(dtype))


# ---------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------


def compare_with(expected: Answers, questions: Questions, folder: Path) -> dict[str, Any]:
    """Figures of the folder in a fresh process against the live answers.

    Raises:
        UserError: they disagree, or the folder can't be read.
    """
    try:
        found, versions = probe_in_fresh_process(folder, questions)
    except RuntimeError as error:
        raise UserError(f"the exported folder can't be read back: {error}; it was not put in place") from None
    figures = differences(expected, found)
    wrong = disagreements(figures)
    if wrong:
        raise UserError(
            f"the export does not compute what the live model computes: {'; '.join(wrong)}; it was not put in place"
        )
    return {**figures, "tolerance": TOLERANCE, "agrees": True, "read_by": versions, "compute_dtype": "float32"}


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
    if all(report.get(key) == value for key, value in source.items()):
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
