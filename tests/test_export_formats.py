"""ONNX, GGUF and a state dict of a checkpoint, and shards, cut vocabularies and the table."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from reading_here import read_in_this_process
from small_models import byte_tokenizer, random_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from genesis_hf import export
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.errors import UserError
from genesis_hf.export import export_checkpoint
from genesis_hf.exporting import gguf
from genesis_hf.exporting.formats import judge
from genesis_hf.exporting.reading import READERS, Answers
from genesis_hf.parity import cut_prompts, make_questions, probe
from genesis_hf.tokenizer import NASTY_CORPUS, encode_documents, load_tokenizer

HELD_OUT = ["The river walks under the old stone, and nobody knows where it goes. " * 3]


@pytest.fixture(scope="module")
def runs(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A checkpoint of a tied and of an untied model of 384 ids and 448 rows of the embedding."""
    folders = {}
    tokenizer = load_tokenizer(tokenizer_folder)
    for tied in (True, False):
        folders[tied] = tmp_path_factory.mktemp("run")
        model = random_model(tied, vocab_size=448)
        optimizers = [torch.optim.AdamW(model.parameters())]
        save_checkpoint(checkpoint_folder(folders[tied], 1), model, optimizers, {"step": 1}, "", tokenizer)
    return folders


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(export, monkeypatch)


