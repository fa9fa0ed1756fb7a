"""The loaders that data_speed.py compares: ours, and each other one the way its own documentation has it.

All of them get the same files of text, tokenizer, sequence length, rows a batch, seed and threads, shuffle where they
can, and hand out int64 tensors. Where a library leaves tokenising to its user (litdata, streaming), it gets ours.
"""

import functools
import glob
import importlib
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.data.documents import chunks, token_documents
from genesis_hf.data.readers import read_documents
from genesis_hf.tokenizer import load_tokenizer, plain_backend

SHUFFLE_BUFFER = 1024
"""Documents that `datasets` shuffles among when it streams, as many as a block of ours."""


@dataclass(frozen=True)
class Job:
    """What a loader is asked to do.

    Attributes:
        files: .jsonl and .parquet with a column `text`.
        tokenizer: its folder.
        folder: where the loader's prepared data lie.
        rows: in a batch.
        threads: that it may use; the process is pinned to as many cores.
    """

    files: tuple[str, ...]
    tokenizer: str
    folder: str
    sequence_length: int
    rows: int
    seed: int
    threads: int

    def source(self) -> Source:
        return Source("text", paths=[glob.escape(file) for file in self.files])


class Batch(NamedTuple):
    """`input_ids` (rows, sequence_length) int64, the tokens in it that are no padding, and what resumes after it."""

    input_ids: torch.Tensor
    tokens: int
    state: Callable[[], Any]


class Loader(ABC):
    """One of the compared.

    Attributes:
        name: in tables.
        modules: imported before any clock starts, as the tokenizer is loaded.
        prepares: it has a `prepare(job)` that writes `job.folder` from `job.files`; else it tokenises as it goes.
        any_length: what it prepares serves every sequence length.
        resumes: it has a state to go on from.
    """

    name: str
    modules: tuple[str, ...] = ()
    prepares = True
    any_length = False
    resumes = False

    def load(self, job: Job) -> None:
        """Import what it needs, and load the tokenizer.

        Raises:
            ModuleNotFoundError: not installed.
        """
        for module in self.modules:
            importlib.import_module(module)
        self.tokenizer = load_tokenizer(job.tokenizer)

    @abstractmethod
    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        """Passes over the data, shuffled; with a state, what follows after it."""


# ---------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------


class TokenizerAlone(Loader):
    """`encode_batch_fast` over texts in memory, ids not taken: what no loader that uses it can exceed."""

    name = "tokenizer alone"
    prepares = False

    def load(self, job: Job) -> None:
        super().load(job)
        self.texts = list(read_documents(job.source()))

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        """A batch is what one call returns, in the chunks that ours makes; EOS is counted, though nobody adds it."""
        backend = plain_backend(self.tokenizer)
        for chunk in chunks(self.texts):
            encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
            yield Batch(torch.empty(0), sum(map(len, encodings)) + len(chunk), dict)


class OnTheFly(Loader):
    name = "genesis_hf on the fly"
    modules = ("genesis_hf.data.stream",)
    prepares = False
    resumes = True

    def sources(self, job: Job) -> list[Source]:
        return [job.source()]

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        from genesis_hf.data.stream import PackedStream

        stream = PackedStream(
            self.sources(job),
            self.tokenizer,
            job.sequence_length,
            job.rows,
            seed=job.seed,
            when_dry="stop",
            max_epochs=epochs,
            num_workers=1,
            state=state,
        )
        for batch, following in stream:
            tokens = sum(batch.tokens_by_source.values())
            ids = batch.inputs()["input_ids"]  # and labels and positions, which the others leave to their user
            yield Batch(ids, tokens, functools.partial(dict, following))


class Prepared(OnTheFly):
    name = "genesis_hf prepared"
    modules = ("genesis_hf.data.stream", "genesis_hf.data.preparation.prepare")
    prepares = True
    any_length = True

    def sources(self, job: Job) -> list[Source]:
        return [Source("text", prepared=f"{job.folder}/text")]

    def prepare(self, job: Job) -> None:
        from genesis_hf.data.preparation.prepare import PrepareSettings, prepare

        recipe = PretrainRecipe(
            output_dir="unused", model={}, tokenizer=job.tokenizer, sources=[job.source()], max_steps=1, warmup_steps=0
        )
        prepare(recipe, PrepareSettings(job.folder, num_proc=job.threads))


