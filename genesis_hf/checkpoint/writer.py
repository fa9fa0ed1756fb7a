"""torch.distributed.checkpoint's files, hashed while they are written."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from genesis_hf.checkpoint.agreement import cause

FILES = 4
"""Files of each process, written and hashed side by side: a core hashes less than a good disk takes."""
CHUNK = 1 << 25
"""Bytes after which the disk is told to begin."""
WORTH_A_THREAD = 1 << 16
"""Bytes above which hashing beside the write is faster than hashing before it."""


class HashingStream:
    """A file being written, its size and its sha256."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor) -> None:
        self.file = open(path, "wb")  # noqa: SIM115
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._pool = pool
        self._begun = 0

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        self.flush()
        return self.file.fileno()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            self._write_chunk(view[start : start + CHUNK])
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def _write_chunk(self, view: memoryview) -> None:
        hashing = None
        if len(view) >= WORTH_A_THREAD:
            hashing = self._pool.submit(self.sha256.update, view)
        else:
            self.sha256.update(view)
        try:
            self.file.write(view)
        finally:
            if hashing is not None:
                hashing.result()  # the memory is the caller's again after this
        self.size += len(view)
        if self.size - self._begun >= CHUNK and hasattr(os, "posix_fadvise"):
            # Linux begins to write these pages to the disk now, not all of them at the end.
            os.posix_fadvise(self.file.fileno(), self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size


class HashingFileSystem(FileSystem):
    """FileSystem that knows size and sha256 of what it wrote, and the first error: FileSystemWriter loses those of all
    its threads but one."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None
        self._pool = ThreadPoolExecutor(FILES, thread_name_prefix="sha256")

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        stream = None
        # The file's sha256 stands for a checksum of each record. The setting is the thread's own.
        checksums = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            stream = HashingStream(Path(path), self._pool)
            with contextlib.closing(stream):
                yield stream
        except Exception as error:
            self.error = self.error or cause(error)  # the chain would not reach another process
            if stream is None:
                raise
        else:
            self.written[Path(path).name] = {"size": stream.size, "sha256": stream.sha256.hexdigest()}
        finally:
            torch.serialization.set_crc32_options(checksums)

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)

    def raise_error(self) -> None:
        """Raise the first error of all threads, where there is one."""
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self._pool.shutdown()


class HashingWriter(dcp.FileSystemWriter):
    """FileSystemWriter that flushes and hashes its files, and notes nothing of the machine in them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, thread_count=FILES)
        self.fs = HashingFileSystem()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        try:
            written = super().write_data(plan, planner)
        finally:
            self.fs.raise_error()
        if len(written.value()) != len(plan.items):
            raise RuntimeError(f"{len(written.value())} of {len(plan.items)} tensors and values were written")
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        try:
            super().finish(metadata, results)
        finally:
            self.fs.raise_error()

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()
