"""Tokenizers: equality with SentencePiece, losslessness, untrusted text, folders, mistakes."""

import gzip
import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import sentencepiece
from conftest import LIBRARIES, ROOT, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import genesis_hf.tokenizer
from genesis_hf import tokenizer_training
from genesis_hf.config import Source, TokenizerRecipe
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import (
    NASTY_CORPUS,
    encode_documents,
    fertility,
    fertility_table,
    load_tokenizer,
    prove_equal,
    save_tokenizer,
)
from genesis_hf.tokenizer_training import (
    build_tokenizer,
    convert_sentencepiece,
    is_finished,
    sample_text,
    sentences,
    train_sentencepiece,
)

VOCAB_SIZE = 512


def recipe(text_files: Path, output_dir: Path, **changes: object) -> TokenizerRecipe:
    sources = [
        Source("prose", weight=3, paths=[str(text_files / "prose.jsonl")]),
        Source("code", weight=1, paths=[str(text_files / "code.jsonl")]),
    ]
    settings = {"output_dir": str(output_dir), "vocab_size": VOCAB_SIZE, "max_train_bytes": 60_000, "sources": sources}
    return TokenizerRecipe(**(settings | changes))


@pytest.fixture(scope="module")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small sources with enough different words for some thousand pieces."""
    path = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["".join(rng.choices(["ri", "ver", "st", "one", "é", "wal", "k", "un", "der"], k=4)) for _ in range(900)]
    prose = [" ".join(rng.choices(words, k=40)).capitalize() + ".\n\n" for _ in range(200)]
    code = [f"def {rng.choice(words)}_{i}(x):\n    return x * {i}\n" for i in range(600)]
    for name, texts in (("prose", prose), ("code", code)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def folder(text_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "made"
    build_tokenizer(recipe(text_files, path))
    return path


@pytest.fixture(scope="module")
def fast(folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def slow(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small vocabulary in GPT-2's two forms of files, one plain and one gzipped."""
    path = tmp_path_factory.mktemp("gpt2")
    merges = ["t h", "th e", "Ġ the", "i n", "# #"]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges), "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    with gzip.open(path / "merges.txt.gz", "wt") as file:
        file.write("\n".join(["#version: 0.2", *merges, ""]))
    return path / "vocab.json", path / "merges.txt.gz"


# ---------------------------------------------------------------------------------------------------------
# Equal to SentencePiece, and lossless
# ---------------------------------------------------------------------------------------------------------


def test_vocabulary_and_special_tokens(fast: PreTrainedTokenizerFast, slow: sentencepiece.SentencePieceProcessor):
    assert len(fast) == slow.get_piece_size() == VOCAB_SIZE
    assert fast.convert_ids_to_tokens(list(range(VOCAB_SIZE))) == [slow.id_to_piece(i) for i in range(VOCAB_SIZE)]
    assert (fast.unk_token_id, fast.eos_token_id, fast.pad_token_id, fast.bos_token) == (0, 2, 2, None)
    assert fast.convert_tokens_to_ids(["<s>", "<0x00>", "<0xFF>"]) == [1, 3, 258]
    assert fast.clean_up_tokenization_spaces is False
    assert fast.model_max_length == 2048


def test_nasty_corpus_holds_what_it_promises():
    utf8 = {byte for text in NASTY_CORPUS for byte in text.encode()}
    assert utf8 == set(range(256)) - {0xC0, 0xC1} - set(range(0xF5, 0x100))  # bytes that UTF-8 never holds
    assert {chr(i) for i in range(256)} <= set(NASTY_CORPUS)
    assert len(set(NASTY_CORPUS)) == len(NASTY_CORPUS)


def test_proof_passes_on_the_nasty_corpus(folder: Path):
    proof = prove_equal(folder, ["one more text"])
    assert proof.mismatches == []
    assert proof.sentencepiece
    assert proof.texts == len(NASTY_CORPUS) + 1
    assert proof.tokens > 10_000


ALPHABETS = [
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(" \t\n\r▁"),
    st.sampled_from("the river walks_(x):=+*09"),
    st.sampled_from(["</s>", "<s>", "<unk>", "<0x41>", "return y", "    ", "é", "e\u0301", "👩‍👩‍👧", "▅", "\x00"]),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(ALPHABETS), max_size=60).map("".join))
def test_any_text_has_sentencepiece_ids_and_comes_back(fast, slow, text):
    ids = encode_documents(fast, [text])[0]
    assert ids == slow.encode(text)
    assert fast.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("alphabet", ["ab", "aab ", "=- \n"])
