"""The sanity gate: figures that cannot be the trained model's are called so, and the cause is found."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import run_script
from small_models import byte_tokenizer, random_model

from genesis_hf.evaluation import sanity
from genesis_hf.evaluation.compare import comparison, load_evaluation
from genesis_hf.evaluation.results import Evaluation
from genesis_hf.evaluation.suspects import try_suspects
from genesis_hf.evaluation.tables import as_html, markdown, write_comparison


def accuracy(value: float, n: int, chance: float | None) -> dict:
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    return {"acc": {"value": value, "stderr": stderr, "chance": chance, "n": n, "higher_is_better": True}}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """What a reference run published, with the sets' own sizes, and the training loss that it ended with."""
    evaluation = Evaluation("published", "unknown", tmp_path)
    tasks = {
        "arc_easy": accuracy(0.25, 2376, 0.25),
        "winogrande": accuracy(0.488, 1267, 0.5),
        "piqa": accuracy(0.51, 1838, 0.5),
        "lambada_openai": {
            **accuracy(0.0, 5153, None),
            "perplexity": {
                **{"value": 3360048.0, "stderr": None, "chance": None, "n": 5153},
                "higher_is_better": False,
            },
        },
    }
    for task, metrics in tasks.items():
        evaluation.add(task, metrics, [], {"task_version": 1.0})
    evaluation.values["training"] = {"loss": 1.93, "vocab_size": 49152}
    evaluation.write()
    return tmp_path


def test_published_table_is_marked_as_it_deserves(published: Path, tmp_path: Path) -> None:
    result = comparison([load_evaluation(published)])
    words = {row["task"]: row["against_chance"] for row in result["rows"]}
    for task in ("arc_easy", "winogrande", "piqa"):
        assert words[task] == "not distinguishable from chance"
    text = markdown(result)
    assert text.startswith("WARNING: the figures of")
    assert "perplexity of 3,360,048" in text
    assert "no model at a training loss of 1.93 has" in text
    assert "Suspect: the export (RoPE θ or layout" in text
    assert "cannot be those of the model" in as_html(result)
    write_comparison(result, tmp_path / "c.svg")
    assert "hatched: figures that cannot be right" in (tmp_path / "c.svg").read_text()


def test_strict_comparison_fails(published: Path) -> None:
    done = run_script("scripts/compare.py", published, "--strict", check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("WARNING")


def values(**training: object) -> dict:
    """An evaluation of a sound model."""
    held_out = {"value": 1.0, "loss": 2.4, "tokens": 250, "bytes": 1000, "n": 5, "higher_is_better": False}
    return {
        "tasks": {
            "held_out/prose": {"bits_per_byte": held_out},
            "lambada_openai": {"perplexity": {"value": 40.0, "tokens_per_item": 1.2}},
        },
        "training": {
            "loss": 2.3,
            "vocab_size": 49152,
            "held_out": {"prose": {"loss": 2.38, "bits_per_byte": 0.99}},
            "bytes_per_token": {"prose": 4.1, "code": 3.0},
            **training,
        },
    }


def test_a_sound_model_passes_all() -> None:
    assert sanity.warnings(values()) == []
    assert "5 of 5 checks passed" in sanity.summary(values())
    assert "not held against its training" in sanity.summary({"tasks": {}})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("held_out/prose", "bits_per_byte", "value"), 1.2, "training measured 0.990 bits per byte on prose"),
        (("held_out/prose", "bits_per_byte", "loss"), 3.4, "training loss was 2.30 nats a token"),
        (("held_out/prose", "bits_per_byte", "loss"), math.nan, "training loss was 2.30 nats a token"),
        (("held_out/prose", "bits_per_byte", "loss"), 11.0, "a model that knows nothing has 10.80"),
        (
            ("held_out/prose", "bits_per_byte", "tokens"),
            280,
            "report says 0.244. Suspect: the tokenizer",
        ),
        (
            ("held_out/prose", "bits_per_byte", "tokens"),
            200,
            "report says 0.244. Suspect: the tokenizer",
        ),
        (("lambada_openai", "perplexity", "value"), 1e5, "Suspect: how the task is put to the model (BOS"),
    ],
)
def test_each_figure_has_its_bound(path: tuple[str, str, str], value: float, words: str) -> None:
    broken = values()
    task, metric, key = path
    broken["tasks"][task][metric][key] = value
    assert any(words in line for line in sanity.warnings(broken))


def test_perplexity_of_a_broken_export_is_laid_to_the_export() -> None:
    broken = values()
    broken["tasks"]["held_out/prose"]["bits_per_byte"]["value"] = 3.0
    broken["tasks"]["lambada_openai"]["perplexity"]["value"] = 3e6
    assert all("Suspect: the export" in line for line in sanity.warnings(broken))


def test_what_is_known_of_training_is_found(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "run" / "exports" / "step"
    model.mkdir(parents=True)
    (model / "parity.json").write_text(json.dumps({"training": {"step": 7, "loss": 2.5, "held_out": None}}))
    (model / "config.json").write_text(json.dumps({"vocab_size": 300}))
    assert sanity.training_record(model) == {"step": 7, "loss": 2.5, "vocab_size": 300}
    (tmp_path / "tokenizer").mkdir()
    fertility = {"prose": {"bytes_per_token": 4.0, "tokens": 9}, "empty": {"bytes_per_token": 0.0, "tokens": 0}}
    (tmp_path / "tokenizer" / "fertility.json").write_text(json.dumps(fertility))
    (run / "recipe.yaml").write_text(f"tokenizer: {tmp_path / 'tokenizer'}\n")
    assert sanity.training_record(model)["bytes_per_token"] == {"prose": 4.0}


# ---------------------------------------------------------------------------------------------------------
# Suspects
# ---------------------------------------------------------------------------------------------------------

PRINTABLE = 94
"""Ids of the byte tokenizer that are one ASCII letter each."""


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A model, its tokenizer, and text that this model finds likely: its own."""
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    model = random_model(tied=True, rope_theta=10000.0)
    texts = []
    with torch.inference_mode():
        for first in range(4):
            ids = [tokenizer.eos_token_id, first]
            while len(ids) < 100:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1, :PRINTABLE].argmax()))
            texts.append(tokenizer.decode(ids[1:]))
    return model, tokenizer, texts


def test_a_sound_model_has_no_suspect(speaker: tuple) -> None:
    model, tokenizer, texts = speaker
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert try_suspects(model, tokenizer, texts) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrong_theta_is_found(speaker: tuple) -> None:
    model, tokenizer, texts = speaker
    kept = model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.copy_(500000.0 ** -(torch.arange(0, 16, 2) / 16))
    found = try_suspects(model, tokenizer, texts)
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.copy_(kept)
    assert found[0].startswith("RoPE θ 10,000:")


def test_interleaved_rows_are_found(speaker: tuple) -> None:
    model, tokenizer, texts = speaker
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                halves = projection.weight.view(-1, 2, 8, 64)
                projection.weight.copy_(halves.transpose(1, 2).reshape(-1, 64))
    found = try_suspects(model, tokenizer, texts)
    model.load_state_dict(state)
    assert found[0].startswith("interleaved RoPE rows put in halves:")
