"""Recipes: a dataclass a phase, filled from YAML and the command line.

A key that no dataclass knows is an error that names the nearest one; so is a value of the wrong type.
"""

import dataclasses
import difflib
import itertools
import math
import os
import re
import sys
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from genesis_hf.errors import UserError

T = TypeVar("T")

SECRET = re.compile("TOKEN(?!IZERS)|SECRET|PASSWORD|(^|_)KEY", re.IGNORECASE)
"""In the name of an environment variable whose value is nobody's business."""


def setting(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A dataclass field with a line of help; mutable defaults are copied for each instance."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


# ---------------------------------------------------------------------------------------------------------
# The phases
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Where documents come from: local files (`paths`), a Hub dataset (`dataset`) or token shards (`prepared`)."""

    name: str = setting(help="what the source is called in metrics and reports")
    weight: float = setting(1.0, "share of the tokens, relative to the other sources")
    paths: list[str] | None = setting(None, "globs: .jsonl .parquet .arrow .txt .md, .gz and .zst of text")
    dataset: str | None = setting(None, "Hub dataset, streamed")
    prepared: str | None = setting(None, "a source's folder of token shards, made by scripts/prepare_data.py")
    config: str | None = setting(None, "configuration of the Hub dataset")
    data_dir: str | None = setting(None, "folder inside the Hub dataset")
    split: str = setting("train", "split of the Hub dataset")
    revision: str | None = setting(None, "revision of the Hub dataset")
    text_column: str = setting("text", "column or JSON key that holds the text")
    text_template: str | None = setting(
        None, "instead of text_column: text with {columns} in it; a list of messages becomes a paragraph a turn"
    )
    filters: dict[str, Any] = setting(
        {}, "by column: a value, a list of values, or {min: …, max: …}; documents that don't fit are left out"
    )
    max_documents: int | None = setting(None, "documents of an epoch; null: all")
    max_tokens: int | None = setting(None, "tokens of an epoch, to the end of the document that reaches it; null: all")
    max_epochs: int | None = setting(None, "passes until the source is dry; null: the recipe's max_epochs")

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.paths, self.dataset, self.prepared)) != 1:
            raise UserError(f"source {self.name!r} needs exactly one of `paths`, `dataset` and `prepared`")
        if not (self.weight > 0 and self.weight < float("inf")):
            raise UserError(f"source {self.name!r}: weight must be above 0, not {self.weight}")
        for key in ("max_documents", "max_tokens", "max_epochs"):
            if getattr(self, key) is not None and getattr(self, key) <= 0:
                raise UserError(f"source {self.name!r}: {key} must be above 0, not {getattr(self, key)}")
        if self.prepared is not None and (self.filters or self.text_template):
            raise UserError(
                f"source {self.name!r}: filters and text_template are for scripts/prepare_data.py; its token shards "
                "hold what they let through"
            )


@dataclass
class DataChange:
    """New weights or a new seed from a step on: a branch says so, and stays exact."""

    step: int = setting(help="optimizer steps before it; holds from the first row block that begins at or after it")
    seed: int | None = setting(None, "seed of the permutations that begin from there on")
    weights: dict[str, float] | None = setting(None, "weight by source, all of them")


@dataclass
class DemoCorpusRecipe:
    """`scripts/prepare_demo.py`"""

    output_dir: str = setting(help="folder to write the demo's data to")
    text: str | None = setting(None, "folder of .txt .md .jsonl(.gz) .parquet to pretrain on; null: Python's own")
    text_column: str = setting("text", "column or JSON key that holds the text in that folder")
    seed: int = setting(42, "questions, phrasings, pairs and items drawn follow from it")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")


@dataclass
class TokenizerRecipe:
    """`scripts/train_tokenizer.py`"""

    output_dir: str = setting(help="folder to write the tokenizer to")
    kind: Literal["sentencepiece", "gpt2"] = setting("sentencepiece", "train BPE, or convert GPT-2 files")
    sources: list[Source] = setting([], "text to train on and to report fertility of")
    vocab_size: int = setting(49152, "pieces, the 256 bytes and 3 special tokens included")
    max_train_bytes: int = setting(100_000_000, "text to train on, divided by the sources' weights")
    vocab_file: str | None = setting(None, "gpt2: vocab.json / encoder.json, plain or .gz")
    merges_file: str | None = setting(None, "gpt2: merges.txt / vocab.bpe, plain or .gz")
    model_max_length: int = setting(2048, "context that the tokenizer's config names")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")

    def __post_init__(self) -> None:
        for name in ("max_train_bytes", "model_max_length"):
            check_positive(self, name)
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise UserError(f"`sources` holds a name twice: {', '.join(names)}")
        if self.kind == "gpt2" and not (self.vocab_file and self.merges_file):
            raise UserError("kind: gpt2 needs `vocab_file` and `merges_file`")
        if self.kind == "sentencepiece" and not self.sources:
            raise UserError("`sources` is empty: name at least one source of text")
        if self.kind == "sentencepiece" and self.vocab_size < 264:
            raise UserError(f"vocab_size must be at least 264 (256 bytes, 3 special tokens), not {self.vocab_size}")


@dataclass
class PretrainRecipe:
    """`scripts/pretrain.py`; names follow transformers.TrainingArguments."""

    output_dir: str = setting(help="the run directory")
    model: dict[str, Any] | str = setting(help="LlamaConfig's keys, or a folder with a config.json")
    tokenizer: str = setting(help="a folder (or Hub id) that AutoTokenizer reads")
    sources: list[Source] = setting(help="what to train on")
    max_steps: int = setting(help="optimizer steps of the whole schedule")
    sequence_length: int = setting(2048, "tokens in a row")
    eval_sources: list[Source] = setting([], "held-out text for bits per byte in the loop; never trained on")
    held_out_share: float = setting(0.0, "share of each source's documents held out, by their hash")
    exclude_documents: list[str] = setting([], "files of document hashes to leave out (scripts/decontaminate.py)")
    packing: Literal["concatenate", "best_fit"] = setting(
        "concatenate", "concatenate: each token once, no padding; best_fit: whole documents where they fit, padded"
    )
    reset_positions: bool = setting(True, "positions restart at each document, which attends only to itself")
    mask_boundaries: bool = setting(True, "the first token of a document is no label")
    shuffle_block: int = setting(
        1024, "documents permuted together (prepared tokens: the whole index); 0 keeps the files' order"
    )
    shuffle_rows: int = setting(1024, "rows permuted together, after packing; 0 keeps the documents' order")
    when_dry: Literal["repeat", "stop", "reweight"] = setting(
        "repeat", "a source at its end: repeat it up to max_epochs, stop the run, or go on with the others"
    )
    max_epochs: int | None = setting(
        None, "passes over a source until it is dry; null: 1, and no limit with when_dry: repeat"
    )
    max_bad_records: int = setting(100, "unreadable records skipped, each one reported, before the run stops")
    data_changes: list[DataChange] = setting([], "new weights or a new seed from a step on")
    accept_data_change: bool = setting(False, "resume although sources, weights or seed are other than recorded")
    dataloader_num_workers: int = setting(1, "threads that read and tokenise ahead; 0: none")
    dataloader_prefetch_factor: int = setting(2, "steps made ahead where there are workers")
    per_device_train_batch_size: int = setting(8, "rows in a micro-batch on one device")
    gradient_accumulation_steps: int = setting(1, "micro-batches in an optimizer step")
    num_processes: int | None = setting(
        None, "processes this recipe is written for; on another number, accumulation keeps tokens per step"
    )
    learning_rate: float = setting(3e-4, "peak learning rate")
    min_learning_rate: float = setting(3e-5, "where the decay ends")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = setting("cosine")
    warmup_steps: int = setting(500, "linear warmup from 0")
    decay_steps: int = setting(0, "warmup_stable_decay: length of the final linear decay")
    extended_at: list[int] = setting(
        [], "steps at which the run ended before: there the rate warms up again, then decays to the next end"
    )
    anneal_at: int | None = setting(None, "from this step on the rate falls linearly to min_learning_rate …")
    anneal_steps: int = setting(0, "… in so many steps, at which the run ends")
    optim: Literal["adamw", "muon"] = setting("adamw", "muon: Muon for hidden matrices, AdamW for the rest")
    adam_beta1: float = setting(0.9)
    adam_beta2: float = setting(0.95)
    adam_epsilon: float = setting(1e-8)
    muon_learning_rate: float = setting(0.02, "muon: peak learning rate of the matrices")
    weight_decay: float = setting(0.1, "on matrices; never on norms and embeddings")
    max_grad_norm: float = setting(1.0, "gradient clipping; 0 is off")
    bf16: bool | None = setting(None, "bfloat16 compute over fp32 weights; null: where the hardware has it")
    gradient_checkpointing: bool | Literal["none", "full", "selective"] = setting(
        False, "recompute in the backward pass: full, each block's activations; selective, all but products of matrices"
    )
    torch_compile: bool = setting(False, "torch.compile of each block")
    attn_implementation: str | None = setting(
        None, "documents, sdpa, flash_attention_2 …; null: documents on a CPU, sdpa on a GPU"
    )
    loss_implementation: Literal["chunked", "liger"] = setting("chunked", "liger: its fused kernel, on a GPU")
    cpu_offload: bool = setting(False, "FSDP: weights, gradients and optimizer in the computer's memory")
    fp8: bool = setting(False, "matrix products in fp8 (torchao), on cards that have it")
    auto_find_batch_size: bool = setting(
        True, "out of memory: halve per_device_train_batch_size and double the accumulation"
    )
    logging_steps: int = setting(10, "steps between lines of metrics.jsonl")
    save_steps: int = setting(1000, "steps between checkpoints")
    save_minutes: float | None = setting(None, "minutes between checkpoints, beside save_steps")
    save_total_limit: int | None = setting(3, "newest checkpoints kept, milestones apart; null keeps all")
    keep_steps: list[int] = setting([], "milestones: a checkpoint is saved at each of these steps and never deleted")
    save_async: bool = setting(True, "write checkpoints while training goes on; costs their size in memory")
    save_copy_dir: str | None = setting(None, "a second folder (another disk) that each checkpoint is copied to")
    push_to_hub: bool = setting(
        False, "upload each checkpoint in the background, a branch of its own, and the model at the end"
    )
    hub_model_id: str | None = setting(None, "owner/name of the Hub repository")
    hub_private_repo: bool = setting(True, "make the Hub repository a private one")
    eval_steps: int | None = setting(None, "steps between held-out evaluations; null: at the end only")
    eval_rows: int = setting(64, "rows of each held-out source in an evaluation in the loop")
    sample_prompts: list[str] = setting([], "texts to continue, greedily, to see the model learn")
    sample_steps: int | None = setting(None, "steps between sample continuations; null: with each evaluation")
    sample_max_new_tokens: int = setting(32, "tokens of a sample continuation")
    max_skipped_steps: int = setting(10, "steps in a row, loss or gradient not finite, until the run stops")
    spike_sigma: float | None = setting(None, "a loss so many standard deviations above the recent mean is a spike")
    spike_action: Literal["skip", "rollback"] = setting(
        "skip", "a spike: skip its update, or also go back to the newest checkpoint, past the data in between"
    )
    hang_minutes: float | None = setting(
        30.0, "minutes without progress until each process writes its stacks to a file and aborts; null: never"
    )
    stop_at_step: int | None = setting(None, "save and leave at this step; the schedule stays max_steps long")
    seed: int = setting(42)
    report_to: list[str] = setting([], "trackers beside metrics.jsonl: tensorboard, wandb, trackio")
    resume_from_checkpoint: str = setting("auto", "auto, none, or a checkpoint's folder")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and the plan and touch nothing")

    def __post_init__(self) -> None:
        for name in ("max_steps", "sequence_length", "per_device_train_batch_size"):
            check_positive(self, name)
        for name in ("gradient_accumulation_steps", "logging_steps", "save_steps", "eval_rows"):
            check_positive(self, name)
        if not self.sources:
            raise UserError("`sources` is empty: name at least one source of text")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise UserError(f"`sources` holds a name twice: {', '.join(names)}")
        for name in ("shuffle_block", "shuffle_rows", "max_bad_records", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        check_positive(self, "dataloader_prefetch_factor")
        check_positive(self, "max_skipped_steps")
        check_positive(self, "sample_max_new_tokens")
        for name in ("max_epochs", "save_minutes", "save_total_limit", "sample_steps", "spike_sigma", "hang_minutes"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if not 0 <= self.held_out_share < 1:
            raise UserError(f"held_out_share must lie between 0 and 1, not {self.held_out_share}")
        for change in self.data_changes:
            weights = change.weights
            if weights is not None and (set(weights) != set(names) or not all(w > 0 for w in weights.values())):
                raise UserError(
                    f"data_changes, step {change.step}: weights must name each source with a number above 0 "
                    f"({', '.join(names)})"
                )
        if not 0 <= self.warmup_steps <= self.max_steps:
            raise UserError(f"warmup_steps ({self.warmup_steps}) must lie between 0 and max_steps")
        ends = [0, *self.extended_at, self.max_steps]
        if any(end - start <= self.warmup_steps for start, end in itertools.pairwise(ends)) and self.extended_at:
            raise UserError(
                f"extended_at {self.extended_at}: steps must rise, stay below max_steps ({self.max_steps}) and lie "
                f"more than warmup_steps ({self.warmup_steps}) apart"
            )
        if self.push_to_hub:
            check_repository(self.hub_model_id)
        if self.anneal_at is not None:
            check_positive(self, "anneal_steps")
            if not self.warmup_steps <= self.anneal_at < self.max_steps:
                raise UserError(f"anneal_at ({self.anneal_at}) must lie between warmup_steps and max_steps")

    @property
    def recompute(self) -> str:
        """`gradient_checkpointing` as a word: none, full or selective."""
        return {False: "none", True: "full"}.get(self.gradient_checkpointing, self.gradient_checkpointing)

    @property
    def last_step(self) -> int:
        """The step at which the schedule ends."""
        return self.max_steps if self.anneal_at is None else self.anneal_at + self.anneal_steps

    @property
    def milestones(self) -> set[int]:
        """Steps whose checkpoints stay: `keep_steps`, and each end of the schedule."""
        return {*self.keep_steps, *self.extended_at, self.last_step}


@dataclass
class InspectDataRecipe:
    """`scripts/inspect_data.py`, beside the pretraining recipe whose rows it shows."""

    num_rows: int = setting(4, "rows to show")
    start: int = setting(0, "the first row that may be shown, counted over the whole run")
    rank: int = setting(0, "show the rows of this process …")
    world_size: int = setting(1, "… out of so many")
    format: Literal["text", "jsonl"] = setting("text", "text to read, or one object a row")

    def __post_init__(self) -> None:
        check_positive(self, "num_rows")
        check_positive(self, "world_size")
        if self.start < 0:
            raise UserError(f"start must be at least 0, not {self.start}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank must lie between 0 and world_size - 1 ({self.world_size - 1}), not {self.rank}")


@dataclass
class ExportRecipe:
    """`scripts/export.py`"""

    checkpoint: str = setting(help="a checkpoint, a run directory (its newest, or final/), or a Llama folder")
    output_dir: str = setting(help="folder to write the model to")
    formats: list[Literal["llama", "onnx", "gguf", "pt"]] = setting(["llama"], "what to write")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "of the weights in the files; onnx (fp32, fp16) and gguf (f32, f16, q8_0) are made from them"
    )
    vocabulary: Literal["keep", "cut"] = setting("keep", "rows of the embedding beyond the tokenizer's ids")
    max_shard_size: str = setting("5GB", "weights of the Llama folder beyond it are spread over several files")
    llama_cpp: str | None = setting(
        None, "a folder of llama.cpp's source, for gguf; null: what python -m genesis_hf.exporting.gguf fetched"
    )
    tokenizer: str | None = setting(None, "a tokenizer's folder; null: the checkpoint's own")
    held_out_sources: list[Source] = setting([], "text to compare the export with the live model on")
    overwrite: bool = setting(False, "replace another export in output_dir")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")


@dataclass
class PublishRecipe:
    """`scripts/push_to_hub.py`"""

    model: str = setting(help="a run directory, checkpoint, exported folder, or the final folder of SFT, DPO or KTO")
    hub_model_id: str = setting(help="owner/name of the Hub repository")
    revision: str | None = setting(None, "branch to publish to; null: the step of the checkpoint, else main alone")
    tag: str | None = setting(None, "name of a release, such as v1.0, for what is published now")
    hub_private_repo: bool = setting(True, "make the repository a private one; a public one is then refused")
    include_checkpoint: bool = setting(False, "also upload the training checkpoint, for scripts/pull_checkpoint.py")
    evaluation: str | None = setting(None, "evaluation.json, or its folder, for the card; null: the one in the model's")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the weights, where a checkpoint is exported first")
    license: str | None = setting(None, "for the card: a license by its name on the Hub, such as apache-2.0")
    language: list[str] = setting([], "for the card: languages of the text, such as en, de")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and what would be uploaded; touch nothing")

    def __post_init__(self) -> None:
        check_repository(self.hub_model_id)


@dataclass
class PullRecipe:
    """`scripts/pull_checkpoint.py`"""

    hub_model_id: str = setting(help="owner/name of the Hub repository")
    output_dir: str = setting(help="the run directory to make, or to bring a newer checkpoint into")
    revision: str = setting("newest", "a checkpoint's branch, such as step-040000, or newest")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and what would be downloaded; touch nothing")

    def __post_init__(self) -> None:
        check_repository(self.hub_model_id)


@dataclass
class ImportRecipe:
    """`scripts/import_checkpoint.py`"""

    checkpoint: str = setting(help="a state dict: .pt .pth .bin .safetensors, llama2.c's .bin, or a folder of parts")
    mapping: str = setting(help="a mapping file, or one that comes along: llama2c, meta_llama, nanogpt_llama")
    output_dir: str = setting(help="folder to write the model to")
    tokenizer: str | None = setting(
        None, "a folder, SentencePiece .model, encoder.json or llama2.c's .bin; null: the one beside the checkpoint"
    )
    model: dict[str, Any] = setting({}, "LlamaConfig's constants, before those of the file and the mapping; `rope`")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the weights in the folder")
    held_out_sources: list[Source] = setting([], "text to judge the mapping by; none: a passage of plain English")
    overwrite: bool = setting(False, "replace another import in output_dir")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")


@dataclass
class PrepareEvalRecipe:
    """`scripts/prepare_eval.py`"""

    source_dir: str = setting(help="folder of evaluation sets in their authors' forms; searched with its subfolders")
    output_dir: str = setting(help="folder to make, for `include_path`")
    tasks: list[str] = setting([], "lm-eval's names of those wanted; none: all that are found")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")


@dataclass
class EvaluateRecipe:
    """`scripts/evaluate.py`; task settings bear lm-eval's names."""

    model: list[str] = setting(help="exported folders, run directories, checkpoints or Hub ids, comma-separated")
    tasks: list[str] = setting([], "lm-eval's tasks or groups")
    include_path: str | None = setting(None, "folder of lm-eval task YAMLs of one's own")
    num_fewshot: int | None = setting(None, "examples in the prompt; null: as the task says, else 0")
    limit: float | None = setting(None, "items of a task: a number, or below 1 a share; null: all")
    batch_size: int | str = setting("auto", "sequences in a batch; auto: what memory has room for, on a GPU by trying")
    apply_chat_template: bool = setting(False, "prompts as a conversation, for chat models")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", "auto: the file's own")
    device: str | None = setting(None, "cpu, cuda, cuda:1 …; null: the GPU where there is one")
    held_out_sources: list[Source] = setting([], "text to measure bits per byte on")
    held_out_bytes: int = setting(1_000_000, "text read of each held-out source, in whole documents")
    sequence_length: int | None = setting(None, "window of the held-out loss; null: the model's context")
    output_dir: str | None = setting(None, "folder of the results; null: the model's own folder")
    use_cache: bool = setting(True, "keep results of the same model, task, data and settings")
    training_loss: float | None = setting(None, "nats a token that training ended with; null: as parity.json says")
    strict: bool = setting(False, "exit code 1 where the figures cannot be those of the model that was trained")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")

    def __post_init__(self) -> None:
        if not (self.model and (self.tasks or self.held_out_sources)):
            raise UserError("nothing to evaluate: name a `model`, and `tasks` or `held_out_sources`")
        check_positive(self, "held_out_bytes")
        for name in ("limit", "sequence_length", "training_loss"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if isinstance(self.batch_size, str) and not self.batch_size.startswith("auto"):
            raise UserError(f"batch_size must be a whole number or auto, not {self.batch_size!r}")


@dataclass
class QuickLookRecipe:
    """`scripts/smoke_generate.py`"""

    model: str = setting(help="exported folder, run directory, checkpoint or Hub id")
    prompts: str | None = setting(None, "JSONL with `prompt`, `expected` and `pattern`; null: six of our own")
    temperatures: list[float] = setting([0.0, 0.8], "each prompt is continued at each; 0 is greedy")
    max_new_tokens: int = setting(64, "tokens written at most")
    chat: Literal["auto", "true", "false"] = setting("auto", "auto: questions where the tokenizer has a chat template")
    seed: int = setting(42, "of the draws")
    output_file: str | None = setting(None, "also write everything as JSON")
    strict: bool = setting(False, "exit code 1 where anything is FAIL")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"temperatures must be one or more numbers, none below 0, not {self.temperatures}")


@dataclass
class CompareRecipe:
    """`scripts/compare.py A B C`: evaluated models side by side, the first one the base."""

    models: list[str] = setting(help="folders that hold an evaluation.json, or such files")
    output_file: str | None = setting(None, "also write the table here: .md, .html or .json")
    plot: str | None = setting(None, "also draw bars with 95 % intervals: .png or .svg")
    strict: bool = setting(False, "exit code 1 where figures cannot be those of the models that were trained")

    def __post_init__(self) -> None:
        if self.output_file and not self.output_file.endswith((".md", ".html", ".json")):
            raise UserError(f"output_file {self.output_file}: its name must end with .md, .html or .json")
        if self.plot and not self.plot.endswith((".png", ".svg")):
            raise UserError(f"plot {self.plot}: its name must end with .png or .svg")


@dataclass
class ConversationSource:
    """Where conversations come from: local files (`paths`) or a Hub dataset (`dataset`)."""

    name: str = setting(help="what the source is called in tables")
    paths: list[str] | None = setting(None, "globs: .jsonl (.gz, .zst) .json .parquet .arrow")
    dataset: str | None = setting(None, "Hub dataset")
    config: str | None = setting(None, "configuration of the Hub dataset")
    data_dir: str | None = setting(None, "folder inside the Hub dataset")
    split: str = setting("train", "split of the Hub dataset")
    revision: str | None = setting(None, "revision of the Hub dataset")
    num_examples: int | None = setting(None, "examples drawn with the seed, none twice; null: all of them")
    weight: float | None = setting(
        None, "instead of num_examples: share of the examples, relative to the other weighted sources, none drawn twice"
    )
    format: str = setting("auto", "shape of a row, by its name in docs/conversations.md; auto: by its keys")

    def __post_init__(self) -> None:
        if (self.paths is None) == (self.dataset is None):
            raise UserError(f"source {self.name!r} needs exactly one of `paths` and `dataset`")
        if self.num_examples is not None and self.weight is not None:
            raise UserError(f"source {self.name!r}: give `num_examples` or `weight`, not both")
        for name in ("num_examples", "weight"):
            if getattr(self, name) is not None:
                check_positive(self, name)


@dataclass
class PreferenceSource(ConversationSource):
    """Where preferences come from."""

    pairs: Literal["best_worst", "adjacent", "all"] = setting(
        "best_worst", "pairs made of a ranked or scored list: its ends, each with the next, or each with each"
    )
    min_margin: float = setting(0.0, "scored answers that differ by no more than this make no pair")


@dataclass(kw_only=True)
class AdapterSettings:
    """LoRA instead of full training; names are TRL's."""

    use_peft: bool = setting(False, "train low-rank adapters; final/ holds the merged model, adapter/ the adapter")
    lora_r: int = setting(16, "rank")
    lora_alpha: int = setting(32, "scale, divided by the rank")
    lora_dropout: float = setting(0.0)
    lora_target_modules: list[str] | str = setting("all-linear", "modules that get an adapter")
    use_dora: bool = setting(False, "weight-decomposed adapters")
    use_rslora: bool = setting(False, "scale by the square root of the rank")


@dataclass(kw_only=True)
class PreparationSettings:
    """How rows become tokens, in every phase after pretraining."""

    overlong: Literal["turn", "drop", "tokens"] = setting(
        "turn", "longer than max_length: cut after the last answer that fits, drop, or cut anywhere"
    )
    drop_duplicates: bool = setting(True, "drop a row whose conversation came before, in any source")
    max_bad_share: float = setting(0.05, "share of a source's rows that may be malformed before the run refuses")
    cache_dir: str | None = setting(None, "where encoded rows are kept; null: $GENESIS_HF_CACHE or ~/.cache/genesis_hf")

    def __post_init__(self) -> None:
        if not self.mixture:
            raise UserError("`mixture` is empty: name at least one source")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share must lie between 0 and 1, not {self.max_bad_share}")


@dataclass(kw_only=True)
class SampleSettings:
    """Answers written down while a chat model trains."""

    sample_prompts: str | None = setting(None, ".jsonl of prompts answered during training; null: a fixed set of ours")
    sample_steps: int = setting(0, "steps between answers to them, whose stop rate goes to metrics.jsonl; 0: none")
    sample_num_examples: int = setting(16, "prompts answered each time")
    sample_max_new_tokens: int = setting(128, "an answer that has not stopped by then is cut")


@dataclass(kw_only=True)
class SFTRecipe(PreparationSettings, AdapterSettings, SampleSettings):
    """`scripts/sft.py`; every key of trl.SFTConfig stands beside these under its own name."""

    model: str = setting(help="the base: an exported folder, a run directory, a checkpoint or a Hub id")
    mixture: list[ConversationSource] = setting(help="what to train on")
    eval_mixture: list[ConversationSource] = setting([], "held-out conversations")
    tokenizer: str | None = setting(None, "a tokenizer's folder; null: the model's own")
    chat_format: Literal["chatml", "alpaca"] = setting("chatml", "how a conversation becomes text")
    train_special_tokens: bool = setting(
        True, "false: the stop token and think marks are no labels, as in the reference run; such a model can't stop"
    )
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and the plan and touch nothing")


@dataclass(kw_only=True)
class DPORecipe(PreparationSettings, AdapterSettings, SampleSettings):
    """`scripts/dpo.py`; every key of trl.DPOConfig stands beside these under its own name."""

    model: str = setting(help="a chat model (folder, run directory or Hub id): the policy's start and its reference")
    mixture: list[PreferenceSource] = setting(help="preference pairs to train on")
    eval_mixture: list[PreferenceSource] = setting([], "held-out preference pairs")
    overlong: Literal["drop"] = setting("drop", "a pair longer than max_length is dropped")
    length_normalized: bool = setting(
        False, "log-probabilities a token instead of an answer, which takes away the reward for length"
    )
    max_displacement: float = setting(
        10.0, "nats that the mean log-probability of chosen answers may fall below the start before a warning"
    )
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and the plan and touch nothing")


@dataclass(kw_only=True)
class KTORecipe(PreparationSettings, AdapterSettings, SampleSettings):
    """`scripts/kto.py`; every key of trl.KTOConfig stands beside these under its own name."""

    model: str = setting(help="a chat model (folder, run directory or Hub id): the policy's start and its reference")
    mixture: list[PreferenceSource] = setting(help="answers labelled good or bad; pairs count as one of each")
    eval_mixture: list[PreferenceSource] = setting([], "held-out labelled answers")
    overlong: Literal["drop"] = setting("drop", "an answer longer than max_length is dropped")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and the plan and touch nothing")


@dataclass
class InspectChatRecipe:
    """`scripts/inspect_chat.py`, beside the recipe of SFT, DPO or KTO whose examples it shows."""

    row: int | None = setting(None, "the example of the mixture to show, from 0 on")
    messages: str | None = setting(
        None, "instead of row: a .json file, a list of role/content objects or an object with messages and tools"
    )
    format: Literal["text", "jsonl"] = setting("text", "text to read, or one object a token: id, text, trained")
    answer: Literal["chosen", "rejected"] = setting("chosen", "which answer of a pair jsonl shows")
    model: str | None = setting(None, "the model whose tokenizer is used; null: the recipe's")
    tokenizer: str | None = setting(None, "a tokenizer's folder; null: the recipe's, or the model's own")
    chat_format: Literal["chatml", "alpaca"] | None = setting(None, "format of a base tokenizer; null: the recipe's")
    max_length: int | None = setting(None, "tokens of an example; null: the recipe's")
    seed: int = setting(42, "which examples are drawn")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")

    def __post_init__(self) -> None:
        if (self.row is None) == (self.messages is None):
            raise UserError("give --row N or --messages FILE, one of them")
        if self.row is not None and self.row < 0:
            raise UserError(f"row must be at least 0, not {self.row}")
        if self.max_length is not None:
            check_positive(self, "max_length")


@dataclass
class SampleRecipe:
    """`scripts/sample_answers.py`; generation settings bear transformers.GenerationConfig's names."""

    model: str = setting(help="a chat model: its folder, run directory or Hub id")
    output_file: str = setting(help="the answers, .jsonl; figures go to the same name with .summary.json")
    prompts: str | None = setting(
        None, ".jsonl(.gz) or .parquet of `messages`, a `prompt` or any conversation's shape; null: a fixed set of ours"
    )
    num_examples: int | None = setting(None, "the first rows only; null: all")
    max_new_tokens: int = setting(128, "an answer that has not stopped by then is cut")
    temperature: float = setting(0.7, "0: always the likeliest token")
    top_p: float = setting(0.95, "smallest set of tokens of this probability")
    repetition_penalty: float = setting(1.0, "above 1: tokens that occurred become less likely")
    batch_size: int = setting(64, "answers written at once; changes no answer but where rounding does")
    seed: int = setting(42, "what is drawn for a prompt follows from it and the prompt's number")
    env: dict[str, str] = setting({}, "environment variables to set before anything is imported")
    dry_run: bool = setting(False, "print the resolved recipe and touch nothing")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "top_p", "repetition_penalty"):
            check_positive(self, name)
        if self.num_examples is not None:
            check_positive(self, "num_examples")
        if self.temperature < 0 or self.top_p > 1:
            raise UserError("temperature must be at least 0 and top_p at most 1")


