"""The import: read, convert, prove against the file's own tensors in a fresh process, put in place."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from genesis_hf.chat import MAX_UNUSED_ROWS
from genesis_hf.config import ImportRecipe, write_text
from genesis_hf.errors import UserError
from genesis_hf.export import DTYPES, REPORT, put_in_place, rounding_report, standing_export, write_llama_folder
from genesis_hf.files import edit_json, file_sha256, folder_sha256, hash_items
from genesis_hf.importing.architecture import Architecture, find_architecture, with_conventions
from genesis_hf.importing.convert import convert
from genesis_hf.importing.direct import DirectModel, losses_otherwise
from genesis_hf.importing.mapping import read_mapping
from genesis_hf.importing.source import files_of, read_source
from genesis_hf.importing.source_tokenizers import SourceTokenizer, find_tokenizer, read_source_tokenizer
from genesis_hf.parity import (
    ROW_LENGTH,
    Answers,
    Questions,
    differences,
    disagreements,
    make_questions,
    probe_in_fresh_process,
)
from genesis_hf.tokenizer import NASTY_CORPUS, encode_documents, load_tokenizer

RELATIVE_TOLERANCE = 3e-5
"""Largest difference of a logit between the two fp32 computations, in parts of the largest logit (at least of 1).

They add in different orders, which moves logits in proportion to their size: by 9e-7 of it in stories260K (5 layers),
by 3e-6 in 124M random weights (12 layers, the largest logit 7.6). A wrong order of rows moves them by half of it.
"""

PLAINLY_BETTER = 0.1
"""Nats a token by which text must read better in another convention before the mapping is doubted."""

PASSAGE = (
    "Once upon a time there was a little girl who lived with her mother in a small house near the forest. One day she "
    "took her red ball and went out to play with her friend Tom. They ran and jumped and laughed in the sun.",
    "The dog saw the ball and wanted it. \"Please give it back,\" said the girl. The dog was sorry and gave her the "
    "ball. She smiled and said, \"Thank you! You are a good dog.\" Then they all went home and had something to eat.",
    "In the morning it was raining, so they could not go to the park. Mother said that they could make a cake. They "
    "were very happy, and when the cake was ready they ate it together. It was the best day of the week.",
)  # fmt: skip
"""Plain English that any model of English reads better than chance; written for this."""


def import_checkpoint(recipe: ImportRecipe, held_out: Sequence[str] = ()) -> dict[str, Any]:
    """Write `recipe.checkpoint` as a Llama folder, compare it with the file's own tensors, put it in place.

    Args:
        held_out: text to judge the mapping by; default `PASSAGE`.

    Returns:
        the report, as in `parity.json`, and `already_imported`.

    Raises:
        UserError: files that can't be read or don't fit the mapping; what no Llama can express; a folder that doesn't
            compute what the file does (nothing is then left in `output_dir`).
    """
    mapping, constants = with_conventions(read_mapping(recipe.mapping), recipe.model)
    path, output_dir = Path(recipe.checkpoint), Path(recipe.output_dir)
    tokenizer_path = Path(recipe.tokenizer) if recipe.tokenizer else find_tokenizer(path)
    files = files_of(path)
    stamp = {
        "checkpoint": path.name,
        "checkpoint_sha256": hash_items([file_sha256(file) for file in files]),
        "mapping_sha256": hash_items([vars(mapping)]),
        "constants": constants,
        "tokenizer": tokenizer_path.name,
        "tokenizer_sha256": folder_sha256(tokenizer_path) if tokenizer_path.is_dir() else sha256_of(tokenizer_path),
        "dtype": recipe.dtype,
        "formats": ["llama"],
    }
    standing = standing_export(output_dir, stamp, recipe.overwrite)
    if standing:
        return {**standing, "already_imported": True}

    source = read_source(path, mapping)
    architecture = find_architecture(source, mapping, constants)
    state = convert(source, mapping, architecture)
    read = read_source_tokenizer(tokenizer_path, architecture.max_position_embeddings, mapping.add_bos_token)
    check_tokenizer(read, architecture, tokenizer_path)

    model = DirectModel(source, mapping, architecture, DTYPES[recipe.dtype])
    begin = [read.tokenizer.bos_token_id] if mapping.add_bos_token and read.tokenizer.bos_token_id is not None else []
    texts = list(held_out) or list(PASSAGE)
    judged = [(begin + read.encode(text))[: min(ROW_LENGTH, architecture.max_position_embeddings)] for text in texts]
    judgement = judge(losses_otherwise(model, [row for row in judged if len(row) > 1]), architecture)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_dir.with_name(f".{output_dir.name}.importing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_folder(state, architecture, read, temporary, DTYPES[recipe.dtype], mapping.stop_ids)
        del state  # so that the fresh process has the memory
        proved = prove_tokenizer(temporary, read, [*NASTY_CORPUS, *texts])
        plain = [text for text in texts if not any(token in text for token in read.tokenizer.all_special_tokens)]
        questions = make_questions(
            load_tokenizer(temporary), architecture.vocab_size, architecture.max_position_embeddings, plain, texts
        )
        expected = model.answers(questions, [read.encode(text) for text in questions.texts])
        report = {
            **stamp,
            "architecture": vars(architecture),
            "rope_of_the_file": mapping.rope,
            "tokenizer_proof": {"compared_with": read.compared_with, "texts": proved, "mismatches": 0},
            "text_loss": judgement,
            "formats_compared": {"llama": compare(expected, questions, temporary)},
        }
        if recipe.dtype != "float32":
            live = DirectModel(source, mapping, architecture).answers(questions, expected.token_ids)
            report["rounding"] = rounding_report(live, expected, recipe.dtype)
        write_text(temporary / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        put_in_place(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**report, "already_imported": False}


def sha256_of(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"tokenizer {path}: cannot be read ({error.strerror})") from None


def check_tokenizer(read: SourceTokenizer, architecture: Architecture, path: Path) -> None:
    """Raise `UserError` unless every id has a row of the embedding and few rows are without an id."""
    ids, rows = max(read.tokenizer.get_vocab().values()) + 1, architecture.vocab_size
    if ids > rows:
        raise UserError(f"tokenizer {path}: {ids:,} ids, and the model has {rows:,} rows of embedding; give its own")
    if rows - ids > MAX_UNUSED_ROWS:
        raise UserError(
            f"tokenizer {path}: {ids:,} ids, and the model has {rows:,} rows of embedding, more than padding explains; "
            f"give its own, or cut the rows with --model.vocab_size {ids}"
        )


def write_folder(
    state: dict[str, torch.Tensor],
    architecture: Architecture,
    read: SourceTokenizer,
    folder: Path,
    dtype: torch.dtype,
    stop_ids: Sequence[int] = (),
) -> None:
    """The Llama folder of a state dict as `convert` makes it; generation stops at `stop_ids` and at EOS."""
    with torch.device("meta"):  # no weights are drawn
        model = LlamaForCausalLM(architecture.llama_config())
    if architecture.tie_word_embeddings:
        state = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    write_llama_folder(model, read.tokenizer, folder, dtype)
    if stop_ids:
        stops = sorted({read.tokenizer.eos_token_id, *stop_ids} - {None})
        edit_json(folder / "generation_config.json", lambda values: values.update(eos_token_id=stops))
    if read.adds_bos:  # save_tokenizer says false where it isn't told
        edit_json(folder / "tokenizer_config.json", lambda values: values.update(add_bos_token=True))
    if read.files[0].suffix == ".model":
        shutil.copyfile(read.files[0], folder / "tokenizer.model")


# ---------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------


def judge(losses: dict[str, float], architecture: Architecture) -> dict[str, Any]:
    """What losses on text say about the mapping.

    Raises:
        UserError: text reads plainly better in another convention than in the one that the mapping names.
    """
    chance = math.log(architecture.vocab_size)
    best = min(losses, key=losses.get)
    if losses["as mapped"] - losses[best] > PLAINLY_BETTER and losses[best] < chance:
        raise UserError(
            f"the mapping is not what this model was trained with: text costs {losses['as mapped']:.3f} nats a token "
            f"as mapped and {losses[best]:.3f} with {best}; it was not imported"
        )
    return {
        "nats_per_token": losses["as mapped"],
        "chance": chance,
        "otherwise": {words: loss for words, loss in losses.items() if words != "as mapped"},
        "verdict": (
            "the mapping's conventions read text best"
            if losses["as mapped"] < chance
            else "no better than chance: this text can't tell whether the mapping's conventions are right"
        ),
    }


def prove_tokenizer(folder: Path, read: SourceTokenizer, texts: Sequence[str]) -> int:
    """Compare the ids of the written tokenizer with those of the source's encoder.

    Returns:
        how many texts were compared.

    Raises:
        UserError: ids that differ.
    """
    written = load_tokenizer(folder)
    for text, ids in zip(texts, encode_documents(written, list(texts)), strict=True):
        if ids != (expected := read.encode(text)):
            raise UserError(
                f"tokenizer {read.files[0]}: converted, it encodes {text[:40]!r} as {ids[:12]}, and "
                f"{read.compared_with} as {expected[:12]}; it was not imported"
            )
    return len(texts)


def compare(expected: Answers, questions: Questions, folder: Path) -> dict[str, Any]:
    """Figures of the folder in a fresh process against the model computed from the file's own tensors.

    Raises:
        UserError: they disagree, or the folder can't be read.
    """
    try:
        found, versions = probe_in_fresh_process(folder, questions)
    except RuntimeError as error:
        raise UserError(f"the imported folder can't be read back: {error}; it was not put in place") from None
    figures = differences(expected, found)
    largest = float(np.abs(expected.logits).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, largest)
    wrong = disagreements(figures, tolerance)
    if wrong:
        raise UserError(
            f"the folder does not compute what the file's own tensors do: {'; '.join(wrong)}; it was not put in place"
        )
    return {
        **figures,
        "largest_logit": largest,
        "top10_agreement": top10_agreement(expected.logits, found.logits),
        "tolerance": tolerance,
        "agrees": True,
        "read_by": versions,
        "compute_dtype": "float32",
    }


def top10_agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of positions where the ten largest logits are of the same ids in the same order."""
    orders = [np.argsort(-logits, axis=-1, kind="stable")[:, :10] for logits in (expected, found)]
    return float((orders[0] == orders[1]).all(-1).mean())
