"""Train SentencePiece BPE and convert it to a fast tokenizer, or convert GPT-2's files, into a proven folder.

The finished folder is read by AutoTokenizer with no code of ours. Ids are `<unk>` 0, `<s>` 1, `</s>` 2, the 256 bytes,
then the pieces in the order of their merges. Documents are joined with `</s>` alone; `<s>` is reserved, never trained,
and so no tokenizer names a BOS.
"""

import contextlib
import glob
import gzip
import io
import itertools
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import IO

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source, TokenizerRecipe, build, read_yaml, recipe_yaml, write_text
from genesis_hf.data.readers import expand, read_documents
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import SPACE, TokenizerProof, fertility, prove_equal, save_tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
RESERVED_PIECES = 3 + 256
"""Ids before the first trained piece: the special tokens and the bytes."""

CHARACTER_COVERAGE = 0.9999
"""Share of the text's characters that become pieces of their own; the rest are bytes.

At 49,152 pieces on 60 MB (prose 75 %, mathematics 5 %, twenty languages 20 %), bytes per token of prose and of the
languages: 4.540 and 4.116 at SentencePiece's 0.9995, 4.534 and 4.215 at 0.9999, 4.525 and 4.214 at 1.
"""

SENTENCE_CHARACTERS = 4000
"""Most characters handed to SentencePiece's trainer at once; four bytes each still fit its 16-bit positions."""

SENTENCE = re.compile(f".{{1,{SENTENCE_CHARACTERS}}}(?<! )(?= |\\Z)|.{{1,{SENTENCE_CHARACTERS}}}", re.DOTALL)
"""A run of characters that ends before a space or with the text; failing that, any run."""

FERTILITY_BYTES = 2_000_000
"""Most text of a source that fertility is measured on, in UTF-8 bytes."""

GPT2_EOS = "<|endoftext|>"


# ---------------------------------------------------------------------------------------------------------
# Text to train on
# ---------------------------------------------------------------------------------------------------------


def sample_text(source: Source, max_bytes: int) -> Iterator[str]:
    """Documents of a source until `max_bytes` of UTF-8, the last one cut; the same ones each time.

    Local files give even shares, so that the first file of many isn't all there is. The smallest come first: what
    they lack passes on to the larger ones. A Hub dataset is read from its beginning.
    """
    parts = [source]
    if source.paths is not None:
        files = sorted(expand(source), key=lambda path: (os.path.getsize(path), path))
        parts = [replace(source, paths=[glob.escape(path)]) for path in files]
    for number, part in enumerate(parts):
        share = max_bytes // (len(parts) - number)
        for document in read_documents(part):
            encoded = document.encode()
            if len(encoded) >= share:
                max_bytes -= share
                yield encoded[:share].decode(errors="ignore")
                break
            share -= len(encoded)
            max_bytes -= len(encoded)
            yield document


def sentences(document: str) -> Iterator[str]:
    """Cut a document into pieces that SentencePiece's trainer takes; joined, they are the document.

    A cut before a space costs nothing, since no piece of the vocabulary crosses from a word to the space after it.
    Only a word of more than `SENTENCE_CHARACTERS` is cut inside.
    """
    return (match.group() for match in SENTENCE.finditer(document))


def trainable(sentence: str) -> str:
    """A sentence that the trainer takes whole.

    It drops every sentence that holds U+2585, its sign for the unknown; that character alone goes, and will encode
    as bytes. It strips newlines off the end of a sentence; a space after them keeps them, and being alone it adds no
    pair to count.
    """
    sentence = sentence.replace("\u2585", "")
    return sentence + " " if sentence.endswith(("\n", "\r")) else sentence


