"""Reading torch.distributed.checkpoint's files without running what a stranger put into them.

DCP keeps its index, `.metadata`, and every value that is no tensor as pickles, and by itself loads them with nothing
held back. Here a pickle may name the few classes that DCP writes, and nothing else.
"""

import io
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

METADATA = ".metadata"
CLASSES = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata._MEM_FORMAT_ENCODING,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        filesystem._StorageInfo,
        torch.Size,
    )
} | {
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # Where the checkpoint was written; torch's own writer notes it.
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib", "WindowsPath"): pathlib.PureWindowsPath,
}


class MetadataUnpickler(pickle.Unpickler):
    """Knows DCP's classes and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        found = CLASSES.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return found


def read_metadata(state: Path) -> metadata.Metadata:
    """DCP's index of a checkpoint's `state` folder.

    Raises:
        ValueError: it isn't one, asks for a class that DCP doesn't write, or points outside of the folder's files.
    """
    try:
        found = MetadataUnpickler(io.BytesIO((state / METADATA).read_bytes())).load()
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{state / METADATA} cannot be read ({error})") from None
    if not isinstance(found, metadata.Metadata):
        raise ValueError(f"{state / METADATA} is no index of a checkpoint")
    sizes = {path.name: path.stat().st_size for path in state.iterdir()}
    for index, place in found.storage_data.items():
        if not 0 <= place.offset <= place.offset + place.length <= sizes.get(place.relative_path, -1):
            raise ValueError(f"{state / METADATA}: {index.fqn} lies outside of the folder's files")
    return found


class SafeReader(dcp.FileSystemReader):
    """FileSystemReader whose metadata is `index`, or else comes from `read_metadata`."""

    def __init__(self, folder: Path, index: metadata.Metadata | None = None) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        found = self.index or read_metadata(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class SafeLoadPlanner(DefaultLoadPlanner):
    """DefaultLoadPlanner that unpickles plain values only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))


def load_state(
    state: dict[str, Any], folder: Path, alone: bool = False, index: metadata.Metadata | None = None
) -> None:
    """Fill the tensors and values of a nested state from a checkpoint's `state` folder, in place.

    Args:
        alone: this process without the others; else all of them call it.
        index: what `read_metadata` gave for this folder, where it is read from many times.

    Raises:
        ValueError: the folder is not as `verify_checkpoint` would have it.
    """
    try:
        dcp.load(state, storage_reader=SafeReader(folder, index), planner=SafeLoadPlanner(), no_dist=alone)
    except dcp.api.CheckpointException as error:  # a BaseException
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        raise ValueError(f"{folder} cannot be read ({cause})") from error
