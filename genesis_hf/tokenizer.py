"""Tokenizers: train SentencePiece BPE, convert it to a fast tokenizer, prove the two equal, encode documents.

The finished folder is read by AutoTokenizer with no code of ours. Ids are `<unk>` 0, `<s>` 1, `</s>` 2, the 256 bytes,
then the pieces in the order of their merges. Documents are joined with `</s>` alone; `<s>` is reserved, never trained,
and so no tokenizer names a BOS.

Everything but one code point survives encoding and decoding: U+2581 (`▁`) is SentencePiece's own sign for a space, so
it encodes as a space and comes back as one, in SentencePiece and here alike.
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
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from genesis_hf.config import Source, TokenizerRecipe, build, read_yaml, recipe_yaml, write_text
from genesis_hf.data.readers import expand, read_documents
from genesis_hf.errors import UserError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
RESERVED_PIECES = 3 + 256
"""Ids before the first trained piece: the special tokens and the bytes."""

SPACE = "▁"
"""How a piece writes a space (U+2581)."""

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
            before = bar.n
            for document in sample_text(source, int(recipe.max_train_bytes * source.weight / total_weight)):
                found.extend(sentences(document))
                bar.update(len(document.encode()))
            if bar.n == before:
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


def build_tokenizer(recipe: TokenizerRecipe) -> "TokenizerProof":
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


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a folder that transformers 4.x and 5.x and llama.cpp's converter all read the same way.

    transformers 5 alone writes a class that 4.x doesn't know, and leaves out what the converter needs to tell added
    tokens and the missing prefix space. A `tokenizer.model` beside the loaded tokenizer is copied.
    """
    folder = Path(folder)
    tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("add_prefix_space", "add_bos_token", "add_eos_token"):
        config.setdefault(key, False)
    attributes = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config["added_tokens_decoder"] = {
        str(i): {name: getattr(token, name) for name in attributes}
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    original = Path(tokenizer.name_or_path or "") / "tokenizer.model"
    if original.is_file() and not (folder / "tokenizer.model").exists():
        shutil.copyfile(original, folder / "tokenizer.model")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder or a Hub id; never runs code that comes with it.

    Raises:
        UserError: no such folder, nothing or no tokenizer in it, or one without a fast form.
    """
    path = os.path.expanduser(path)
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not ("/" in path and Path(path).parent.exists())
    if not os.path.isdir(path) and not hub_id:
        raise UserError(f"tokenizer {path}: no such folder; scripts/train_tokenizer.py makes one")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the loaders raise OSError, ValueError, KeyError, plain Exception …
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer {path}: not a tokenizer that transformers reads ({reason})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer {path}: {type(tokenizer).__name__} is not a fast tokenizer (no tokenizer.json)")
    return tokenizer


# ---------------------------------------------------------------------------------------------------------
# Use
# ---------------------------------------------------------------------------------------------------------


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of untrusted texts: the literal text of a special token stays text, nothing is added, cut or padded.

    The one path from text to ids, as fast as `encode_batch_fast`. Added tokens that are not special are recognised.
    """
    return [encoding.ids for encoding in plain_backend(tokenizer).encode_batch_fast(texts, add_special_tokens=False)]


_plain_backends: "weakref.WeakKeyDictionary[PreTrainedTokenizerFast, tuple[int, Tokenizer]]"
_plain_backends = weakref.WeakKeyDictionary()


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the backend that reads special tokens as text, made again when tokens were added.

    A copy, because the caller's backend is shared: another thread may be encoding a prompt with it, and an earlier
    call with `truncation=True` leaves its truncation set.
    """
    size, backend = _plain_backends.get(tokenizer, (0, None))
    if size != len(tokenizer):
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        _plain_backends[tokenizer] = (len(tokenizer), backend)
    return backend


def fertility(
    tokenizer: PreTrainedTokenizerFast, texts_by_source: dict[str, Iterable[str]]
) -> dict[str, dict[str, float]]:
    """How well the tokenizer fits each source.

    Returns:
        per source: `documents`, `bytes` (UTF-8), `tokens`, `bytes_per_token`, and `byte_fallback_share`, the share of
        tokens that are single bytes of characters without a piece.
    """
    vocabulary = tokenizer.get_vocab()
    fallback = {vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)}
    figures = {}
    for name, texts in texts_by_source.items():
        texts = list(texts)
        encoded = encode_documents(tokenizer, texts)
        size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
        figures[name] = {
            "documents": len(texts),
            "bytes": size,
            "tokens": tokens,
            "bytes_per_token": size / tokens if tokens else 0.0,
            "byte_fallback_share": sum(i in fallback for ids in encoded for i in ids) / tokens if tokens else 0.0,
        }
    return figures


def fertility_table(figures: dict[str, dict[str, float]]) -> str:
    """`fertility`'s figures as lines for a terminal."""
    lines = [f"{'source':24} {'bytes':>12} {'tokens':>12} {'bytes/token':>12} {'byte fallback':>14}"]
    for name, row in figures.items():
        lines.append(
            f"{name:24} {row['bytes']:12,} {row['tokens']:12,} {row['bytes_per_token']:12.3f}"
            f" {row['byte_fallback_share']:13.3%}"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------------------


@dataclass
class TokenizerProof:
    """What `prove_equal` found.

    Attributes:
        texts, tokens: how many were compared.
        sentencepiece: whether there was a `tokenizer.model` to compare ids with.
        mismatches: a line for each text that encodes otherwise or doesn't come back.
    """

    texts: int = 0
    tokens: int = 0
    sentencepiece: bool = False
    mismatches: list[str] = field(default_factory=list)


def prove_equal(folder: str | Path, texts: Iterable[str] = ()) -> TokenizerProof:
    """Compare a folder's fast tokenizer with its `tokenizer.model`, on `NASTY_CORPUS` and `texts`.

    The ids must be SentencePiece's, and decoding must give the text back. Without a `tokenizer.model` (GPT-2) only
    the second is checked.
    """
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    model = folder / "tokenizer.model"
    processor = SentencePieceProcessor(model_file=str(model)) if model.is_file() else None
    proof = TokenizerProof(sentencepiece=processor is not None)
    for text in itertools.chain(NASTY_CORPUS, texts):
        ids = encode_documents(tokenizer, [text])[0]
        expected_ids = processor.encode(text) if processor else ids
        expected_text = text.replace(SPACE, " ") if processor else text
        proof.texts += 1
        proof.tokens += len(ids)
        if ids != expected_ids:
            proof.mismatches.append(f"{text[:80]!r}: ids {ids[:40]}, SentencePiece's are {expected_ids[:40]}")
        elif (decoded := tokenizer.decode(ids)) != expected_text:
            proof.mismatches.append(f"{text[:80]!r}: decodes to {decoded[:80]!r}")
    return proof


NASTY_CORPUS: list[str] = [
    *map(chr, range(256)),
    # Characters from end to end of Unicode, surrogates apart: every byte that UTF-8 can hold.
    *("".join(map(chr, r)) for r in (range(0x100, 0x800, 61), range(0x800, 0xD800, 241), range(0xE000, 0x110000, 241))),
    "",
    "  ",
    " " * 17,
    " " * 1000,
    " leading",
    "trailing ",
    "  both  ends  ",
    "runs of  two   three    four     spaces",
    "\tindented\t\ttwice \t mixed",
    "\n\n\n",
    "line\nline\n\nparagraph\n",
    "carriage\r\nreturn\r\n\r\nand alone\rend",
    "\x0bvertical\x0cform\x1bescape\x7fdelete\x85next\xa0no-break",
    "nul\x00inside\x00\x00",
    "space\u2028line\u2029paragraph\u3000ideographic\u2003em\u202fnarrow",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffmark",
    "\ufeffbyte order mark first",
    "soft\u00adhyphen and \u202eoverride\u202c direction",
    "▁", "a▁b", "▁▁ ▁", "▅ U+2585 ⁇ U+2047 ▂▃▄▅▆▇█",
    "😀😃🤣 ❤️ ☕️",
    "👩‍👩‍👧‍👦 👨🏿‍🚀 🏳️‍🌈 👍🏽👍🏻 🇩🇪🇯🇵 1️⃣",
    "你好，世界。这是一个没有空格的句子。",
    "吾輩は猫である。名前はまだ無い。ﾊﾝｶｸ カタカナ ーー",
    "안녕하세요 세계 \u1112\u1161\u11ab",
    "مرحبا بالعالم، كَيْفَ حَالُكَ؟ ١٢٣",
    "שָׁלוֹם עוֹלָם — עברית",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "नमस्ते दुनिया क्षत्रिय বাংলা தமிழ்",
    "Привет, мир! Ёлка",
    "Việt Nam, Ελλάδα, naïve café, Straße, ﬁne, İstanbul",
    "e\u0301 vs é, A\u030a vs Å vs Å, o\u0308\u0323\u0302",
    "Z̸̡̛͎̪͝a̷͚͒l̴̢̫̈́g̶̙̐o̵͉͝",
    "𝕳𝖊𝖑𝖑𝖔 𝒲ℴ𝓇𝓁𝒹 ｆｕｌｌｗｉｄｔｈ",
    "\U0010ffff\ufffd\ufffe\uffff\ue000",
    "0 1 12 123 1234567890 3.14159 -1e-9 0xFF 1,000,000 ½ ² ٣ Ⅷ",
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|endoftext|>",
    "<s> a</s>b <unk><unk></s></s> <|im_start|>user\nhi<|im_end|> <think>x</think> <0x0A> <0x00>",
    "def f(x):\n    if x > 0:\n\t\treturn {'a': [x**2, \"b\\n\"]}  # comment\n\n\nclass A: pass\n",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", a->b && !c || ~d ^ e); }",
    "SELECT * FROM t WHERE a <> 'it''s'; -- ok\n\n{\"k\": null}",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "-" * 200, "=" * 33 + "\n" + "~" * 7, "ab" * 500 + "a", "aaa" * 111, "." * 3 + "…",
    "x" * 5000,
    "Donaudampfschifffahrtsgesellschaft" * 40,
    "word " * 300,
]  # fmt: skip
"""Texts that tokenizers trip over. Written for this; no two say the same."""