def read_training_text(recipe: TokenizerRecipe) -> list[str]:
    """Sentences of all sources, `max_train_bytes` divided by their weights.

    Raises:
        UserError: a source that can't be read or holds no text.
    """
    total_weight = sum(source.weight for source in recipe.sources)
    found: list[str] = []
    with tqdm(total=recipe.max_train_bytes, unit="B", unit_scale=True, desc="reading text") as bar:
        for source in recipe.sources:
            before = len(found)
            for document in sample_text(source, int(recipe.max_train_bytes * source.weight / total_weight)):
                found.extend(sentences(document))
                bar.update(len(document.encode()))
            if len(found) == before:
                raise UserError(f"source {source.name!r} holds no text to train a tokenizer on")
    return found


# ---------------------------------------------------------------------------------------------------------
# SentencePiece
# ---------------------------------------------------------------------------------------------------------


def train_sentencepiece(text: list[str], vocab_size: int) -> bytes:
    """Train lossless BPE on sentences; the same text gives the same bytes.

    Returns:
        the serialised model, as in a `tokenizer.model`.

    Raises:
        UserError: `vocab_size` is too big for the text, or too small for its characters.
    """
    model = io.BytesIO()
    try:
        with merge_progress(vocab_size - RESERVED_PIECES):
            SentencePieceTrainer.Train(
                sentence_iterator=map(trainable, text),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=character_coverage(text, vocab_size),
                max_sentence_length=4 * SENTENCE_CHARACTERS + 1,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                pad_id=-1,
            )
    except RuntimeError as error:
        if largest := re.search(r"value <= (\d+)", str(error)):
            mend = f"more than this text can fill: set {largest[1]} or less, or give more text"
        elif least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            mend = f"less than the text has different characters: set more than {least[1]}"
        else:
            raise
        raise UserError(f"vocab_size {vocab_size} is {mend}") from None
    return model.getvalue()


