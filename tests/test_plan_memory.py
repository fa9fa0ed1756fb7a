"""The planner's bytes against torch's own accounting, on tensors without memory and on real ones."""

import contextlib
import dataclasses

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.initialization import no_init_weights

from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM
from genesis_hf.planning.devices import Topology
from genesis_hf.planning.memory import memory, muon_bytes, optimizer_bytes, sizes
from genesis_hf.planning.tracing import LiveBytes, Shape, activations
from genesis_hf.recompute import set_recompute
from genesis_hf.training.muon import Muon
from genesis_hf.training.optim import make_optimizers

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 4096,
}


def recipe(**changes) -> PretrainRecipe:
    values = {
        "output_dir": "run",
        "model": SMALL,
        "tokenizer": "none",
        "max_steps": 1000,
        "sequence_length": 512,
        "per_device_train_batch_size": 4,
        "attn_implementation": "flash_attention_2",  # no mask, as the models below
        "save_async": False,
    }
    return PretrainRecipe(sources=[Source("text", paths=["none"])], **{**values, **changes})


def whole_loss(model, ids: torch.Tensor, **bounds: torch.Tensor) -> torch.Tensor:
    """As transformers' own causal models compute it (loss_utils.ForCausalLMLoss): logits in fp32, labels shifted."""
    logits = model(ids, use_cache=False, **bounds).logits.float()
    labels = torch.nn.functional.pad(ids, (0, 1), value=-100)[..., 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def fake_model(config: GenesisConfig, recompute: str = "none", dtype: torch.dtype = torch.float32):
    """Call under FakeTensorMode."""
    config._attn_implementation = "documents"  # without a mask, as flash attention
    with no_init_weights():
        model = GenesisForCausalLM._from_config(config, dtype=dtype)
    set_recompute(model, recompute)
    return model.train()


# ------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (Shape(4, 512, "none", "autocast"), {}),
        (Shape(4, 512, "none", "float32"), {"tie_word_embeddings": False, "num_hidden_layers": 6}),
        (Shape(4, 512, "selective", "autocast"), {"num_key_value_heads": 4, "tie_word_embeddings": False}),
        (Shape(8, 256, "full", "bfloat16"), {"num_hidden_layers": 6}),
        (Shape(1, 384, "none", "bfloat16"), {"num_hidden_layers": 1, "vocab_size": 1000}),
        (Shape(4, 512, "full", "autocast", whole_logits=True), {"vocab_size": 8192}),
    ],
    ids=lambda value: "-".join(map(str, dataclasses.astuple(value)[:4])) if isinstance(value, Shape) else "",
)
def test_activations_are_what_torch_counts(shape, changes):
    """MemTracker over the whole model, gradients standing, against blocks traced alone and the loss's formula."""
    config = GenesisConfig(**{**SMALL, **changes})
    shape = dataclasses.replace(shape, device="cpu")
    predicted = activations(config, shape).peak
    with FakeTensorMode():
        model = fake_model(config, shape.recompute, torch.bfloat16 if shape.compute == "bfloat16" else torch.float32)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        ids = torch.empty(shape.rows, shape.length, dtype=torch.long)
        bounds = {"cu_seq_lens": torch.empty(shape.rows + 1, dtype=torch.int32)}
        tracker = MemTracker()
        tracker.track_external(model, ids, *(p.grad for p in model.parameters()))
        with tracker:
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.compute == "autocast"):
                if shape.whole_logits:
                    loss = whole_loss(model, ids, **bounds)
                else:
                    loss = model(ids, labels=ids, num_items_in_batch=1, **bounds).loss
            loss.backward()
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        held = sum(2 * p.nbytes for p in model.parameters()) + ids.nbytes
    counted = next(size for name, size in snapshot.items() if str(name) == "Total") - held
    assert predicted == pytest.approx(counted, rel=0.05)