@pytest.fixture(scope="module")
def onnx_export(runs: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tied model as ONNX, and what the script printed."""
    if not find_spec("onnxscript"):
        pytest.skip("the extra [onnx] is not installed")
    folder = tmp_path_factory.mktemp("export")
    (folder / "heldout.jsonl").write_text(json.dumps({"text": HELD_OUT[0]}) + "\n")
    done = run_script(
        "scripts/export.py", "--checkpoint", runs[True], "--output_dir", folder / "out", "--formats", "onnx",
        "--held_out_sources", f"[{{name: held_out, paths: ['{folder / 'heldout.jsonl'}']}}]",
    )  # fmt: skip
    return folder / "out", done.stdout


def test_onnx_in_fresh_processes(onnx_export: tuple[Path, str]) -> None:
    folder, printed = onnx_export
    compared = json.loads((folder / "parity.json").read_text())["formats_compared"]
    assert list(compared) == ["llama", "onnx float32", "onnx float16"]
    for name, figures in compared.items():
        assert any(line.split()[: name.count(" ") + 1] == name.split() for line in printed.splitlines())
        assert figures["tokenizer_same"] == figures["tokenizer_texts"]
    assert compared["onnx float32"]["greedy_same"] == 20
    assert set(compared["onnx float32"]["read_by"]) == {"python", "onnxruntime", "tokenizers"}
    assert compared["onnx float16"]["max_logit_difference"] > compared["onnx float32"]["max_logit_difference"]
    assert not list(folder.glob("*.safetensors"))  # llama wasn't asked for


def test_onnx_continues_from_its_cache(onnx_export: tuple[Path, str]) -> None:
    folder, _ = onnx_export
    reader = READERS["onnx"](folder / "onnx/model.onnx")
    rows = np.random.default_rng(0).integers(0, 384, (2, 9)).tolist()
    whole, _ = reader.step(rows, None)
    _, cache = reader.step([row[:4] for row in rows], None)
    rest, _ = reader.step([row[4:] for row in rows], cache)
    assert np.abs(rest - whole[:, 4:]).max() <= 1e-4
    names = {found.name: found.shape for found in reader.session.get_inputs()}
    assert names["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 16]
    weights = 4 * random_model(tied=True, vocab_size=448).num_parameters()
    assert weights < (folder / "onnx/model.onnx").stat().st_size < 1.5 * weights


def test_onnx_runtime_genai_finds_what_the_graph_has(onnx_export: tuple[Path, str]) -> None:
    folder, _ = onnx_export
    session = READERS["onnx"](folder / "onnx/model.onnx").session
    told = json.loads((folder / "onnx/genai_config.json").read_text())
    decoder, layers = told["model"]["decoder"], range(told["model"]["decoder"]["num_hidden_layers"])
    for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        names = {name % i if "%d" in name else name for name in decoder[side].values() for i in layers}
        assert names == {value.name for value in found}
    shape = ["batch_size", decoder["num_key_value_heads"], "past_sequence_length", decoder["head_size"]]
    assert session.get_inputs()[-1].shape == shape
    assert (folder / "onnx" / decoder["filename"]).is_file()
    assert told["model"]["eos_token_id"] == json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    split = json.loads((folder / "onnx/tokenizer.json").read_text())["pre_tokenizer"]["pattern"]["Regex"]
    assert re.findall(split, "two  spaces here ") == ["two", "  spaces", " here", " "]  # spaces as they stand in a text


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="the extra [gguf] is not installed")
@pytest.mark.usefixtures("read_here")
def test_gguf(runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENESIS_HF_CACHE")  # where the user's own converter is
    if not (gguf.converter_folder() / gguf.CONVERTER).is_file():
        pytest.skip("llama.cpp's converter is not there: python -m genesis_hf.exporting.gguf")
    report = export_checkpoint(runs[False], tmp_path / "out", formats=["llama", "gguf"], held_out=HELD_OUT)
    compared = report["formats_compared"]
    assert list(compared) == ["llama", "gguf f32", "gguf f16", "gguf q8_0"]
    assert compared["gguf f32"]["greedy_same"] == 20
    for figures in compared.values():
        assert figures["tokenizer_same"] == figures["tokenizer_texts"] > 100


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("tied", [True, False])
def test_state_dict_and_shards(tied: bool, runs: dict[bool, Path], tmp_path: Path) -> None:
    report = export_checkpoint(
        runs[tied], tmp_path / "out", formats=["llama", "pt"], held_out=HELD_OUT, max_shard_size="100KB"
    )
    assert report["formats_compared"]["pt"]["max_logit_difference"] <= 1e-5
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    state = torch.load(tmp_path / "out/model.pt", weights_only=True)
    assert ("lm_head.weight" in state) is not tied
    assert torch.equal(state["model.embed_tokens.weight"], random_model(tied, vocab_size=448).model.embed_tokens.weight)


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("tied", [True, False])
def test_padded_vocabulary_is_cut(tied: bool, runs: dict[bool, Path], tmp_path: Path) -> None:
    report = export_checkpoint(runs[tied], tmp_path / "out", vocabulary="cut", dtype="bfloat16", held_out=HELD_OUT)
    assert report["vocabulary_rows"] == {"model": 448, "exported": 384}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.lm_head.weight.shape == read.model.embed_tokens.weight.shape == (384, 64)
    assert read.config.vocab_size == 384
    kept = random_model(tied, vocab_size=448).lm_head.weight[:384].bfloat16()
    assert torch.equal(read.lm_head.weight, kept)
    with pytest.raises(UserError, match="another export"):
        export_checkpoint(runs[tied], tmp_path / "out", dtype="bfloat16")


def test_sentencepiece_file_made_of_a_tokenizer_json_encodes_as_it_does(tokenizer_folder: Path, tmp_path: Path) -> None:
    """llama.cpp's converter needs the scores of pieces, which only a tokenizer.model has."""
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    made = gguf.write_sentencepiece(tmp_path)
    assert gguf.write_sentencepiece(tmp_path) is None  # one is there now
    processor, tokenizer = sentencepiece.SentencePieceProcessor(), load_tokenizer(tokenizer_folder)
    model = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(made.read_bytes())
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.name = "identity"
    processor.LoadFromSerializedProto(model.SerializeToString())
    assert [processor.is_byte(i) for i in range(384)] == [3 <= i < 259 for i in range(384)]
    assert [processor.is_control(i) or processor.is_unknown(i) for i in range(4)] == [True, True, True, False]

    @given(text=st.lists(st.text() | st.sampled_from(["the river", "  ", " stone", "walks"]), max_size=6).map("".join))
    @settings(max_examples=100, deadline=None)
    def same(text: str) -> None:
        assert processor.encode(text) == encode_documents(tokenizer, [text])[0]

    same()


def test_no_sentencepiece_file_of_a_byte_level_tokenizer(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert gguf.write_sentencepiece(tmp_path) is None


def test_converter_that_refuses_leaves_one_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("raise NotImplementedError('BPE pre-tokenizer was not recognized')")
    with pytest.raises(UserError, match="does not take this model: NotImplementedError: BPE pre-tokenizer") as error:
        gguf.write_gguf(tmp_path, converter)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tokenizer.model").exists()


def test_missing_software_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("onnx", "gguf"):
        with pytest.raises(UserError, match=rf"pip install 'genesis-hf\[{name}\]'"):
            export_checkpoint("nowhere", tmp_path / "out", formats=[name])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys)
    monkeypatch.setattr(gguf, "version", lambda name: "0")
    with pytest.raises(UserError, match=r"python -m genesis_hf\.exporting\.gguf"):
        export_checkpoint("nowhere", tmp_path / "out", formats=["gguf"])
    with pytest.raises(UserError, match=r"no convert_hf_to_gguf\.py in it"):
        export_checkpoint("nowhere", tmp_path / "out", formats=["gguf"], llama_cpp=str(tmp_path))


def answers(logits: np.ndarray, greedy: int = 1, lead: float = 1.0) -> Answers:
    return Answers(logits, 2.0, [[greedy]], [[1]], [[lead]])


def test_rounded_files_have_bounds_and_others_may_part_at_a_tie_only() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    live = answers(logits)
    assert judge("onnx float16", live, answers(logits + 0.01, greedy=2))[1] == []
    assert "logits differ" in judge("onnx float16", live, answers(logits + 1))[1][0]
    assert "logits differ" in judge("onnx float32", live, answers(logits + 0.01))[1][0]
    assert "greedy text" in judge("onnx float32", live, answers(logits, greedy=2))[1][0]
    assert judge("onnx float32", answers(logits, lead=1e-6), answers(logits, greedy=2))[1] == []
    assert "diverges by" in judge("gguf q8_0", live, answers(logits * 0.6))[1][0]
    assert judge("gguf q8_0", live, answers(logits + 0.4))[1] == []  # the same distribution
    assert len(judge("gguf q8_0", live, answers(logits * float("nan")))[1]) == 2
    near, judged = answers(logits * 0.85), {"gguf f16": {"divergence": 1e-7}}
    assert judge("gguf q8_0", live, near)[1] == []
    assert "diverges by" in judge("gguf q8_0", live, near, judged)[1][0]  # 100,000 times what f16 does
    assert judge("gguf q8_0", live, near, {"gguf f16": {"divergence": 1e-5}})[1] == []


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """As q8_0 rounds it: 32 numbers share an fp16 scale."""
    if weight.ndim == 1:
        return weight
    blocks = weight.reshape(-1, 32)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    return (blocks / scales).round().mul(scales).reshape(weight.shape)


ROUNDED = {"onnx float16": lambda weight: weight.half().float(), "gguf q8_0": eight_bits}


def interleave(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            rows = projection.weight.data
            projection.weight.data = rows.view(-1, 2, 8, 64).transpose(1, 2).reshape(-1, 64)


FAULTS = {
    "θ": ({"rope_theta": 10_000.0}, lambda model: None),
    "heads": ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}, lambda model: None),
    "interleaved": ({}, interleave),
    "layer": ({}, lambda model: model.model.layers.pop(1)),
    "output layer": ({}, lambda model: model.lm_head.weight.data.copy_(model.lm_head.weight.data.roll(1, 0))),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_bounds_let_rounding_through_and_no_fault(name: str, tmp_path: Path) -> None:
    tokenizer, live = byte_tokenizer(tmp_path), random_model(tied=False)
    questions = make_questions(tokenizer, 320, 128, NASTY_CORPUS, HELD_OUT)
    expected = probe(live, tokenizer, questions)

    def found(constants: dict, fault) -> list[str]:
        model = random_model(tied=False, **constants)
        model.load_state_dict({key: ROUNDED[name](weight) for key, weight in live.state_dict().items()})
        fault(model)
        return judge(name, expected, probe(model, tokenizer, questions))[1]

    assert found({}, lambda model: None) == []
    assert [fault for fault, (constants, change) in FAULTS.items() if not found(constants, change)] == []


def test_prompts_are_twenty_of_one_length() -> None:
    rows = [list(range(100)), list(range(50)), [1, 2, 3]]
    prompts = cut_prompts(rows, 4)
    assert len(prompts) == 20
    assert prompts[:4] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [4, 5, 6, 7]]
    assert [len(prompt) for prompt in prompts].count(4) == 19
