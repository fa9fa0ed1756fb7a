"""Import: a foreign state dict becomes a Llama folder that computes what the file does, or nothing."""

import argparse
import io
import json
import struct
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from conftest import run_script
from foreign_models import Foreign
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import byte_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from genesis_hf.config import ImportRecipe
from genesis_hf.errors import UserError
from genesis_hf.importing import convert as convert_module
from genesis_hf.importing import importer
from genesis_hf.importing.architecture import find_architecture, with_conventions
from genesis_hf.importing.convert import convert
from genesis_hf.importing.direct import DirectModel
from genesis_hf.importing.mapping import read_mapping
from genesis_hf.importing.source import read_source
from genesis_hf.importing.source_tokenizers import find_tokenizer, read_source_tokenizer
from genesis_hf.parity import probe
from genesis_hf.tokenizer import NASTY_CORPUS, encode_documents

IDS = [3, 17, 0, 39, 21, 21, 8, 30, 12, 5]


def llama_logits(source_file: Path, mapping_file: Path | str, **constants: object) -> torch.Tensor:
    """Logits of the converted model, once checked against the direct ones."""
    mapping, constants = with_conventions(read_mapping(str(mapping_file)), constants)
    source = read_source(source_file, mapping)
    architecture = find_architecture(source, mapping, constants)
    state = convert(source, mapping, architecture)
    model = LlamaForCausalLM(architecture.llama_config()).eval()
    if architecture.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(DirectModel(source, mapping, architecture)(IDS), logits, rtol=1e-4, atol=1e-4)
    return logits


def save(folder: Path, foreign: Foreign, /, **changes: object) -> tuple[Path, Path]:
    state, mapping = foreign.stored()
    (folder / "model.pt").unlink(missing_ok=True)  # it may still be mapped
    torch.save(state, folder / "model.pt")
    (folder / "mapping.yaml").write_text(yaml.safe_dump({**mapping, **changes}))
    return folder / "model.pt", folder / "mapping.yaml"


# ---------------------------------------------------------------------------------------------------------
# Conventions
# ---------------------------------------------------------------------------------------------------------

FOREIGN = st.builds(
    lambda kv, ratio, **rest: Foreign(kv_heads=kv, heads=kv * ratio, **rest),
    width=st.just(24),
    kv=st.integers(1, 2),
    ratio=st.integers(1, 3),
    layers=st.integers(1, 2),
    head_dim=st.sampled_from([2, 4, 6]),
    interleaved=st.booleans(),
    tied=st.booleans(),
    theta=st.sampled_from([10.0, 10_000.0]),
    transposed=st.booleans(),
    attention_order=st.none() | st.permutations(["wq", "wk", "wv"]).map(tuple) | st.just(("wk", "wv")),
    attention_grouped=st.booleans(),
    feed_forward_order=st.none() | st.permutations(["gate", "up"]).map(tuple),
    feed_forward_grouped=st.booleans(),
    padding=st.sampled_from([0, 24]),
)


@given(model=FOREIGN)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_computes_what_its_own_code_does(tmp_path: Path, model: Foreign) -> None:
    logits = llama_logits(*save(tmp_path, model))
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


def test_key_value_heads_and_sizes_follow_from_the_shapes(tmp_path: Path) -> None:
    model = Foreign(kv_heads=2, attention_order=("wq", "wk", "wv"), feed_forward_order=("gate", "up"))
    mapping = read_mapping(str(save(tmp_path, model)[1]))
    found = find_architecture(read_source(tmp_path / "model.pt", mapping), mapping, {})
    assert (found.num_key_value_heads, found.intermediate_size, found.num_hidden_layers) == (2, 24, 2)
    assert (found.hidden_size, found.tie_word_embeddings) == (16, True)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files_hold_the_same_model(tmp_path: Path, version: int, tied: bool) -> None:
    model = Foreign(tied=tied, vocabulary=40, epsilon=1e-5, theta=500.0)
    model.write_llama2c(tmp_path / "model.bin", version)
    given = {} if version == 0 else {"rope_theta": 500.0}  # version 0 holds the tables it follows from
    logits = llama_logits(tmp_path / "model.bin", "llama2c", **given)
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_model_parallel_parts_are_joined(tmp_path: Path, embedding_axis: int) -> None:
    model = Foreign(tied=False, epsilon=1e-5)
    axes = {
        "tok_embeddings": embedding_axis,
        "output": 0,
        "wo": 1,
        "w2": 1,
        "wq": 0,
        "wk": 0,
        "wv": 0,
        "w1": 0,
        "w3": 0,
    }
    for part in range(2):
        shard = {}
        for name, tensor in model.llama2c_names().items():
            axis = axes.get(name.split(".")[-2])
            shard[name] = tensor if axis is None else tensor.chunk(2, axis)[part].clone()
        torch.save({**shard, "rope.freqs": torch.ones(2)}, tmp_path / f"consolidated.0{part}.pth")
    parameters = {"dim": 16, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1, "rope_theta": 100.0}
    (tmp_path / "params.json").write_text(json.dumps(parameters))
    logits = llama_logits(tmp_path, "meta_llama", max_position_embeddings=64)
    torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)
    (tmp_path / "params.json").write_text(json.dumps({**parameters, "use_scaled_rope": True}))
    with pytest.raises(UserError, match="use_scaled_rope: True"):
        llama_logits(tmp_path, "meta_llama", max_position_embeddings=64)


