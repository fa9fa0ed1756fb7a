"""Tokenizers of other programs encode as those programs do, or are refused."""

import io
import json
import struct
from pathlib import Path

import pytest
import sentencepiece
from foreign_models import Foreign
from hypothesis import given, settings
from hypothesis import strategies as st
from reading_here import read_in_this_process
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig

from genesis_hf.config import ImportRecipe
from genesis_hf.errors import UserError
from genesis_hf.importing import importer
from genesis_hf.importing.source_tokenizers import find_tokenizer, read_source_tokenizer
from genesis_hf.tokenizer import NASTY_CORPUS, encode_documents

TEXTS = st.lists(
    st.text() | st.sampled_from(["the river", "  ", " stone", "walks ", "<s>", "\n", "▁a"]), max_size=6
).map("".join)


@pytest.fixture(scope="module")
def spaced_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with its own defaults for spaces, as llama2.c trains them."""
    model = io.BytesIO()
    texts = [json.loads(line)["text"] for line in (corpus / "prose.jsonl").read_text().splitlines()[:100]]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spaced") / "tok340.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def llama2c_tokenizer(spaced_model: Path) -> Path:
    """The same in llama2.c's form."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spaced_model))
    pieces = [processor.id_to_piece(i).replace("▁", " ") for i in range(processor.get_piece_size())]
    pieces[1:3] = ["\n<s>\n", "\n</s>\n"]
    data = struct.pack("<i", max(len(piece.encode()) for piece in pieces))
    for i, piece in enumerate(pieces):
        data += struct.pack("<fi", processor.get_score(i), len(piece.encode())) + piece.encode()
    path = spaced_model.parent / "tok340.bin"
    path.write_bytes(data)
    return path


def plain_merges(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """llama2.c's loop: look at every pair, join the best, again."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokens = [ids[b" "]] if text else []
    for character in text.replace("▁", " "):
        found = ids.get(character.encode())
        tokens += [byte + 3 for byte in character.encode()] if found is None else [found]
    while True:
        best, where = -1e10, None
        for i in range(len(tokens) - 1):
            joined = ids.get(pieces[tokens[i]] + pieces[tokens[i + 1]])
            if joined is not None and scores[joined] > best:
                best, where = scores[joined], (i, joined)
        if where is None:
            return tokens
        tokens[where[0] : where[0] + 2] = [where[1]]


def test_llama2c_tokenizer_encodes_as_its_own_loop(llama2c_tokenizer: Path) -> None:
    data, position, pieces, scores = llama2c_tokenizer.read_bytes(), 4, [], []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append(data[position + 8 : position + 8 + length])
        scores.append(score)
        position += 8 + length
    read = read_source_tokenizer(llama2c_tokenizer, 64, add_bos_token=True)

    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def same(text: str) -> None:
        expected = plain_merges(text, pieces, scores)
        assert read.encode(text) == expected
        assert encode_documents(read.tokenizer, [text])[0] == expected
        assert read.tokenizer.decode(expected) == text.replace("▁", " ")

    same()
    assert read.tokenizer("the river").input_ids == [1, *plain_merges("the river", pieces, scores)]
    assert read.tokenizer.eos_token_id == 2


@pytest.mark.parametrize("model", ["own", "spaced"])
def test_sentencepiece_models_encode_as_sentencepiece(model: str, tokenizer_folder: Path, spaced_model: Path) -> None:
    path = spaced_model if model == "spaced" else tokenizer_folder / "tokenizer.model"
    read = read_source_tokenizer(path, 64, add_bos_token=False)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert encode_documents(read.tokenizer, NASTY_CORPUS) == [processor.encode(text) for text in NASTY_CORPUS]

    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def same(text: str) -> None:
        assert encode_documents(read.tokenizer, [text])[0] == read.encode(text) == processor.encode(text)

    same()


def test_gpt2_files_encode_as_gpt2(tmp_path: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "Ġ the", "r i", "ri v", "e r", "riv er", "Ġ river", "Ġ Ġ", "1 2", "ĠĠ ĠĠ"]
    pieces = [*letters, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (tmp_path / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]))
    read = read_source_tokenizer(tmp_path / "encoder.json", 64, add_bos_token=False)
    assert read.encode("the river") == [pieces.index("the"), pieces.index("Ġriver")]
    assert encode_documents(read.tokenizer, NASTY_CORPUS) == [read.encode(text) for text in NASTY_CORPUS]


def test_a_tokenizer_that_does_not_come_out_the_same_is_refused(
    llama2c_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in_this_process(importer, monkeypatch)
    model = Foreign(vocabulary=340, epsilon=1e-5)
    model.write_llama2c(tmp_path / "model.bin", 0)
    values = {"checkpoint": str(tmp_path / "model.bin"), "mapping": "llama2c", "output_dir": str(tmp_path / "out")}
    convert_tokenizer = importer.read_source_tokenizer

    def wrong(*arguments):
        read = convert_tokenizer(*arguments)
        read.tokenizer.backend_tokenizer.normalizer = None
        return read

    with monkeypatch.context() as context:
        context.setattr(importer, "read_source_tokenizer", wrong)
        with pytest.raises(UserError, match=r"converted, it encodes .* and llama2\.c's encoder as"):
            importer.import_checkpoint(ImportRecipe(**values, tokenizer=str(llama2c_tokenizer)))
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"none beside model\.bin; name the model's own with --tokenizer"):
        importer.import_checkpoint(ImportRecipe(**values))
    (tmp_path / "tok340.bin").write_bytes(llama2c_tokenizer.read_bytes())
    importer.import_checkpoint(ImportRecipe(**values))
    folder = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(folder)("the").input_ids[:1] == [1]
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 2]
    assert json.loads((folder / "tokenizer_config.json").read_text())["add_bos_token"] is True


def test_wrong_tokenizers_end_with_a_line_that_says_so(tmp_path: Path, llama2c_tokenizer: Path) -> None:
    (tmp_path / "tok.bin").write_bytes(llama2c_tokenizer.read_bytes()[:-1])
    (tmp_path / "tok.model").write_text("IQ== 0\n")
    (tmp_path / "tok.txt").write_text("a")
    for name, message in (
        ("tok.bin", "not of llama2.c's form"),
        ("tok.model", "not a SentencePiece model"),
        ("tok.txt", "read are a folder of transformers' form"),
        ("absent", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_source_tokenizer(tmp_path / name, 64, add_bos_token=False)
    with pytest.raises(UserError, match=r"there are tok\.bin, tok\.model beside model\.pt"):
        find_tokenizer(tmp_path / "model.pt")
    Foreign(vocabulary=300, epsilon=1e-5).write_llama2c(tmp_path / "model.bin", 0)
    recipe = ImportRecipe(str(tmp_path / "model.bin"), "llama2c", str(tmp_path / "out"), str(llama2c_tokenizer))
    with pytest.raises(UserError, match="340 ids, and the model has 300 rows of embedding"):
        importer.import_checkpoint(recipe)