def test_overlapping_merges_are_taken_as_sentencepiece_takes_them(alphabet: str):
    """Periodic text has many ways to build the same piece."""
    words = ["".join(alphabet[(i >> k) % len(alphabet)] for k in range(7)) for i in range(200)]
    documents = [(word * 9)[i % 7 :] for i, word in enumerate(words)]
    model = train_sentencepiece([s for d in documents for s in sentences(d)], 350)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    probes = [(a * 3)[1:] + b[:5] + a for a, b in zip(words, reversed(words), strict=True)]
    assert encode_documents(convert_sentencepiece(model, 64), probes) == processor.encode(probes)


def test_sentencepiece_space_sign_is_a_space(fast: PreTrainedTokenizerFast):
    marked, spaced = encode_documents(fast, ["a▁b▁▁", "a b  "])
    assert marked == spaced
    assert fast.decode(marked) == "a b  "


def test_a_merge_out_of_order_fails_the_proof(folder: Path, tmp_path: Path):
    tampered = copy_folder(folder, tmp_path / "tampered")
    spec = json.loads((tampered / "tokenizer.json").read_text())
    spec["model"]["merges"].reverse()
    (tampered / "tokenizer.json").write_text(json.dumps(spec))
    assert "SentencePiece's are" in prove_equal(tampered, ["the river under the bright cloud"]).mismatches[0]


def test_a_lossy_decoder_fails_the_proof(folder: Path, tmp_path: Path):
    tampered = copy_folder(folder, tmp_path / "tampered")
    spec = json.loads((tampered / "tokenizer.json").read_text())
    spec["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    (tampered / "tokenizer.json").write_text(json.dumps(spec))
    assert "' leading': decodes to 'leading'" in prove_equal(tampered).mismatches


def test_a_failed_proof_leaves_no_folder(text_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer_training, "final_merges", lambda pieces: [])
    with pytest.raises(RuntimeError, match="fails its proof"):
        build_tokenizer(recipe(text_files, tmp_path / "made"))
    assert list(tmp_path.iterdir()) == []


def copy_folder(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "  ", " b", "\n", "x" * 3999, " " * 4001, "wörd", "語" * 2500]), max_size=12))
def test_sentences_lose_nothing_and_fit_the_trainer(parts: list[str]):
    document = "".join(parts)
    found = list(sentences(document))
    assert "".join(found) == document
    assert all(len(s) <= tokenizer_training.SENTENCE_CHARACTERS for s in found)


def test_sentences_cut_before_spaces_only():
    found = list(sentences("wörd  two\nthree " * 2000))
    assert len(found) > 5
    assert all(s.startswith(" ") and not s.endswith(" ") for s in found[1:-1])


def test_newlines_indentation_and_reserved_characters_are_trained_on():
    lines = ["if x:\n\n        y\n", "long▅word", "end\r\n"] * 50
    model = train_sentencepiece([s for line in lines for s in sentences(line)], 300)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = {processor.id_to_piece(i) for i in range(processor.get_piece_size())}
    assert {"\n", ":\n\n", "▁▁▁▁▁▁▁▁", "\r\n", "longword"} <= pieces


def test_digits_stay_single_tokens_however_frequent():
    model = train_sentencepiece(["the year 2024 was 2024 days", "and then another"] * 50, 300)
    assert len(sentencepiece.SentencePieceProcessor(model_proto=model).encode("2024")) == 4


def test_training_is_deterministic(text_files: Path, folder: Path, tmp_path: Path):
    build_tokenizer(recipe(text_files, tmp_path / "again"))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "fertility.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_vocabulary_smaller_than_the_alphabet_drops_rare_characters_or_says_so():
    rare = ["".join(map(chr, range(0x4E00, 0x4E00 + 500)))]
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(rare + ["的是"] * 20_000, 300))
    assert processor.piece_to_id("的是") > 258
    with pytest.raises(UserError, match=r"vocab_size 300 is less than .* set more than 7\d\d"):
        train_sentencepiece(rare, 300)


def test_samples_follow_bytes_and_spread_over_files(tmp_path: Path):
    for name, size in (("a.txt", 5000), ("b.txt", 100), ("c.txt", 5000)):
        (tmp_path / name).write_text(name[0] * size)
    found = "".join(sample_text(Source("s", paths=[str(tmp_path / "*.txt")]), 2100))
    assert {letter: found.count(letter) for letter in "abc"} == {"a": 1000, "b": 100, "c": 1000}


def test_weights_divide_the_training_text(text_files: Path, tmp_path: Path):
    text = tokenizer_training.read_training_text(recipe(text_files, tmp_path, max_train_bytes=20_000))
    code = sum(len(s.encode()) for s in text if s.startswith("def "))
    assert sum(len(s.encode()) for s in text) == pytest.approx(20_000, rel=0.02)
    assert code == pytest.approx(5000, rel=0.05)


def test_a_vocabulary_too_big_for_the_text_is_named(text_files: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"vocab_size 49152 is more than this text can fill: set \d+ or less"):
        build_tokenizer(recipe(text_files, tmp_path / "made", vocab_size=49152))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------