@dataclass
class CompareAnswersRecipe:
    """`scripts/compare_answers.py BEFORE AFTER …`: how answers to the same prompts sound, the first ones the base."""

    answers: list[str] = setting(help="files of scripts/sample_answers.py")
    output_file: str | None = setting(None, "also write the table here: .md, .html or .json")
    plot_file: str | None = setting(None, "also draw the differences here: .png, .svg or .pdf")

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise UserError("nothing to compare: name at least two files of answers")
        if self.output_file and not self.output_file.endswith((".md", ".html", ".json")):
            raise UserError(f"output_file {self.output_file}: its name must end with .md, .html or .json")
        if self.plot_file and not self.plot_file.endswith((".png", ".svg", ".pdf")):
            raise UserError(f"plot_file {self.plot_file}: its name must end with .png, .svg or .pdf")


def check_repository(name: str | None) -> None:
    """Raise `UserError` unless this is the form of a Hub repository's name."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name or ""):
        raise UserError(f"hub_model_id must have the form owner/name, not {name!r}")


def check_positive(recipe: Any, name: str) -> None:
    """Raise `UserError` unless the setting is a number above 0."""
    value = getattr(recipe, name)
    if value is None or value <= 0 or not math.isfinite(value):
        raise UserError(f"{name} must be above 0, not {value}")


# ---------------------------------------------------------------------------------------------------------
# YAML and command line → dataclasses
# ---------------------------------------------------------------------------------------------------------


def parse_recipe(
    *kinds: type, argv: list[str] | None = None, defaults: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Read `--config FILE.yaml` and `--key value` pairs into one instance of each dataclass.

    Args:
        kinds: dataclasses; a key goes to the first one that has a field of that name, `env` to all.
        argv: arguments without the program's name; default `sys.argv[1:]`.
        defaults: values that stand where neither the file nor the command line names the key.

    Returns:
        one instance of each of `kinds`, in order.

    Raises:
        UserError: an unknown key, a value of the wrong type, a missing key, an unreadable file.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print_help(kinds)
        sys.exit(0)
    path, overrides = split_arguments(argv)
    values = dict(defaults or {})
    values.update(read_yaml(path) if path else {})
    for key, value in overrides:
        set_dotted(values, key, value)
    where = path or "the command line"
    known = {f.name for kind in kinds for f in fields(kind) if f.init}
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key `{key}`{nearest(key, known)}")
    instances, taken = [], set()
    for kind in kinds:
        names = {f.name for f in fields(kind) if f.init} - (taken - {"env"})
        instances.append(build(kind, {k: v for k, v in values.items() if k in names}, where))
        taken |= names
    return tuple(instances)


def split_arguments(argv: list[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """`["--config", "r.yaml", "--seed", "1"]` → `("r.yaml", [("seed", "1")])`."""
    path, overrides = None, []
    position = 0
    while position < len(argv):
        word = argv[position]
        if not word.startswith("--"):
            raise UserError(f"the command line: expected --key, found {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = argv[position + 1] if position + 1 < len(argv) else None
            if following is None or following.startswith("--"):
                value = "true"
            else:
                value, position = following, position + 1
        if key == "config":
            path = value
        else:
            overrides.append((key.replace("-", "_"), value))
        position += 1
    return path, overrides


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, else `UserError`."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a {type(values).__name__}")
    return values


def set_dotted(values: dict[str, Any], key: str, value: str) -> None:
    """Set `a.b` inside `values["a"]`, for `--model.hidden_size 128`."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            raise UserError(f"--{key}: `{parent}` is not a mapping in this recipe")
        values[parent] = dict(inner)
        values = values[parent]
    values[last] = yaml.safe_load(value) if parents else value


