"""Settings of memory and speed change neither losses nor weights, and say where they can't be had."""

import gc
import itertools
import shutil
import sys
import types

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from conftest import TINY_MODEL, launch
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf import attention
from genesis_hf.attention import block_attention, document_bounds, flash_attention
from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.errors import UserError
from genesis_hf.losses import chunked_cross_entropy, liger_cross_entropy, require_liger
from genesis_hf.modeling import model_config
from genesis_hf.training.metrics import read_metrics
from genesis_hf.training.precision import convert_to_fp8, require_fp8
from genesis_hf.training.setup import make_model, set_up_blocks

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def recipe(**changes) -> PretrainRecipe:
    values = {"output_dir": "run", "model": TINY_MODEL, "tokenizer": "none", "max_steps": 1000}
    return PretrainRecipe(sources=[Source("text", paths=["none"])], **{**values, **changes})


def blocks(**changes):
    """The model that a recipe with these changes trains, always with the same weights."""
    torch.manual_seed(0)
    return set_up_blocks(model_config({**TINY_MODEL, "vocab_size": 384}), recipe(**changes), CPU).train()


def packed_batch(seed: int = 0, rows: int = 4, length: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(rows, length, generator=generator) < 0.08
    begins[:, 0] = True
    places = torch.arange(length).expand(rows, length)
    position_ids = places - torch.where(begins, places, 0).cummax(dim=1).values
    ids = torch.randint(0, 384, (rows, length), generator=generator)
    return {"input_ids": ids, "labels": ids.masked_fill(begins, -100), "position_ids": position_ids}


def loss_and_gradients(model, **batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------------------- recomputation


def bytes_kept_for_backward(model, batch) -> int:
    gc.collect()  # what is freed meanwhile would count against what is kept
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = model(**batch).loss
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


@pytest.mark.parametrize("attn_implementation", [None, "sdpa"])
def test_recomputation_changes_no_bit_and_keeps_less(attn_implementation):
    batch, kept, reference = packed_batch(), {}, None
    for recompute in ("none", "selective", "full"):
        settings = {"gradient_checkpointing": recompute, "attn_implementation": attn_implementation}
        loss, gradients = loss_and_gradients(blocks(**settings), **batch)
        reference = reference or (loss, gradients)
        assert loss == reference[0]
        assert all(torch.equal(gradients[name], reference[1][name]) for name in gradients)
        kept[recompute] = bytes_kept_for_backward(blocks(**settings), batch)
    assert kept["full"] < 0.6 * kept["selective"]
    assert kept["selective"] < 0.7 * kept["none"]


def test_selective_computes_attention_once_and_full_twice(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "_windows", lambda *a, windows=attention._windows: calls.append(1) or windows(*a))
    counts = {}
    for recompute in ("none", "selective", "full"):
        calls.clear()
        loss_and_gradients(blocks(gradient_checkpointing=recompute), **packed_batch())
        counts[recompute] = len(calls)
    layers = TINY_MODEL["num_hidden_layers"]
    assert counts == {"none": 2 * layers, "selective": 2 * layers, "full": 3 * layers}


def test_keys_are_llamas_whatever_is_set():
    settings = {"gradient_checkpointing": "selective", "torch_compile": shutil.which("g++") is not None}
    assert list(blocks(**settings).state_dict()) == list(blocks().state_dict())


def test_made_models_have_float32_weights():
    config = model_config({**TINY_MODEL, "vocab_size": 384})
    model, (optimizer,) = make_model(config, recipe(gradient_checkpointing="full"), Accelerator(cpu=True))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@needs_compiler
def test_selective_and_compiled_under_fsdp2_equals_one_process(corpus, tokenizer_folder, tmp_path):
    values = {
        "model": TINY_MODEL,
        "tokenizer": str(tokenizer_folder),
        "sequence_length": 64,
        "sources": [{"name": "prose", "paths": [str(corpus / "prose.jsonl")]}],
        "max_steps": 4,
        "warmup_steps": 1,
        "per_device_train_batch_size": 2,
        "num_processes": 2,
        "logging_steps": 1,
        "bf16": False,
    }
    for name, changes in {
        "cpu": {"attn_implementation": "sdpa"},
        "fsdp2_2gpu": {"gradient_checkpointing": "selective", "torch_compile": True},
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**values, **changes, "output_dir": str(tmp_path / name)}))
        launch(name, "scripts/pretrain.py", "--config", path)
    one, two = ([r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("cpu", "fsdp2_2gpu"))
    assert two == pytest.approx(one, rel=1e-5)


# -------------------------------------------------------------------------------------------------- torch.compile


@needs_compiler
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_blocks_compute_the_same_from_one_graph(recompute):
    torch._dynamo.reset()
    plain, compiled = blocks(), blocks(torch_compile=True, gradient_checkpointing=recompute)
    torch._dynamo.utils.counters.clear()
    for seed in range(3):  # each with another number of documents
        plain.zero_grad()
        compiled.zero_grad()
        expected, gradients = loss_and_gradients(plain, **packed_batch(seed))
        loss, compiled_gradients = loss_and_gradients(compiled, **packed_batch(seed))
        assert loss == pytest.approx(expected, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    graphs = []
    for _ in range(2):
        compiled.eval()
        with torch.no_grad():
            compiled(**packed_batch(4), logits_to_keep=1)
        loss_and_gradients(compiled.train(), **packed_batch(5))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] <= 3  # evaluation compiles once, and training goes on with what it had


def test_without_a_compiler_torch_compile_is_refused(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"torch_compile doesn't work on this machine: .*; install"):
        blocks(torch_compile=True)


# ------------------------------------------------------------------------------------------------------ attention


def masked_attention(query, key, value, position_ids):
    """What is to come out, by a mask. (rows, length, heads, dimension) → the same."""
    document = (position_ids == 0).cumsum(dim=1)
    length = document.shape[1]
    mask = (document[:, :, None] == document[:, None]) & torch.ones(length, length, dtype=torch.bool).tril()
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask[:, None], enable_gqa=True).transpose(1, 2)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 3),
    length=st.integers(1, 70),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    block=st.sampled_from([1, 8, 32, 128]),
)
def test_blocks_of_documents_attend_like_a_mask(seed, rows, length, heads, block):
    positions = packed_batch(seed, rows, length)["position_ids"]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, length, count, 8) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = masked_attention(*inputs, positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        output = block_attention(*inputs, document_bounds(positions), 8**-0.5)
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(output, inputs, grad)
    torch.testing.assert_close(output, expected)
    # keys' and values' gradients are summed in fp32
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_flash_kernel_is_given_documents_without_padding(monkeypatch):
    batch = packed_batch()["position_ids"]
    query, key, value = torch.randn(4, 64, 4, 8), torch.randn(4, 64, 2, 8), torch.randn(4, 64, 2, 8)

    def varlen_attn(q, k, v, cu_q, cu_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
        assert cu_q is cu_k
        assert cu_q.dtype == torch.int32
        assert longest_q == longest_k >= cu_q.diff().max()
        assert (window_size, enable_gqa, scale) == ((-1, 0), True, 0.5)
        parts = []
        for start, end in itertools.pairwise(cu_q):
            document = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            part = F.scaled_dot_product_attention(*document, is_causal=True, enable_gqa=True, scale=scale)
            parts.append(part[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    output = flash_attention(query, key, value, document_bounds(batch), 0.5)
    expected = block_attention(query, key, value, document_bounds(batch), 0.5)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_documents_is_what_a_cpu_trains_with_and_equals_sdpa():
    batch = packed_batch()
    by_documents, by_mask = blocks(), blocks(attn_implementation="sdpa")
    assert by_documents.config._attn_implementation == "documents"
    loss, gradients = loss_and_gradients(by_documents, **batch)
    expected, expected_gradients = loss_and_gradients(by_mask, **batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    # whole rows as one context, and a prompt behind padding, go to sdpa
    ids = batch["input_ids"]
    torch.testing.assert_close(by_documents(ids).logits, by_mask(ids).logits)
    padding = torch.ones_like(ids)
    padding[0, :5] = 0
    answers = [
        model.eval().generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False, eos_token_id=None)
        for model in (by_documents, by_mask)
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("spda", "did you mean `sdpa`"),
        ("flash_attention_2", "can't be used .*known are documents, eager"),
        ("flex_attention", "no backward pass on a CPU"),
    ],
)
def test_attention_that_cannot_be_had_is_named(name, words):
    with pytest.raises(UserError, match=f"attn_implementation: .*{words}"):
        blocks(attn_implementation=name)


# ----------------------------------------------------------------------------------------------------- Liger, fp8


def test_liger_is_refused_where_it_cannot_run(monkeypatch):
    with pytest.raises(UserError, match="liger needs a GPU"):
        blocks(loss_implementation="liger")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(UserError, match=r"pip install 'genesis-hf\[liger\]'"):
        require_liger(torch.device("cuda"))


def test_liger_is_called_for_the_summed_loss(monkeypatch):
    class Fused:
        @staticmethod
        def apply(hidden, weight, labels, bias, class_weights, ignored, z_loss, smoothing, reduction, *rest):
            assert (bias, class_weights, z_loss, smoothing, rest) == (
                None,
                None,
                0.0,
                0.0,
                (None, False, torch.float32),
            )
            loss = F.cross_entropy(hidden @ weight.T, labels, ignore_index=ignored, reduction=reduction)
            return loss, None, None, None

    module = types.SimpleNamespace(LigerFusedLinearCrossEntropyFunction=Fused)
    for name in ("liger_kernel", "liger_kernel.ops", "liger_kernel.ops.fused_linear_cross_entropy"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("genesis_hf.training.setup.require_liger", lambda device: None)
    expected, gradients = loss_and_gradients(blocks(), **packed_batch())
    model = blocks(loss_implementation="liger")
    assert model.lm_head.summed_loss is liger_cross_entropy
    assert blocks().lm_head.summed_loss is chunked_cross_entropy
    loss, liger_gradients = loss_and_gradients(model, **packed_batch())
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(liger_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("capability", "words"), [((8, 6), "has 8.6"), ((8, 9), r"pip install 'genesis-hf\[fp8\]'")])
def test_fp8_is_refused_where_it_cannot_run(monkeypatch, capability, words):
    with pytest.raises(UserError, match="fp8 needs an NVIDIA GPU"):
        blocks(fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=words):
        require_fp8(torch.device("cuda"))


def test_fp8_converts_the_blocks_and_nothing_else():
    pytest.importorskip("torchao.float8")
    model, plain = blocks(), blocks()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert convert_to_fp8(model, emulate=True) == 7 * TINY_MODEL["num_hidden_layers"]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    loss, gradients = loss_and_gradients(model, **packed_batch())
    expected, exact = loss_and_gradients(plain, **packed_batch())
    assert loss != expected
    assert loss == pytest.approx(expected, rel=1e-2)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (gradients[name] - exact[name]).norm() < 0.1 * exact[name].norm()