# ---------------------------------------------------------------------------------------------------------
# datasets and TRL
# ---------------------------------------------------------------------------------------------------------


def tokenise_texts(examples: dict[str, list[str]], tokenizer: Any) -> dict[str, list[list[int]]]:
    """For `map`: `tokenizer(texts)` as in transformers' run_clm.py, and EOS."""
    encoded = tokenizer(examples["text"], return_attention_mask=False, verbose=False)["input_ids"]
    return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded]}


def group_texts(examples: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    """For `map`: transformers' run_clm.py, without labels; the rest of each map batch is dropped."""
    joined = list(chain(*examples["input_ids"]))
    total = len(joined) // length * length
    return {"input_ids": [joined[i : i + length] for i in range(0, total, length)]}


def load_texts(job: Job, **arguments: Any) -> Any:
    from datasets import concatenate_datasets, load_dataset

    kinds = {"json": ".jsonl", "parquet": ".parquet"}
    files = {kind: [file for file in job.files if file.endswith(suffix)] for kind, suffix in kinds.items()}
    return concatenate_datasets(
        [load_dataset(kind, data_files=names, split="train", **arguments) for kind, names in files.items() if names]
    )


class DatasetsStreaming(Loader):
    name = "datasets streaming"
    modules = ("datasets",)
    prepares = False
    resumes = True

    def load(self, job: Job) -> None:
        super().load(job)
        import datasets

        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else it sleeps 5 s after each Parquet file

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        dataset = load_texts(job, streaming=True).select_columns(["text"])
        dataset = dataset.shuffle(seed=job.seed, buffer_size=SHUFFLE_BUFFER)
        tokenise = functools.partial(tokenise_texts, tokenizer=self.tokenizer)
        dataset = dataset.map(tokenise, batched=True, remove_columns=["text"])
        dataset = dataset.map(group_texts, batched=True, fn_kwargs={"length": job.sequence_length})
        if state is not None:
            dataset.load_state_dict(state)
        for examples in dataset.iter(job.rows):  # lists: five times as fast as with_format("torch")
            rows = torch.from_numpy(np.array(examples["input_ids"]))
            yield Batch(rows, rows.numel(), dataset.state_dict)


class DatasetsMap(Loader):
    name = "datasets map + group_texts"
    modules = ("datasets",)

    def prepare(self, job: Job) -> None:
        processes = job.threads if job.threads > 1 else None
        texts = load_texts(job, cache_dir=f"{job.folder}/cache").select_columns(["text"])
        tokenised = texts.map(
            functools.partial(tokenise_texts, tokenizer=self.tokenizer),
            batched=True,
            remove_columns=["text"],
            num_proc=processes,
            cache_file_name=f"{job.folder}/tokens.arrow",
        )
        self.pack(tokenised, job, {"num_proc": processes, "cache_file_name": f"{job.folder}/rows.arrow"})

    def pack(self, tokenised: Any, job: Job, map_arguments: dict[str, Any]) -> None:
        tokenised.map(group_texts, batched=True, fn_kwargs={"length": job.sequence_length}, **map_arguments)

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        from datasets import Dataset, concatenate_datasets

        parts = [Dataset.from_file(str(path)) for path in sorted(Path(job.folder).glob("rows*.arrow"))]
        dataset = concatenate_datasets(parts).select_columns(["input_ids"]).with_format("torch")
        for epoch in range(epochs):
            for examples in dataset.shuffle(seed=job.seed + epoch).iter(job.rows):
                rows = examples["input_ids"]
                tokens = sum(map(len, rows))
                if not isinstance(rows, torch.Tensor):  # of different lengths
                    rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                yield Batch(rows, tokens, dict)


class TRLWrapped(DatasetsMap):
    name = "TRL wrapped"
    modules = ("datasets", "trl.data_utils")
    strategy = "wrapped"

    def pack(self, tokenised: Any, job: Job, map_arguments: dict[str, Any]) -> None:
        from trl.data_utils import pack_dataset

        pack_dataset(tokenised, job.sequence_length, self.strategy, map_arguments)


class TRLBestFit(TRLWrapped):
    """Cuts a long document after its first row."""

    name = "TRL bfd"
    strategy = "bfd"


class TRLBestFitSplit(TRLWrapped):
    name = "TRL bfd_split"
    strategy = "bfd_split"


# ---------------------------------------------------------------------------------------------------------
# litdata and streaming
# ---------------------------------------------------------------------------------------------------------


def token_arrays(job: Job, files: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Each document's ids with EOS, uint16 or uint32, tokenised by ours."""
    tokenizer = load_tokenizer(job.tokenizer)
    dtype = token_dtype(len(tokenizer))
    texts = read_documents(Source("text", paths=[glob.escape(file) for file in files]))
    while some := list(islice(texts, 256)):
        for ids in token_documents(tokenizer, some):
            yield ids.astype(dtype)


def token_dtype(vocabulary: int) -> type:
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def file_tokens(file: str, job: Job) -> Iterator[np.ndarray]:
    """What litdata's worker processes run for each file."""
    yield from token_arrays(job, (file,))


class LitData(Loader):
    name = "litdata"
    modules = ("litdata",)
    any_length = True
    resumes = True

    def prepare(self, job: Job) -> None:
        from litdata import TokensLoader, optimize

        optimize(
            functools.partial(file_tokens, job=job),
            inputs=list(job.files),
            output_dir=job.folder,
            chunk_bytes="64MB",
            num_workers=job.threads,
            item_loader=TokensLoader(),
            verbose=False,
        )

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

        dataset = StreamingDataset(
            job.folder, item_loader=TokensLoader(job.sequence_length), shuffle=True, drop_last=False, seed=job.seed
        )
        loader = StreamingDataLoader(dataset, batch_size=job.rows)
        if state is not None:
            loader.load_state_dict(state)
        for rows in chain.from_iterable(repeat(loader, epochs)):
            yield Batch(rows.long(), rows.numel(), loader.state_dict)


class MosaicStreaming(Loader):
    name = "mosaicml-streaming"
    modules = ("streaming",)
    resumes = True

    def load(self, job: Job) -> None:
        # The only part that needs torchvision, which has to match torch's build.
        sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
        super().load(job)
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()

    def prepare(self, job: Job) -> None:
        from streaming import MDSWriter

        length = job.sequence_length
        dtype = np.dtype(token_dtype(len(self.tokenizer)))
        rest = np.empty(0, dtype)
        with MDSWriter(out=job.folder, columns={"tokens": f"ndarray:{dtype}:{length}"}) as writer:
            for ids in token_arrays(job, job.files):
                rest = np.concatenate([rest, ids])
                full = len(rest) // length * length
                for row in rest[:full].reshape(-1, length):
                    writer.write({"tokens": row})
                rest = rest[full:]

    def batches(self, job: Job, state: Any = None, epochs: int = 1) -> Iterator[Batch]:
        from streaming import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(local=job.folder, shuffle=True, shuffle_seed=job.seed, batch_size=job.rows)
        loader = StreamingDataLoader(dataset, batch_size=job.rows)
        if state is not None:
            loader.load_state_dict(state)
        for examples in chain.from_iterable(repeat(loader, epochs)):
            yield Batch(examples["tokens"].long(), examples["tokens"].numel(), loader.state_dict)


LOADERS: tuple[Loader, ...] = (
    TokenizerAlone(),
    OnTheFly(),
    DatasetsStreaming(),
    Prepared(),
    DatasetsMap(),
    TRLWrapped(),
    TRLBestFit(),
    TRLBestFitSplit(),
    LitData(),
    MosaicStreaming(),
)