def character_coverage(text: list[str], vocab_size: int) -> float:
    """`CHARACTER_COVERAGE`, or less where the characters would take more than half of the pieces from the merges.

    SentencePiece accepts nothing below 0.98.
    """
    counts: Counter[str] = Counter()
    for sentence in text:
        counts.update(sentence)
    kept = sum(count for _, count in counts.most_common((vocab_size - RESERVED_PIECES) // 2))
    return min(CHARACTER_COVERAGE, max(0.98, kept / counts.total()))


@contextlib.contextmanager
def merge_progress(pieces: int) -> Iterator[None]:
    """Show a progress bar of `pieces` in place of the hundreds of lines that SentencePiece's C++ writes to stderr."""
    read_end, write_end = os.pipe()
    stderr = os.dup(2)
    with os.fdopen(stderr, "w") as screen:
        follower = threading.Thread(target=follow_merges, args=(read_end, pieces, screen))
        follower.start()
        os.dup2(write_end, 2)
        os.close(write_end)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            follower.join()


def follow_merges(log: int, pieces: int, screen: IO[str]) -> None:
    with os.fdopen(log, errors="replace") as lines, tqdm(total=pieces, unit="piece", file=screen) as bar:
        bar.set_description("training BPE")
        characters = 0
        for line in lines:
            if found := re.search(r"Alphabet size=(\d+)", line):
                characters = int(found[1])
            elif found := re.search(r"(?:merges|freq=\d+ size)=(\d+)", line):
                bar.update(characters + int(found[1]) - bar.n)
        bar.update(pieces - bar.n)


def convert_sentencepiece(model: bytes, model_max_length: int) -> PreTrainedTokenizerFast:
    """The fast tokenizer with the same ids as a SentencePiece BPE model trained here."""
    processor = SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=final_merges(pieces[RESERVED_PIECES:]),
        unk_token=UNK,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    # No piece crosses from a word to a space, so the ids stay and the word cache is hit.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS)])
    return wrap(backend, model_max_length, eos_token=EOS, pad_token=EOS, unk_token=UNK)


def final_merges(pieces: list[str]) -> list[tuple[str, str]]:
    """The merge that completes each piece, best first.

    SentencePiece joins any two neighbours whose concatenation is a piece, the best piece first, the leftmost where
    it occurs twice. Up to its last join a piece is built as if it stood alone: a join across its border would have
    undone it. So one merge a piece is exact, and half the size of the usual conversion, which lists every way to cut
    the piece and puts an order between ways that SentencePiece takes from left to right.
    """
    rank = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        parts = list(piece)
        while len(parts) > 2:
            joins = [(rank[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
            if not joins:
                break
            _, i = min(joins)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


# ---------------------------------------------------------------------------------------------------------
# GPT-2
# ---------------------------------------------------------------------------------------------------------


def convert_gpt2(vocab_file: str, merges_file: str, model_max_length: int) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE from its two files; `<|endoftext|>` ends documents and pads.

    Args:
        vocab_file: vocab.json or encoder.json, plain or .gz.
        merges_file: merges.txt or vocab.bpe, plain or .gz.

    Raises:
        UserError: a file that is missing, of another form, or doesn't fit the other.
    """
    try:
        vocab = json.loads(read_gzip_or_plain(vocab_file))
    except json.JSONDecodeError as error:
        raise UserError(f"vocab_file {vocab_file}: not valid JSON ({error})") from None
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"vocab_file {vocab_file}: not a mapping of pieces to ids")
    lines = read_gzip_or_plain(merges_file).split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"merges_file {merges_file}: not lines of two pieces")
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"merges_file {merges_file} doesn't fit vocab_file {vocab_file} ({error})") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(GPT2_EOS, normalized=False, special=True)])
    return wrap(backend, model_max_length, eos_token=GPT2_EOS, pad_token=GPT2_EOS, unk_token=GPT2_EOS)


def read_gzip_or_plain(path: str) -> str:
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def wrap(backend: Tokenizer, model_max_length: int, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
        **special_tokens,
    )


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def build_tokenizer(recipe: TokenizerRecipe) -> TokenizerProof:
    """Make `recipe.output_dir`, complete or not at all: tokenizer, `tokenizer.model`, fertility.json, recipe.yaml.

    Raises:
        UserError: unreadable sources or files, a vocab_size too big for the text, an output_dir already in use.
        RuntimeError: the tokenizer fails its own proof.
    """
    if is_finished(recipe):
        raise UserError(f"output_dir {recipe.output_dir} already holds this tokenizer")
    model = None
    if recipe.kind == "gpt2":
        tokenizer = convert_gpt2(recipe.vocab_file, recipe.merges_file, recipe.model_max_length)
    else:
        model = train_sentencepiece(read_training_text(recipe), recipe.vocab_size)
        tokenizer = convert_sentencepiece(model, recipe.model_max_length)
    texts = {source.name: list(sample_text(source, FERTILITY_BYTES)) for source in recipe.sources}
    with new_folder(Path(recipe.output_dir)) as folder:
        if model is not None:
            (folder / "tokenizer.model").write_bytes(model)
        save_tokenizer(tokenizer, folder)
        proof = prove_equal(folder, itertools.chain.from_iterable(texts.values()))
        if proof.mismatches:
            raise RuntimeError(f"the tokenizer fails its proof on {len(proof.mismatches)} texts: {proof.mismatches[0]}")
        write_text(folder / "fertility.json", json.dumps(fertility(tokenizer, texts), indent=2) + "\n")
        write_text(folder / "recipe.yaml", recipe_yaml(recipe))
    return proof


def is_finished(recipe: TokenizerRecipe) -> bool:
    """Whether `output_dir` holds what this recipe makes; False where it is absent or empty.

    Raises:
        UserError: it holds something else.
    """
    folder = Path(recipe.output_dir)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"output_dir {folder} holds something else than a tokenizer made here; name another one")
    made = build(TokenizerRecipe, read_yaml(folder / "recipe.yaml"), str(folder / "recipe.yaml"))
    names = [f.name for f in fields(recipe) if f.name not in ("output_dir", "env", "dry_run")]
    differing = [name for name in names if getattr(made, name) != getattr(recipe, name)]
    if differing:
        raise UserError(
            f"output_dir {folder} holds a tokenizer of another recipe ({', '.join(differing)} differ); "
            "name another folder or delete it"
        )
    return True


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name when the block ends well and vanishes when it doesn't."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"output_dir {path}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