def test_what_blocks_keep_is_what_autograd_saves():
    """Storages that autograd packs away in a forward pass of real tensors, weights apart."""
    config = GenesisConfig(**SMALL, attn_implementation="sdpa")
    model = GenesisForCausalLM(config).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(2, 512, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model(ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    kept = activations(config, Shape(2, 512, "none", "float32", device="cpu")).kept
    assert kept == pytest.approx(sum(saved.values()) - ids.nbytes, rel=0.03)


# ------------------------------------------------------------------------------------- weights, gradients, optimizer


@contextlib.contextmanager
def fake_processes(count: int):
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("recompute", "reshard", "micro_batches", "count"),
    [
        ("none", False, 2, 2),
        ("full", True, 2, 4),
        ("selective", True, 1, 8),
    ],
)
def test_fsdp2_is_what_fsdp2_holds(recompute, reshard, micro_batches, count):
    """FSDP2 itself, over processes that aren't there: gathered weights, gradients, buffers and activations together."""
    config = GenesisConfig(**SMALL)
    policy = {
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        "reshard_after_forward": reshard,
    }
    with fake_processes(count) as mesh, FakeTensorMode():
        model = fake_model(config, recompute)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, **policy)
        fully_shard(model, mesh=mesh, **policy)
        ids = torch.empty(4, 512, dtype=torch.long)
        bounds = {"cu_seq_lens": torch.empty(5, dtype=torch.int32)}
        counter = LiveBytes([*(p.to_local() for p in model.parameters()), ids])
        with counter:
            for index in range(micro_batches):  # as genesis_hf.training.step.backward and distributed.accumulating
                last = index == micro_batches - 1
                model.set_requires_gradient_sync(last)
                model.set_reshard_after_backward(last or reshard)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(ids, labels=ids, num_items_in_batch=1, **bounds).loss
                loss.backward()
    wanted = recipe(gradient_checkpointing=recompute, gradient_accumulation_steps=micro_batches)
    held = memory(wanted, config, sizes(config), Topology("fsdp2", count, 1, count, reshard), True)
    predicted = held.allocated - held.parts["weights"] - held.parts["optimizer"]
    assert predicted == pytest.approx(counter.peak, rel=0.1)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_optimizer_is_what_its_state_holds(optim, tied):
    config = GenesisConfig(**SMALL, tie_word_embeddings=tied)
    wanted, model = recipe(optim=optim), GenesisForCausalLM(config)
    optimizers = make_optimizers(model, wanted)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    counter = LiveBytes([*model.parameters(), *(p.grad for p in model.parameters())])
    for optimizer in optimizers:
        optimizer.step()
        if isinstance(optimizer, Muon):  # its state stands: what a further step takes
            with counter:
                optimizer.step()
    moments = [value for o in optimizers for state in o.state.values() for value in state.values() if value.ndim]
    counted = sizes(config)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert optimizer_bytes(wanted, counted) == sum(moment.nbytes for moment in moments)
    if optim == "muon":
        assert muon_bytes(wanted, counted) == pytest.approx(counter.peak, rel=0.2)


# ---------------------------------------------------------------------------------------------------- what it obeys

TINY = {**SMALL, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([64, 128, 256]),
    st.sampled_from(["none", "selective", "full"]),
    st.sampled_from(
        [Topology("single"), Topology("ddp", 2), Topology("fsdp2", 2, 1, 2), Topology("fsdp2", 8, 1, 8, True)]
    ),
)
def test_more_of_anything_never_takes_less(layers, rows, length, recompute, shared):
    def total(topology=shared, **changes):
        model = {**TINY, "num_hidden_layers": changes.pop("layers", layers)}
        values = {
            "per_device_train_batch_size": rows,
            "sequence_length": length,
            "gradient_checkpointing": recompute,
            "gradient_accumulation_steps": 2,
        }
        config = GenesisConfig(**{**model, "vocab_size": changes.pop("vocab", 512)})
        return memory(recipe(model=model, **{**values, **changes}), config, sizes(config), topology, True).total

    base = total()
    assert total(layers=layers + 1) > base
    assert total(per_device_train_batch_size=rows + 1) > base
    assert total(sequence_length=2 * length) > base
    assert total(gradient_checkpointing="none") >= base
    assert total(optim="muon") <= base
    if shared.sharded:
        more = dataclasses.replace(shared, processes=2 * shared.processes, shards=2 * shared.shards)
        assert total(topology=more) < base
        assert total(topology=dataclasses.replace(shared, reshard=True)) <= total(
            topology=dataclasses.replace(shared, reshard=False)
        )