def nearest(key: str, known: set[str]) -> str:
    """`; did you mean …?` when a known key is close, else nothing."""
    match = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else f"; known keys: {', '.join(sorted(known)[:40])}"


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """An instance of a dataclass from plain values, each coerced to its field's type."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind) if f.init}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key `{key}`{nearest(key, known)}")
        arguments[key] = coerce(value, hints[key], f"{where}: {key}")
    for f in fields(kind):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if f.init and required and f.name not in arguments:
            raise UserError(f"{where}: `{f.name}` is missing ({f.metadata.get('help', 'required')})")
    return kind(**arguments)


def coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, or `UserError`; a string (from the command line) is read as YAML where fitting.

    YAML 1.1 reads `1e-4` as a string, so a number's text is a number here.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return coerce_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; it must be one of {', '.join(map(str, arguments))}")
        return value
    if is_dataclass(kind):
        value = from_text(value)
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping with the keys {', '.join(f.name for f in fields(kind))}")
        return build(kind, value, where)
    if kind in (list, tuple) or origin in (list, tuple):
        value = from_text(value)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {value!r}")
        item = arguments[0] if arguments else Any
        return [coerce(v, item, f"{where}[{i}]") for i, v in enumerate(value)]
    if kind is dict or origin is dict:
        value = from_text(value)
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping, not {value!r}")
        key, item = arguments or (Any, Any)
        return {coerce(k, key, where): coerce(v, item, f"{where}.{k}") for k, v in value.items()}
    if kind in (bool, int, float, str):
        return coerce_scalar(value, kind, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value
    return value


def coerce_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if types.NoneType in kinds and (value is None or str(value).lower() in ("null", "none", "")):
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    for kind in kinds:
        plain = typing.get_origin(kind) or kind
        if isinstance(plain, type) and type(value) is plain:
            return coerce(value, kind, where)
    error: UserError | None = None
    for kind in kinds:
        try:
            return coerce(value, kind, where)
        except UserError as raised:
            error = error or raised
    raise error


def coerce_scalar(value: Any, kind: type, where: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            if kind is int:
                if float(value) == int(float(value)):
                    return int(value) if isinstance(value, int) else int(float(value))
            else:
                return kind(value)
        except (ValueError, OverflowError):
            pass
    elif kind is str and isinstance(value, bool):
        return str(value).lower()
    raise UserError(f"{where} must be {names[kind]}, not {value!r}")


def from_text(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "[{":
        return yaml.safe_load(value)
    return value


def print_help(kinds: tuple[type, ...]) -> None:
    """Every key with its type's default and its line of help."""
    print(f"usage: {os.path.basename(sys.argv[0])} --config RECIPE.yaml [--key value …]\n")
    for kind in kinds:
        for f in fields(kind):
            if not f.init:
                continue
            if f.default is not dataclasses.MISSING:
                default = f"(default {f.default})"
            else:
                default = "(required)" if f.default_factory is dataclasses.MISSING else ""
            text = " ".join(str(f.metadata.get("help") or "").split())
            print(f"  --{f.name:32} {text} {default}".rstrip())


# ---------------------------------------------------------------------------------------------------------
# Writing recipes back
# ---------------------------------------------------------------------------------------------------------


def recipe_dict(recipe: Any) -> dict[str, Any]:
    """The resolved recipe as plain values, in the dataclass's order."""
    return dataclasses.asdict(recipe)


def recipe_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML text, without the values in `env` that are secrets by their names."""
    values = recipe_dict(recipe)
    if isinstance(values.get("env"), dict):
        values["env"] = {k: "(not stored)" if SECRET.search(k) else v for k, v in values["env"].items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a small file beside and rename it, so that a reader sees the old text or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk doesn't say whose file it was
        raise
