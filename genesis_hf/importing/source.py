"""The file to import: its tensors by name, and the constants written beside them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from genesis_hf.errors import UserError
from genesis_hf.importing.llama2c import read_llama2c
from genesis_hf.importing.mapping import Mapping, pattern

STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Where a training program puts the state dict inside what it saves."""

CONFIG_KEYS = ("model_args", "model_config", "config", "hparams")
"""Where it puts the constants of the model, the most certain first."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names."""


@dataclass
class Source:
    """A file's tensors as they stand in it (dtype and layout its own), and its config."""

    path: Path
    files: list[Path]
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]


def read_source(path: str | Path, mapping: Mapping) -> Source:
    """Read a file, or a folder of files (`*.safetensors`, or the parts of a model-parallel one).

    Never runs code that comes with a file: pickles are read with `weights_only`.

    Raises:
        UserError: a file that can't be read, that holds no state dict, a number that isn't finite, or weights that
            are not floating point; parts that don't fit together.
    """
    path = Path(path)
    files = files_of(path)
    read = [read_file(file) for file in files]
    config = dict(next((values for _, values in read if values), {}))
    if mapping.config_file and (beside := files[0].parent / mapping.config_file).is_file():
        try:
            config = {**json.loads(beside.read_text(encoding="utf-8")), **config}
        except (ValueError, TypeError) as error:
            raise UserError(f"{beside}: not a JSON object ({error})") from None
    for key, value in mapping.expects.items():
        if key in config and config[key] != value:
            raise UserError(f"{path}: its config says {key}: {config[key]!r}; what can be imported has {value!r}")
    tensors = join([plain_names(tensors, file) for (tensors, _), file in zip(read, files, strict=True)], path, mapping)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and any(pattern(known).match(name) for known in mapping.tensors):
            raise UserError(f"{path}: {name} is {tensor.dtype}; quantised weights can't be imported")
        if tensor.is_floating_point() and any(not torch.isfinite(rows).all() for rows in pieces(tensor)):
            raise UserError(f"{path}: {name} holds numbers that are not finite; the file is of a broken training")
    return Source(path, files, tensors, config)


def pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor bit by bit, so that looking at a mapped file takes no memory of its size."""
    return iter(tensor.reshape(-1).split(2**22)) if tensor.is_contiguous() else iter([tensor])


def files_of(path: Path) -> list[Path]:
    """The files to read: `path` itself, or those in the folder.

    Raises:
        UserError: nothing there.
    """
    if path.is_file():
        return [path]
    for glob in ("consolidated.*.pth", "*.safetensors"):
        if files := sorted(path.glob(glob)):
            return files
    raise UserError(f"checkpoint {path}: no such file, and no folder with consolidated.*.pth or *.safetensors")


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A file's state dict and config; a `.bin` that torch.save didn't write is llama2.c's."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error})") from None
    with open(path, "rb") as file:
        saved_by_torch = file.read(2) in (b"PK", b"\x80\x02")
    if path.suffix == ".bin" and not saved_by_torch:
        return read_llama2c(path)
    try:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch before 1.6 can't be mapped
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError …
        unsafe = "weights_only" in str(error).lower() or "Unsupported" in str(error)
        reason = (
            "holds objects that are not tensors, and reading those could run code; save the state dict alone"
            if unsafe and saved_by_torch
            else f"not a file that torch.save wrote ({str(error).splitlines()[0][:120] if str(error) else error!r})"
        )
        raise UserError(f"{path}: {reason}") from None
    return state_dict(saved, path), config_of(saved)


def state_dict(saved: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what torch.load gave; what isn't a tensor is left out of it."""
    candidates = [saved, *(saved.get(key) for key in STATE_KEYS)] if isinstance(saved, dict) else []
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, torch.Tensor)}
            if any(tensor.ndim == 2 for tensor in tensors.values()):
                return tensors
    raise UserError(f"{path}: no state dict in it; looked at the top and under {', '.join(STATE_KEYS)}")


def config_of(saved: Any) -> dict[str, Any]:
    return next((saved[key] for key in CONFIG_KEYS if isinstance(saved.get(key), dict)), {})


def plain_names(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Names as the model's own code gives them, without what wrappers put in.

    Raises:
        UserError: two tensors that then have one name.
    """
    named: dict[str, torch.Tensor] = {}
    wrapped = all(name.startswith("module.") for name in tensors)
    for name, tensor in tensors.items():
        plain = name.removeprefix("module.") if wrapped else name  # DDP's and DataParallel's
        for wrapper in WRAPPERS:
            plain = plain.replace(wrapper, "")
        if plain in named:
            raise UserError(f"{path}: two tensors are called {plain} when wrappers' prefixes are taken off")
        named[plain] = tensor
    return named


def join(shards: list[dict[str, torch.Tensor]], path: Path, mapping: Mapping) -> dict[str, torch.Tensor]:
    """Several files as one state dict: of different tensors, or each with its part of every tensor.

    Raises:
        UserError: parts without the same names in all.
    """
    names = {name for shard in shards for name in shard}
    if sum(map(len, shards)) == len(names):
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    for shard in shards:
        if missing := sorted(names - shard.keys()):
            raise UserError(f"{path}: one of its {len(shards)} parts has no {missing[0]}; parts hold the same names")
    parts = list(mapping.parts())
    widths = [shards[0][name].numel() for name, part in parts if part.to == ["model.norm.weight"] and name in names]
    joined = {}
    for name in shards[0]:
        axis = next((part.shard_axis for known, part in parts if pattern(known).match(name)), None)
        tensors = [shard[name] for shard in shards]
        if axis == "vocabulary":
            axis = 0 if widths and tensors[0].shape[1] == widths[0] else 1
        joined[name] = tensors[0] if axis is None else torch.cat(tensors, axis)
    return joined
