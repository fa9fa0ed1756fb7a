"""Tokenizers: load and save them, encode documents, measure fertility, prove one equal to SentencePiece.

Everything but one code point survives encoding and decoding: U+2581 (`▁`) is SentencePiece's own sign for a space, so
it encodes as a space and comes back as one, in SentencePiece and here alike.
"""

import itertools
import json
import os
import re
import shutil
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from genesis_hf.config import write_text
from genesis_hf.errors import UserError

SPACE = "▁"
"""How a piece writes a space (U+2581)."""


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a folder that transformers 4.x and 5.x and llama.cpp's converter all read the same way.

    transformers 5 alone writes a class that 4.x doesn't know, and leaves out what the converter needs to tell added
    tokens and whether a space, BOS or EOS is added. A `tokenizer.model` beside the loaded tokenizer is copied.
    """
    folder = Path(folder)
    tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    ids, pieces = tokenizer("a").input_ids, tokenizer.tokenize("a")
    config["add_prefix_space"] = "".join(pieces).startswith((SPACE, "Ġ"))
    config["add_bos_token"] = ids[:1] == [tokenizer.bos_token_id]
    config["add_eos_token"] = ids[-1:] == [tokenizer.eos_token_id]
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

    The one path from text to ids, as fast as `encode_batch_fast`. Added tokens that are not special are recognised. A
    text longer than `LONG_TEXT` is encoded in parts where that gives the same ids: whole, 50 MB take 5 GiB.
    """
    backend = plain_backend(tokenizer)
    if max(map(len, texts), default=0) <= LONG_TEXT or not splits_at_spaces(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    rows = []
    for text in texts:
        ids: list[int] = []
        for part in cut_at_spaces(text):
            ids += backend.encode_batch_fast([part], add_special_tokens=False)[0].ids
        rows.append(ids)
    return rows


LONG_TEXT = 2**20
"""Characters in a part of a long text."""

BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
"""Before a single space between two letters."""


def cut_at_spaces(text: str) -> Iterable[str]:
    """A long text in parts that end between two words, each at least `LONG_TEXT` long but the last."""
    start = 0
    while (cut := BETWEEN_WORDS.search(text, start + LONG_TEXT)) is not None:
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def splits_at_spaces(backend: Tokenizer) -> bool:
    """Whether the tokenizer never joins a word's end and the space after it, by trying every place between two words.

    So it is where a pre-tokenizer splits before spaces; not where a prefix space is added to each text, or where pieces
    may hold several words.
    """
    text = "The first words, of the text; in the end (as well as of it) don't stand on the table. Und so weiter à la"
    whole = backend.encode(text, add_special_tokens=False).ids
    for cut in BETWEEN_WORDS.finditer(text):
        parts = backend.encode_batch_fast([text[: cut.start()], text[cut.start() :]], add_special_tokens=False)
        if parts[0].ids + parts[1].ids != whole:
            return False
    return True


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
