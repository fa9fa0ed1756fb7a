"""Speed and memory of data loading: ours beside the tokenizer alone and other loaders, on the same text, in one run.

python benchmarks/data_speed.py [--megabytes 10] [--threads 1] [--repetitions 1] [--output_file figures.json]
python benchmarks/data_speed.py --resume true      # the time to resume far into large data

Every measurement has a process of its own, pinned to as many cores as it has threads. See benchmarks/README.md.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import psutil
from data_loaders import LOADERS, Job, OnTheFly, Prepared, TokenizerAlone
from data_measure import in_new_process, prepare, read, resume_after
from data_text import copy_tokens, make_text, make_tokenizer, write_parquet
from tqdm import tqdm

from genesis_hf.config import check_positive, parse_recipe, setting, write_text
from genesis_hf.data.prepared import PreparedTokens
from genesis_hf.errors import UserError, report_user_errors

BATCH_TOKENS = 2**15

COLUMNS = {
    "sequence_length": ("length", 1),
    "threads": ("threads", 1),
    "rows": ("after rows", 1),
    "seconds": ("seconds", 1),
    "tokens_per_second": ("M tokens/s", 1e6),
    "of_alone": ("of alone", 1),
    "tokens_per_cpu_second": ("M tokens/CPU s", 1e6),
    "first_batch": ("first batch s", 1),
    "memory": ("MiB", 2**20),
    "kept": ("tokens kept", 1),
    "resume": ("resume s", 1),
    "process_seconds": ("with imports", 1),
    "same": ("same batch", 1),
}
"""Of the tables: heading and unit of each figure."""

Record = dict[str, Any]


@dataclass
class DataSpeedSettings:
    """`benchmarks/data_speed.py`"""

    paths: list[str] | None = setting(None, "text to measure on, as a source's paths; null: what Python's folders hold")
    megabytes: float = setting(100, "text used, at most")
    tokenizer: str | None = setting(None, "its folder; null: one is trained on the text")
    vocab_size: int = setting(8192, "pieces of a tokenizer that is trained")
    sequence_lengths: list[int] = setting([2048, 512], "tokens in a row")
    threads: list[int] | None = setting(
        None, "of tokenising and preparing (reading what is prepared has one); null: 1, and 2 where there are 2 cores"
    )
    repetitions: int = setting(3, "of reading, the loaders taking turns; figures are medians")
    loaders: list[str] | None = setting(None, "those whose names begin so; null: all")
    loaders_dir: str = setting("runs/data_speed/contenders", "where benchmarks/requirements-data.txt was installed")
    work_dir: str = setting("runs/data_speed", "folder for the text, the tokenizer and what loaders prepare")
    resume: bool = setting(False, "instead of all else: resume after `resume_rows` and inside `resume_megabytes`")
    resume_rows: int = setting(1_000_000, "rows of 512 prepared tokens read before the stop")
    resume_megabytes: int = setting(1000, "size of the Parquet file that is left in its middle")
    seed: int = setting(42)
    output_file: str | None = setting(None, "all figures as .json")

    def __post_init__(self) -> None:
        for name in ("megabytes", "vocab_size", "repetitions", "resume_rows", "resume_megabytes"):
            check_positive(self, name)
        cores = len(os.sched_getaffinity(0))
        self.threads = self.threads or list(range(1, min(2, cores) + 1))
        if not all(0 < count <= cores for count in self.threads):
            raise UserError(f"threads must lie between 1 and this machine's {cores} cores, not {self.threads}")


def main() -> None:
    (settings,) = parse_recipe(DataSpeedSettings)
    sys.path.append(os.path.abspath(settings.loaders_dir))  # last: it must not hide the project's own packages
    text = make_text(settings.paths, settings.megabytes, settings.seed, settings.work_dir)
    tokenizer = settings.tokenizer or make_tokenizer(text["files"], settings.vocab_size)
    job = Job(tuple(text["files"]), tokenizer, "", settings.sequence_lengths[0], 0, settings.seed, settings.threads[-1])
    print(f"{text['bytes'] / 1e6:.1f} MB of text in {text['documents']:,} documents; tokenizer {tokenizer}")
    results = measure_resume(job, settings) if settings.resume else measure_loaders(job, settings)
    figures = {
        "settings": dataclasses.asdict(settings),
        "text": {key: text[key] for key in ("bytes", "documents")},
        "machine": machine(),
        "results": results,
    }
    if settings.output_file:
        write_text(settings.output_file, json.dumps(figures, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------
# All loaders on the same text
# ---------------------------------------------------------------------------------------------------------


def measure_loaders(job: Job, settings: DataSpeedSettings) -> list[Record]:
    """Read on the fly, prepare, read what was prepared, resume; print the tables."""
    chosen = [x for x in LOADERS if not settings.loaders or x.name.startswith(tuple(settings.loaders))]
    on_the_fly, prepared = [x for x in chosen if not x.prepares], [x for x in chosen if x.prepares]
    first, last = settings.sequence_lengths[0], settings.threads[-1]
    turns = range(settings.repetitions)
    plan = [("on the fly", x, first, threads) for threads in settings.threads for _ in turns for x in on_the_fly]
    plan += [("prepare", x, first, threads) for threads in settings.threads for x in prepared]
    plan += [("prepare", x, n, last) for n in settings.sequence_lengths[1:] for x in prepared if not x.any_length]
    plan += [("read", x, length, 1) for length in settings.sequence_lengths for _ in turns for x in prepared]
    plan += [("resume", x, first, 1) for x in chosen if x.resumes]

    folder = Path(settings.work_dir) / "prepared"
    results: list[Record] = []
    for what, loader, length, threads in tqdm(plan, desc="measuring"):
        name = "".join(c if c.isalnum() else "-" for c in loader.name)
        asked = dataclasses.replace(
            job,
            folder=str((folder / (name if loader.any_length else f"{name}-{length}")).resolve()),
            sequence_length=length,
            rows=max(1, BATCH_TOKENS // length),
            threads=threads,
        )
        if what == "prepare":
            shutil.rmtree(asked.folder, ignore_errors=True)
            os.makedirs(asked.folder)
            figures = in_new_process(prepare, loader, asked)
        elif what == "resume":
            tokens = next((r["tokens"] for r in results if r["loader"] == loader.name and "tokens" in r), 0)
            figures = resume_after(loader, asked, max(1, tokens // length // 2))
        else:
            figures = in_new_process(read, loader, asked)
        results.append({"what": what, "loader": loader.name, "sequence_length": length, "threads": threads, **figures})
    shutil.rmtree(folder, ignore_errors=True)
    print_tables(results, settings)
    return results


def print_tables(results: list[Record], settings: DataSpeedSettings) -> None:
    """Medians, and what follows from several of them."""
    key = ("what", "loader", "sequence_length", "threads")
    groups: dict[tuple, list[Record]] = {}
    for result in results:
        groups.setdefault(tuple(result[k] for k in key), []).append(result)
    rows = []
    for group, found in groups.items():
        figures = set.intersection(*(set(r) for r in found)) - {*key, "error"}
        rows.append(dict(zip(key, group, strict=True)) | {f: statistics.median(r[f] for r in found) for f in figures})

    tokens = max((r["tokens"] for r in rows if r["what"] == "on the fly" and "tokens" in r), default=None)
    alone = {r["threads"]: r.get("tokens_per_second") for r in rows if r["loader"] == TokenizerAlone.name}
    resumed = {r["loader"]: r for r in rows if r["what"] == "resume"}
    for row in rows:
        if "seconds" in row and tokens:
            row["tokens_per_second"] = tokens / row["seconds"]
        if "tokens" in row and tokens:
            row["kept"] = row["tokens"] / tokens
        if "tokens_per_second" in row and alone.get(row["threads"]):
            row["of_alone"] = row["tokens_per_second"] / alone[row["threads"]]
        row |= {k: v for k, v in resumed.get(row["loader"], {}).items() if k in ("resume", "same")}

    speed = ("tokens_per_second", "tokens_per_cpu_second", "first_batch", "memory", "kept", "resume", "same")
    for threads in settings.threads:
        asked = [r for r in rows if r["what"] == "on the fly" and r["threads"] == threads]
        title = f"On the fly: {threads} threads, sequence length {settings.sequence_lengths[0]}"
        print_table(title, ("of_alone", *speed), asked)
    asked = [r for r in rows if r["what"] == "prepare"]
    print_table("Preparing", ("sequence_length", "threads", "seconds", "tokens_per_second", "memory"), asked)
    for length in settings.sequence_lengths:
        asked = [r for r in rows if r["what"] == "read" and r["sequence_length"] == length]
        print_table(f"Reading what was prepared: 1 core, sequence length {length}", speed, asked)
    for name, error in dict.fromkeys((r["loader"], r["error"]) for r in results if "error" in r):
        print(f"{name}: {error}")


def print_table(title: str, columns: tuple[str, ...], rows: list[Record]) -> None:
    """A line a record, `-` where a figure is missing."""
    if not rows:
        return
    print(f"\n{title}\n{'':28}" + "".join(f"{COLUMNS[column][0]:>15}" for column in columns))
    for row in rows:
        print(f"{row['loader']:28}" + "".join(f"{cell(row.get(column), COLUMNS[column][1]):>15}" for column in columns))


def cell(value: Any, unit: float) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value / unit:,.0f}" if isinstance(value, int) or unit == 2**20 else f"{value / unit:,.3f}"


# ---------------------------------------------------------------------------------------------------------
# Resume far into large data
# ---------------------------------------------------------------------------------------------------------


def measure_resume(job: Job, settings: DataSpeedSettings) -> list[Record]:
    """Resume after `resume_rows` rows of prepared tokens, and on the fly in the middle of a large Parquet file."""
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="resume-", dir=settings.work_dir) as folder:
        folder = str(Path(folder).resolve())
        small = dataclasses.replace(job, folder=f"{folder}/small")
        prepared = in_new_process(prepare, Prepared(), small)
        if "error" in prepared:
            raise UserError(f"the text could not be prepared ({prepared['error']})")
        tokens = PreparedTokens(f"{small.folder}/text").num_tokens

        large = dataclasses.replace(job, folder=f"{folder}/large", sequence_length=512, rows=BATCH_TOKENS // 512)
        copy_tokens(small, large, -(-(settings.resume_rows + 2 * large.rows) * 512 // tokens))
        print(f"reading {settings.resume_rows:,} prepared rows of 512 tokens", file=sys.stderr)
        results = [{"loader": Prepared.name, **resume_after(Prepared(), large, settings.resume_rows)}]

        parquet = f"{folder}/large.parquet"
        copies = write_parquet(job, parquet, settings.resume_megabytes * 10**6)
        large = dataclasses.replace(job, files=(parquet,), rows=max(1, BATCH_TOKENS // job.sequence_length))
        print(f"tokenising half of {os.path.getsize(parquet) / 1e6:,.0f} MB of Parquet", file=sys.stderr)
        rows = int(copies * tokens / 2 / job.sequence_length)
        results.append({"loader": OnTheFly.name, **resume_after(OnTheFly(), large, rows)})
    print_table("Resume in a new process", ("rows", "resume", "process_seconds", "same"), results)
    for result in results:
        if "error" in result:
            print(f"{result['loader']}: {result['error']}")
    return results


# ---------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    packages = ("torch", "tokenizers", "transformers", "datasets", "trl", "pyarrow", "litdata", "mosaicml-streaming")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "versions": versions,
    }


if __name__ == "__main__":
    with report_user_errors():
        main()
