"""Tokenizers of other programs as fast ones, each with a direct encoder to compare with.

Read are: a folder that transformers reads, a SentencePiece BPE `.model`, GPT-2's encoder.json and vocab.bpe, and
llama2.c's `tok….bin`. U+2581 (`▁`) is a space to all but GPT-2's, as it is to SentencePiece itself.
"""

import heapq
import itertools
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import regex
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from genesis_hf.errors import UserError
from genesis_hf.tokenizer import SPACE, encode_documents, load_tokenizer
from genesis_hf.tokenizer_training import BOS, EOS, UNK, convert_gpt2, final_merges, read_gzip_or_plain, wrap

GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))

GPT2_SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""Where GPT-2 cuts a text before merging (its encoder.py)."""

LLAMA2C_SPECIAL = {b"<unk>": UNK, b"\n<s>\n": BOS, b"\n</s>\n": EOS}
"""How llama2.c's export writes the first three pieces."""

FIRST_BYTE = 3
"""Id of byte 0 in SentencePiece's and llama2.c's vocabularies."""


@dataclass
class SourceTokenizer:
    """A tokenizer to import."""

    tokenizer: PreTrainedTokenizerFast
    encode: Callable[[str], list[int]]
    """the source's own way from text to ids, no BOS or EOS added, special tokens read as text"""
    files: list[Path]
    compared_with: str
    adds_bos: bool = False
    """whether the converted one puts BOS before each text"""


def read_source_tokenizer(path: str | Path, model_max_length: int, add_bos_token: bool) -> SourceTokenizer:
    """Read a tokenizer in any of the forms named above.

    Args:
        model_max_length: the context, for the tokenizer's config.
        add_bos_token: put BOS before each text; a folder of transformers' form stays as it is.

    Raises:
        UserError: no such file, or a form that is not read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    for pair in GPT2_FILES:
        files = [next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None) for name in pair]
        wanted = path in files or (path.is_dir() and not (path / "tokenizer_config.json").is_file())
        if wanted and files[0] and files[1]:
            fast = convert_gpt2(str(files[0]), str(files[1]), model_max_length)
            return SourceTokenizer(fast, gpt2_encoder(*files), files, "GPT-2's encoder")
    if path.is_dir():
        fast = load_tokenizer(path)
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
        return SourceTokenizer(fast, lambda text: encode_documents(fast, [text])[0], files, "the folder itself")
    if not path.is_file():
        raise UserError(f"tokenizer {path}: no such file or folder")
    if path.suffix == ".bin":
        pieces, scores = read_llama2c_tokenizer(path)
        fast = sentencepiece_like(pieces, scores, model_max_length, add_bos_token, prefix=True, trim=False)
        return SourceTokenizer(fast, llama2c_encoder(pieces, scores), [path], "llama2.c's encoder", add_bos_token)
    if path.suffix == ".model":
        return read_sentencepiece(path, model_max_length, add_bos_token)
    raise UserError(
        f"tokenizer {path}: read are a folder of transformers' form, a SentencePiece .model, GPT-2's encoder.json "
        "with vocab.bpe beside it, and llama2.c's .bin"
    )


def find_tokenizer(checkpoint: Path) -> Path:
    """The tokenizer beside a checkpoint, where nobody named one.

    Raises:
        UserError: none, or several.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (folder / "tokenizer_config.json").is_file():
        return folder
    found = [
        file for glob in ("tokenizer.model", "tok*.bin", "encoder.json*", "tok*.model") for file in folder.glob(glob)
    ]
    found = sorted({file for file in found if file != checkpoint})
    if len(found) == 1:
        return found[0]
    names = f"there are {', '.join(file.name for file in found)}" if found else "none"
    raise UserError(f"tokenizer: {names} beside {checkpoint.name}; name the model's own with --tokenizer")


# ---------------------------------------------------------------------------------------------------------
# SentencePiece and llama2.c
# ---------------------------------------------------------------------------------------------------------