# Untrusted text
# ---------------------------------------------------------------------------------------------------------


def test_typed_special_tokens_stay_text(folder: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", special=True)]})
    typed = "a</s>b<s><unk><|im_end|>"
    before = tokenizer.backend_tokenizer.to_str()
    ids = encode_documents(tokenizer, [typed])[0]
    assert not {0, 1, 2, VOCAB_SIZE} & set(ids)
    assert tokenizer.decode(ids) == typed
    assert tokenizer.backend_tokenizer.to_str() == before
    assert VOCAB_SIZE in tokenizer(typed).input_ids
    assert tokenizer.backend_tokenizer.encode_special_tokens is False


def test_tokens_added_later_are_seen(folder: Path):
    """Special ones stay text; others, such as a tokenizer's own runs of spaces, are vocabulary."""
    tokenizer = load_tokenizer(folder)
    plain = encode_documents(tokenizer, ["x<|im_end|>", "@@@@"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.add_tokens(["@@@@"])
    assert encode_documents(tokenizer, ["x<|im_end|>", "@@@@"]) == [plain[0], [VOCAB_SIZE + 1]]


def test_truncation_left_by_an_earlier_call_does_not_cut_documents(folder: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer(["the river " * 9, "a"], truncation=True, max_length=4, padding=True)
    long, short = encode_documents(tokenizer, ["the river " * 9, "a"])
    assert len(long) > 4
    assert len(short) == 1
    assert encode_documents(tokenizer, []) == []


# ---------------------------------------------------------------------------------------------------------
# Fertility
# ---------------------------------------------------------------------------------------------------------


def test_fertility_counts_bytes_tokens_and_fallback(fast: PreTrainedTokenizerFast):
    figures = fertility(fast, {"s": ["a", "語a"], "none": []})
    assert figures["s"] == {
        "documents": 2,
        "bytes": 5,
        "tokens": 5,
        "bytes_per_token": 1.0,
        "byte_fallback_share": 0.6,
    }
    assert figures["none"]["tokens"] == 0
    assert "60.000%" in fertility_table(figures)


def test_the_folder_reports_fertility_of_its_sources(folder: Path, text_files: Path):
    figures = json.loads((folder / "fertility.json").read_text())
    source = recipe(text_files, folder).sources[0]
    assert set(figures) == {"prose", "code"}
    assert figures["prose"]["bytes_per_token"] > 2
    prose = "".join(read_documents(source))
    assert figures["prose"]["bytes"] == len(prose.encode())


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def test_autotokenizer_reads_the_folder_without_our_code(folder: Path, slow: sentencepiece.SentencePieceProcessor):
    text = "  def river_1(x):\n\treturn 語 "
    program = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "print(t(sys.argv[2]).input_ids); assert 'genesis_hf' not in sys.modules"
    )
    assert json.loads(run_script("-c", program, folder, text, warm=LIBRARIES).stdout) == slow.encode(text)


def test_config_names_what_older_readers_need(folder: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["add_prefix_space"] is config["add_bos_token"] is config["clean_up_tokenization_spaces"] is False
    assert {i: token["content"] for i, token in config["added_tokens_decoder"].items()} == {
        "0": "<unk>",
        "1": "<s>",
        "2": "</s>",
    }


@pytest.mark.parametrize("model_type", ["llama", "genesis"])
def test_a_model_config_beside_it_changes_nothing(folder: Path, tmp_path: Path, model_type: str):
    beside = copy_folder(folder, tmp_path / "model")
    (beside / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert prove_equal(beside).mismatches == []


def test_saving_again_keeps_model_file_and_added_tokens(folder: Path, tmp_path: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"][str(VOCAB_SIZE)]["content"] == "<|im_start|>"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(tmp_path)("<|im_start|>").input_ids == [VOCAB_SIZE]
    assert prove_equal(tmp_path).mismatches == []
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_a_finished_folder_is_recognised_and_another_recipe_refused(text_files: Path, folder: Path, tmp_path: Path):
    assert is_finished(recipe(text_files, folder))
    assert not is_finished(recipe(text_files, tmp_path / "absent"))
    with pytest.raises(UserError, match=r"output_dir .* another recipe \(vocab_size differ\)"):
        is_finished(recipe(text_files, folder, vocab_size=400))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        build_tokenizer(recipe(text_files, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_tokenizer_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# GPT-2
# ---------------------------------------------------------------------------------------------------------


def gpt2_recipe(files: tuple[Path, Path], output_dir: Path) -> TokenizerRecipe:
    vocab_file, merges_file = map(str, files)
    return TokenizerRecipe(str(output_dir), kind="gpt2", vocab_file=vocab_file, merges_file=merges_file)


def test_gpt2_files_become_a_lossless_folder(gpt2_files: tuple[Path, Path], tmp_path: Path):
    proof = build_tokenizer(gpt2_recipe(gpt2_files, tmp_path / "gpt2"))
    assert proof.mismatches == []
    assert not proof.sentencepiece
    tokenizer = load_tokenizer(tmp_path / "gpt2")
    assert len(tokenizer) == 262
    assert tokenizer.convert_ids_to_tokens(tokenizer("the in the##").input_ids) == ["the", "Ġ", "in", "Ġthe", "##"]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 261
    assert tokenizer.bos_token is None
    typed = encode_documents(tokenizer, ["a<|endoftext|>"])[0]
    assert 261 not in typed
    assert tokenizer.decode(typed) == "a<|endoftext|>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"{", "vocab_file .*not valid JSON"),
        ("vocab.json", b'["a"]', "not a mapping"),
        ("merges.txt.gz", b"not gzip", "cannot be read"),
        ("merges.txt.gz", gzip.compress(b"one two three", mtime=0), "not lines of two pieces"),
        ("merges.txt.gz", gzip.compress(b"q zz", mtime=0), "doesn't fit"),
        ("merges.txt.gz", None, "No such file"),
    ],
)
def test_broken_gpt2_files(gpt2_files, tmp_path: Path, name: str, content: bytes | None, message: str):
    files = {path.name: path.read_bytes() for path in gpt2_files} | {name: content}
    for file, data in files.items():
        if data is not None:
            (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError, match=message):
        build_tokenizer(gpt2_recipe((tmp_path / "vocab.json", tmp_path / "merges.txt.gz"), tmp_path / "made"))
    assert not (tmp_path / "made").exists()


# ---------------------------------------------------------------------------------------------------------
# The script
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """The script in this process, where the heavy imports are done."""
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / "train_tokenizer.py"), run_name="__main__")

    return run


def test_script_trains_once(text_files: Path, tmp_path: Path, script, capfd: pytest.CaptureFixture):
    sources = json.dumps([{"name": "prose", "paths": [str(text_files / "prose.jsonl")]}])
    arguments = ["--output_dir", tmp_path / "t", "--sources", sources, "--vocab_size", 400]
    script(*arguments, "--dry_run", "true")
    assert "vocab_size: 400" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []

    script(*arguments)
    shown = capfd.readouterr()
    assert "ids equal SentencePiece's" in shown.out
    assert "prose" in shown.out
    assert "training BPE" in shown.err
    assert "trainer_interface" not in shown.out + shown.err

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()}
    script(*arguments)
    assert "is finished" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()} == made


def test_script_ends_with_one_line_on_a_mistake(tmp_path: Path):
    source = json.dumps([{"name": "prose", "paths": [str(tmp_path / "missing.jsonl")]}])
    refused = run_script("scripts/train_tokenizer.py", "--output_dir", tmp_path / "t", "--sources", source, check=False)
    assert refused.returncode == 2
    assert "missing.jsonl" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "`sources` is empty"),
        ({"vocab_size": 256}, "vocab_size must be at least 264"),
        ({"max_train_bytes": 0}, "max_train_bytes must be above 0"),
        ({"kind": "gpt2"}, "needs `vocab_file` and `merges_file`"),
    ],
)
def test_recipes_that_cannot_work(text_files: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        recipe(text_files, tmp_path, **changes)


def test_a_source_without_text_is_named(text_files: Path, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    void = Source("void", paths=[str(tmp_path / "empty.txt")])
    with pytest.raises(UserError, match="source 'void' holds no text"):
        build_tokenizer(recipe(text_files, tmp_path / "t", sources=[void]))


def test_a_long_text_is_encoded_in_parts_with_the_same_ids(corpus, tokenizer, monkeypatch):
    text = "\n".join(json.loads(line)["text"] for line in (corpus / "prose.jsonl").read_text().splitlines())
    whole = encode_documents(tokenizer, [text, "short one"])
    calls = []
    monkeypatch.setattr(genesis_hf.tokenizer, "LONG_TEXT", 100)
    cut = genesis_hf.tokenizer.cut_at_spaces
    monkeypatch.setattr(genesis_hf.tokenizer, "cut_at_spaces", lambda text: calls.append(text) or cut(text))
    assert encode_documents(tokenizer, [text, "short one"]) == whole
    assert len(list(cut(text))) > 20
    assert calls == [text, "short one"]


def test_a_text_stays_whole_where_parts_would_get_other_ids():
    """A tokenizer with a piece of a word's last letter and the space after it."""
    letters = {" ": 0, **{chr(97 + i): i + 1 for i in range(26)}, "e ": 27}
    assert not genesis_hf.tokenizer.splits_at_spaces(Tokenizer(models.BPE(letters, [("e", " ")])))
    del letters["e "]
    assert genesis_hf.tokenizer.splits_at_spaces(Tokenizer(models.BPE(letters, [])))
