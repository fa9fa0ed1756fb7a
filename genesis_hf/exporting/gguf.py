"""A Llama folder as GGUF, through llama.cpp's own converter.

The converter is no package: it comes with llama.cpp's source, which llama-cpp-python's source archive holds.
`python -m genesis_hf.exporting.gguf` fetches it, once, in the version of the llama-cpp-python that is installed.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from genesis_hf.errors import UserError
from genesis_hf.files import cache_folder

TYPES = ("f32", "f16", "q8_0")
CONVERTER = "convert_hf_to_gguf.py"


def converter_folder() -> Path:
    """Where `fetch_converter` puts llama.cpp's converter for the installed llama-cpp-python."""
    return cache_folder() / f"llama-cpp-python-{version('llama-cpp-python')}"


def find_converter(llama_cpp: str | None) -> Path:
    """llama.cpp's converter, in a folder of llama.cpp or in the cache.

    Raises:
        UserError: it isn't there, or nothing that could read back what it writes.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError("formats: gguf needs llama-cpp-python; pip install 'genesis-hf[gguf]' (it is built: minutes)")
    folder = Path(llama_cpp) if llama_cpp else converter_folder()
    if (folder / CONVERTER).is_file():
        return folder / CONVERTER
    if llama_cpp:
        raise UserError(f"llama_cpp {llama_cpp}: no {CONVERTER} in it; name the folder of llama.cpp's source")
    raise UserError(
        f"formats: gguf needs llama.cpp's {CONVERTER}; fetch it with python -m genesis_hf.exporting.gguf, "
        "or name a folder of llama.cpp's source with --llama_cpp"
    )


def fetch_converter() -> Path:
    """Download the source archive of the installed llama-cpp-python and keep the converter of it.

    Raises:
        UserError: pip couldn't.
    """
    target, wanted = converter_folder(), f"llama-cpp-python=={version('llama-cpp-python')}"
    if (target / CONVERTER).is_file():
        return target / CONVERTER
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        done = subprocess.run([*command, "--dest", temporary, wanted], capture_output=True, text=True)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise UserError(f"pip could not download {wanted}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(temporary, filter="data")
        (source,) = Path(temporary).glob("*/vendor/llama.cpp")
        kept = Path(temporary, "kept")
        for name in ("conversion", "gguf-py"):
            shutil.copytree(source / name, kept / name)
        for name in (CONVERTER, "LICENSE"):
            shutil.copyfile(source / name, kept / name)
        kept.rename(target)
    return target / CONVERTER


def write_gguf(folder: Path, converter: Path) -> dict[str, Path]:
    """Write `gguf/model-TYPE.gguf` of each type into a Llama folder.

    Raises:
        UserError: the converter doesn't take the model.
    """
    (folder / "gguf").mkdir(exist_ok=True)
    files = {kind: folder / "gguf" / f"model-{kind}.gguf" for kind in TYPES}
    made = write_sentencepiece(folder)
    try:
        for kind, path in files.items():
            convert(folder, converter, kind, path)
    finally:
        if made:
            made.unlink()
    return files


def convert(folder: Path, converter: Path, kind: str, path: Path) -> None:
    command = [sys.executable, converter, folder, "--outfile", path, "--outtype", kind]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"llama.cpp's converter does not take this model: {reason}; nothing was exported")


def write_sentencepiece(folder: Path) -> Path | None:
    """`tokenizer.model` of a SentencePiece tokenizer that is there as tokenizer.json alone; None where it isn't needed.

    llama.cpp joins the pair of pieces whose piece has the best score. Of a tokenizer.json the converter takes pieces
    without scores, so that pairs would be joined from left to right; here the score is the merge's rank, negated.
    """
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, path = values["model"], folder / "tokenizer.model"
    if path.exists() or model["type"] != "BPE" or not model.get("byte_fallback"):
        return None
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), rank)
    special = {token["content"] for token in values["added_tokens"] if token["special"]}
    made = sentencepiece_model_pb2.ModelProto()
    for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1]):
        made.pieces.add(
            piece=piece, score=-ranks.get(piece, len(ranks)), type=piece_type(piece, model["unk_token"], special)
        )
    made.trainer_spec.model_type = made.trainer_spec.BPE
    made.trainer_spec.byte_fallback = True
    path.write_bytes(made.SerializeToString())
    return path


def piece_type(piece: str, unknown: str | None, special: set[str]) -> int:
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    if piece == unknown:
        return kinds.UNKNOWN
    if piece in special:
        return kinds.CONTROL
    return kinds.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else kinds.NORMAL


if __name__ == "__main__":
    from genesis_hf.errors import report_user_errors

    with report_user_errors():
        print(fetch_converter())