def sentencepiece_like(
    pieces: Sequence[str], scores: Sequence[float], model_max_length: int, add_bos_token: bool, prefix: bool, trim: bool
) -> PreTrainedTokenizerFast:
    """The fast tokenizer that merges what gives the piece of the best score, with bytes for unknown characters.

    Args:
        pieces: by id, `▁` for a space; `<unk>`, `<s>`, `</s>`, the 256 bytes, then the others.
        prefix: a space is put before each text that isn't empty.
        trim: spaces at both ends are left out and runs of them are one.
    """
    known = [(score, piece) for score, piece in zip(scores, pieces, strict=True)][FIRST_BYTE + 256 :]
    best_first = [piece for _, piece in sorted(known, key=lambda pair: -pair[0])]
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=final_merges(best_first),
        unk_token=UNK,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(bpe)
    steps = [normalizers.Replace(" ", SPACE)]
    if trim:
        steps = [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" +"), " "), *steps]
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence(steps)
    if not any(SPACE in piece.lstrip(SPACE) for piece in best_first):  # no piece holds the end of a word and a space
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(decoding)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in pieces[:FIRST_BYTE]])
    unk, bos, eos = pieces[:FIRST_BYTE]
    if add_bos_token:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
        )
    return wrap(backend, model_max_length, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=eos)


def check_vocabulary(pieces: Sequence[str], path: Path) -> None:
    """Raise `UserError` unless the vocabulary is laid out as Llama's: unknown, BOS, EOS, the 256 bytes, the others."""
    expected = [f"<0x{byte:02X}>" for byte in range(256)]
    if list(pieces[FIRST_BYTE : FIRST_BYTE + 256]) != expected:
        raise UserError(f"tokenizer {path}: ids 3 to 258 are not the 256 bytes; it can't be converted exactly")
    if len(set(pieces)) != len(pieces):
        twice = next(piece for piece in pieces if list(pieces).count(piece) > 1)
        raise UserError(f"tokenizer {path}: the piece {twice!r} stands there twice")


def read_llama2c_tokenizer(path: Path) -> tuple[list[str], list[float]]:
    """Pieces (`▁` for a space) and scores of llama2.c's form: int32 longest, then float32 score, int32 length, bytes.

    Raises:
        UserError: another form.
    """
    data, position = path.read_bytes(), 4
    raw, scores = [], []
    try:
        longest = struct.unpack_from("<i", data)[0]
        while position < len(data):
            score, length = struct.unpack_from("<fi", data, position)
            position += 8
            if not 0 <= length <= longest or position + length > len(data):
                raise ValueError
            raw.append(data[position : position + length])
            scores.append(score)
            position += length
        pieces = [LLAMA2C_SPECIAL.get(piece) or piece.decode().replace(" ", SPACE) for piece in raw]
        if tuple(pieces[:FIRST_BYTE]) != (UNK, BOS, EOS):
            raise ValueError
    except (ValueError, struct.error):
        raise UserError(f"tokenizer {path}: not of llama2.c's form (longest, then score, length, bytes)") from None
    check_vocabulary(pieces, path)
    return pieces, scores


def llama2c_encoder(pieces: Sequence[str], scores: Sequence[float]) -> Callable[[str], list[int]]:
    """llama2.c's encoder (run.c): a space first, an id a character or its bytes, then merges, the best score first."""
    ids = {piece: i for i, piece in enumerate(pieces)}

    def encode(text: str) -> list[int]:
        if not text:
            return []
        tokens: list[int] = [ids[SPACE]]
        for character in text.replace(" ", SPACE):
            if character in ids:
                tokens.append(ids[character])
            else:
                tokens += [byte + FIRST_BYTE for byte in character.encode()]
        return merge_best(tokens, pieces, ids, scores)

    return encode