def test_wrappers_and_what_training_saves_around_the_weights(tmp_path: Path) -> None:
    model = Foreign()
    state, _ = model.stored()
    save(tmp_path, model)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    saved = {"model": wrapped, "optimizer": {"state": {0: torch.ones(2, 2)}}, "iter_num": 5, "model_args": {"n": 1}}
    torch.save(saved, tmp_path / "ckpt.pt")
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    for name in ("ckpt.pt", "model.safetensors"):
        logits = llama_logits(tmp_path / name, tmp_path / "mapping.yaml")
        torch.testing.assert_close(logits, model.logits(IDS), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------
# The whole import
# ---------------------------------------------------------------------------------------------------------


def train_on(model: Foreign, rows: list[list[int]], steps: int = 60) -> float:
    """Overfit a model, so that its conventions matter to what it says; its last loss."""
    parameters = list(model.weights.values())
    for weight in parameters:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=2e-2)
    for _ in range(steps):
        losses = [torch.nn.functional.cross_entropy(model.logits(row[:-1]), torch.tensor(row[1:])) for row in rows]
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
    for weight in parameters:
        weight.requires_grad_(False)
    return loss.item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Foreign]:
    """nanoGPT's form with a Llama inside that knows the passage's beginning, and a byte tokenizer beside it."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = byte_tokenizer(folder / "tokenizer")
    order = {"attention_order": ("wq", "wk", "wv"), "feed_forward_order": ("gate", "up")}
    model = Foreign(layers=1, vocabulary=257, padding=7, interleaved=True, theta=1e4, epsilon=1e-5, **order)
    loss = train_on(model, [row[:32] for row in encode_documents(tokenizer, list(importer.PASSAGE))])
    assert loss < 2.0
    names = {
        "emb": "transformer.wte.weight",
        "final": "transformer.ln_f.weight",
        "wq_wk_wv": "attn.c_attn.weight",
        "wo": "attn.c_proj.weight",
        "gate_up": "mlp.c_fc.weight",
        "down": "mlp.c_proj.weight",
        "norm1": "ln_1.weight",
        "norm2": "ln_2.weight",
    }
    state = {}
    for name, tensor in model.stored()[0].items():
        *layer, kind = name.split(".")
        prefix = f"transformer.h.{layer[1]}." if layer else ""
        state[f"_orig_mod.{prefix}{names[kind]}"] = tensor
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    arguments = {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 32, "vocab_size": 264, "bias": False}
    torch.save({"model": state, "model_args": arguments, "iter_num": 60}, folder / "ckpt.pt")
    return folder, model


def recipe(trained: tuple[Path, Foreign], output_dir: Path, **changes: object) -> ImportRecipe:
    values = {
        "checkpoint": str(trained[0] / "ckpt.pt"),
        "mapping": "nanogpt_llama",
        "output_dir": str(output_dir),
        "tokenizer": str(trained[0] / "tokenizer"),
        "model": {"rope": "interleaved", "vocab_size": 257},
    }
    return ImportRecipe(**{**values, **changes})


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is read in this process: a fresh one takes seconds."""

    def read(folder: Path, questions):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return probe(model, AutoTokenizer.from_pretrained(folder), questions), {"transformers": "this"}

    monkeypatch.setattr(importer, "probe_in_fresh_process", read)