def merge_best(tokens: list[int], pieces: Sequence[str], ids: dict[str, int], scores: Sequence[float]) -> list[int]:
    """Join neighbours while some make a piece: the pair of the best score, the leftmost where several have it.

    A heap of the pairs, because a look at all of them after every join takes minutes for long texts.
    """
    following = [*range(1, len(tokens)), -1]
    before = list(range(-1, len(tokens) - 1))
    heap: list[tuple[float, int, int, int]] = []

    def look_at(left: int) -> None:
        right = following[left]
        joined = ids.get(pieces[tokens[left]] + pieces[tokens[right]]) if right >= 0 else None
        if joined is not None:
            heapq.heappush(heap, (-scores[joined], left, right, joined))

    for left in range(len(tokens)):
        look_at(left)
    while heap:
        _, left, right, joined = heapq.heappop(heap)
        if following[left] != right or tokens[left] < 0:
            continue  # a join since then took one of the two
        if pieces[tokens[left]] + pieces[tokens[right]] != pieces[joined]:
            continue  # or made one of them longer
        tokens[left], tokens[right] = joined, -1
        following[left] = following[right]
        if following[left] >= 0:
            before[following[left]] = left
        look_at(left)
        if before[left] >= 0:
            look_at(before[left])
    return [token for token in tokens if token >= 0]


def read_sentencepiece(path: Path, model_max_length: int, add_bos_token: bool) -> SourceTokenizer:
    """A SentencePiece BPE model with byte fallback and no normalisation but that of spaces.

    Raises:
        UserError: another kind of model.
    """
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise UserError(
            f"tokenizer {path}: not a SentencePiece model; for another form (tiktoken's, say) give a folder that "
            "transformers reads"
        ) from None
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(processor.serialized_model_proto())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    for fault, found in (
        ("it is not of type BPE", trainer.model_type != trainer.BPE),
        ("it normalises text (" + normalizer.name + ")", bool(normalizer.precompiled_charsmap)),
        ("it has no byte fallback", not trainer.byte_fallback),
        ("spaces stand at the ends of words", trainer.treat_whitespace_as_suffix),
        ("it holds user-defined symbols", any(piece.type == piece.USER_DEFINED for piece in model.pieces)),
        (
            "its first ids are not unknown, BOS, EOS",
            [processor.unk_id(), processor.bos_id(), processor.eos_id()] != [0, 1, 2],
        ),
    ):
        if found:
            raise UserError(
                f"tokenizer {path}: {fault}, which can't be converted exactly; give a folder that transformers reads"
            )
    pieces = [piece.piece for piece in model.pieces]
    check_vocabulary(pieces, path)
    fast = sentencepiece_like(
        pieces,
        [piece.score for piece in model.pieces],
        model_max_length,
        add_bos_token,
        prefix=normalizer.add_dummy_prefix,
        trim=normalizer.remove_extra_whitespaces,
    )
    return SourceTokenizer(fast, processor.encode, [path], "SentencePiece", add_bos_token)


# ---------------------------------------------------------------------------------------------------------
# GPT-2
# ---------------------------------------------------------------------------------------------------------


def gpt2_encoder(vocab_file: Path, merges_file: Path) -> Callable[[str], list[int]]:
    """GPT-2's encoder (its encoder.py): words by `GPT2_SPLIT`, bytes as letters, the earliest merge first."""
    ids = json.loads(read_gzip_or_plain(str(vocab_file)))
    lines = read_gzip_or_plain(str(merges_file)).split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    rank = {pair: i for i, pair in enumerate(merges)}
    # Printable bytes stand for themselves, the others for the letters from U+0100 on.
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))

    @lru_cache(maxsize=2**16)
    def word_ids(word: str) -> tuple[int, ...]:
        parts = [letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            merged, position = [], 0
            while position < len(parts):
                joined = tuple(parts[position : position + 2]) == best
                merged.append("".join(best) if joined else parts[position])
                position += 2 if joined else 1
            parts = merged
        return tuple(ids[part] for part in parts)

    return lambda text: [i for word in GPT2_SPLIT.findall(text) for i in word_ids(word)]