def test_script_imports_proves_and_knows_what_stands_there(trained, tmp_path: Path) -> None:
    folder, model = trained
    words = ["--checkpoint", folder / "ckpt.pt", "--mapping", "nanogpt_llama", "--output_dir", tmp_path / "model"]
    words += ["--tokenizer", folder / "tokenizer", "--model.rope", "interleaved", "--model.vocab_size", 257]
    done = run_script("scripts/import_checkpoint.py", *words)
    assert "imported: ckpt.pt in float32" in done.stdout
    report = json.loads((tmp_path / "model" / "parity.json").read_text())
    figures = report["formats_compared"]["llama"]
    assert figures["agrees"]
    assert figures["top10_agreement"] > 0.99
    assert figures["greedy_same"] == figures["greedy_prompts"] > 0
    assert report["text_loss"]["otherwise"]["rope: half"] > report["text_loss"]["nats_per_token"] + 0.1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"], config["rope_theta"]) == (257, True, 1e4)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded(torch.tensor([IDS])).logits[0], model.logits(IDS), rtol=1e-4, atol=1e-4)

    again = importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    assert again["already_imported"]
    with pytest.raises(UserError, match="holds another export"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model", dtype="bfloat16"))
    with pytest.raises(UserError, match="the command line: norm: layernorm can't be imported"):
        importer.import_checkpoint(recipe(trained, tmp_path / "other", model={"norm": "layernorm"}))


def test_bfloat16_is_compared_with_rounded_weights_and_replaces_an_import(
    trained, tmp_path: Path, same_process: None
) -> None:
    importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    report = importer.import_checkpoint(recipe(trained, tmp_path / "model", dtype="bfloat16", overwrite=True))
    assert (
        report["formats_compared"]["llama"]["max_logit_difference"] < 1e-3 < report["rounding"]["max_logit_difference"]
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype is torch.bfloat16


@pytest.mark.parametrize("mistake", ["no permutation", "other rows", "no transposition of pairs"])
def test_a_wrong_conversion_is_caught(trained, tmp_path: Path, same_process, monkeypatch, mistake: str) -> None:
    def wrong_split(tensor, part, architecture, split=convert_module.split):
        parts = split(tensor, part, architecture)
        return [parts[1], parts[0]] if len(parts) == 2 else parts

    if mistake == "other rows":
        monkeypatch.setattr(convert_module, "split", wrong_split)
    else:
        monkeypatch.setattr(
            convert_module,
            "halves",
            lambda w, n: w if mistake == "no permutation" else w.view(-1, n, w.shape[1]).flip(1).reshape(w.shape),
        )
    with pytest.raises(UserError, match="does not compute what the file's own tensors do"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "suspect"),
    [
        ({"rope": "half"}, "rope: interleaved"),
        ({"rope": "interleaved", "num_attention_heads": 2}, "num_attention_heads: 4"),
    ],
)
def test_a_mapping_that_the_model_was_not_trained_with_is_caught(trained, tmp_path: Path, model, suspect: str) -> None:
    with pytest.raises(UserError, match=f"not what this model was trained with: .* with {suspect}"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model", model={**model, "vocab_size": 257}))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------
# What can't be imported
# ---------------------------------------------------------------------------------------------------------


def test_each_tensor_that_does_not_fit_has_its_line(tmp_path: Path) -> None:
    state, _ = Foreign().stored()
    checkpoint, mapping = save(tmp_path, Foreign())
    state.pop("block.1.wv")
    for layer in range(2):
        state[f"block.{layer}.wq.bias"] = torch.ones(16)
    state.update({"wpe.weight": torch.ones(64, 16), "surplus": torch.ones(3)})
    torch.save(state, checkpoint)
    with pytest.raises(UserError) as caught:
        llama_logits(checkpoint, mapping)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[1].strip().startswith("block.1.wv is not in the file; it makes model.layers.{layer}.self_attn.v_proj")
    assert "block.0.wq.bias (16,) is not in the mapping: it is a bias" in lines[2]
    assert "and 1 more of its kind" in lines[2]
    assert "wpe.weight (64, 16) is not in the mapping: it is learned positions" in lines[3]
    assert "surplus (3,)" in lines[4]

    state, _ = Foreign().stored()
    torch.save({**state, "block.0.down": torch.ones(24, 16)}, checkpoint)
    with pytest.raises(UserError, match=r"block\.0\.down has shape \(24, 16\), and .*down_proj\.weight \(16, 24\)"):
        llama_logits(checkpoint, mapping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layernorm"}, "norm: layernorm can't be imported; a Llama has RMSNorm only"),
        ({"mlp": "gelu"}, "mlp: gelu can't be imported"),
        ({"positions": "learned"}, "positions: learned can't be imported"),
        ({"rope": "partial"}, "rope is 'partial'; it must be one of interleaved, half"),
        ({"tensor": {}}, "unknown key `tensor`; did you mean `tensors`"),
        ({"tensors": {"emb": "embed.weight"}}, "a Llama has no tensor 'embed.weight'"),
        (
            {"tensors": {"emb": "model.norm.weight", "e": "model.norm.weight"}},
            "two tensors are mapped to model.norm.weight",
        ),
        ({"tensors": {"emb": "model.layers.{layer}.mlp.up_proj.weight"}}, "{layer} once on both sides"),
        ({"tensors": {"emb": {"too": "model.norm.weight"}}}, "tensors.emb: unknown key `too`"),
        ({"model": {"num_attention_heads": 4}}, "`max_position_embeddings` is missing"),
        ({"model": {"num_heads": 4}}, "unknown key `num_heads`"),
    ],
)
def test_wrong_mappings_end_with_a_line_that_says_so(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        llama_logits(*save(tmp_path, Foreign(), **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    state, _ = Foreign().stored()
    torch.save({**state, "args": argparse.Namespace(n=1)}, folder / "objects.pt")
    torch.save({**state, "final": torch.full((16,), torch.nan)}, folder / "nan.pt")
    torch.save({**state, "emb": torch.ones(40, 16, dtype=torch.int8)}, folder / "int8.pt")
    torch.save([1, 2], folder / "list.pt")
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "text.safetensors").write_text("not a checkpoint")
    Foreign().write_llama2c(folder / "whole.bin", 1)
    whole = (folder / "whole.bin").read_bytes()
    (folder / "short.bin").write_bytes(whole[:-4])
    (folder / "version.bin").write_bytes(whole[:4] + struct.pack("<i", 3) + whole[8:])
    (folder / "noise.bin").write_bytes(bytes(range(1, 64)))
    return {
        "objects.pt": "holds objects that are not tensors",
        "nan.pt": "final holds numbers that are not finite",
        "int8.pt": "emb is torch.int8; quantised",
        "list.pt": "no state dict in it",
        "text.pt": "not a file that torch.save wrote",
        "text.safetensors": "not a safetensors file",
        "short.bin": "damaged, or no llama2.c file",
        "version.bin": "llama2.c version 3",
        "noise.bin": "no llama2.c header",
        "absent.pt": "no such file",
    }


def test_wrong_files_end_with_a_line_that_says_so(tmp_path: Path) -> None:
    _, mapping = save(tmp_path, Foreign())
    for name, message in damaged_files(tmp_path).items():
        with pytest.raises(UserError) as caught:
            read_source(tmp_path / name, read_mapping(str(mapping)))
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="those that come with the package: llama2c, meta_llama, nanogpt_llama"):
        read_mapping("llama3c")


def test_untied_head_that_is_the_embedding_and_the_other_way_round(tmp_path: Path) -> None:
    checkpoint, mapping = save(tmp_path, Foreign(tied=False))
    with pytest.raises(UserError, match="tie_word_embeddings is true, and head is not emb"):
        llama_logits(checkpoint, mapping, tie_word_embeddings=True)
    checkpoint, mapping = save(tmp_path, Foreign(tied=True))
    with pytest.raises(UserError, match="nothing in the file makes lm_head"):
        llama_logits(checkpoint, mapping, tie_word_embeddings=False)


# ---------------------------------------------------------------------------------------------------------
# Tokenizers
# ---------------------------------------------------------------------------------------------------------

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
    llama2c_tokenizer: Path, tmp_path: Path, same_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_wrong_tokenizers_end_with_a_line_that_says_so(trained, tmp_path: Path, llama2c_tokenizer: Path) -> None:
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
    with pytest.raises(UserError, match="340 ids, and the model has 257 rows of embedding"):
        importer.import_checkpoint(recipe(trained, tmp_path / "model", tokenizer=str(llama2c_tokenizer)))
