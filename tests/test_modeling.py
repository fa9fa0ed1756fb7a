import math

import pytest
import torch
from conftest import ROOT, TINY_MODEL
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import genesis_hf
from genesis_hf import GenesisConfig, GenesisForCausalLM, GenesisModel
from genesis_hf.config import PretrainRecipe, parse_recipe
from genesis_hf.errors import UserError
from genesis_hf.modeling import model_config, parameter_count


def tiny(**changes) -> GenesisForCausalLM:
    torch.manual_seed(0)
    return GenesisForCausalLM(model_config({**TINY_MODEL, "vocab_size": 384, **changes}))


def llama_of(model: GenesisForCausalLM) -> LlamaForCausalLM:
    values = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    llama = LlamaForCausalLM(LlamaConfig(**values))
    llama.load_state_dict(model.state_dict(), strict=True)
    return llama


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [("genesis-1b", 1_000_441_344), ("genesis-1b-run1", 1_002_522_624), ("auto-g-nano-1b", 1_050_002_688)],
)
def test_reference_recipes_have_exactly_the_published_parameters(recipe, parameters):
    (parsed,) = parse_recipe(PretrainRecipe, argv=["--config", str(ROOT / f"recipes/{recipe}/pretrain.yaml")])
    assert parameter_count(model_config(parsed.model)) == parameters


def test_import_registers_with_auto_classes(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is GenesisConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is GenesisModel
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is genesis_hf.GenesisForCausalLM
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_keys_logits_loss_and_gradients_are_llamas(tied):
    model = tiny(tie_word_embeddings=tied)
    llama = llama_of(model)
    ids = torch.randint(0, 384, (3, 40))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.2, -100)
    assert torch.equal(model.eval()(ids).logits, llama.eval()(ids).logits)
    ours, theirs = model.train()(ids, labels=labels), llama.train()(ids, labels=labels, use_cache=False)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-6, atol=0)
    assert ours.logits is None
    ours.loss.backward()
    theirs.loss.backward()
    for (name, mine), reference in zip(model.named_parameters(), llama.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("vocab", "hidden", "layers"), [(384, 64, 2), (4096, 128, 4), (8192, 512, 1)])
def test_first_loss_is_ln_vocab(tied, vocab, hidden, layers):
    model = tiny(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, tie_word_embeddings=tied)
    ids = torch.randint(0, vocab, (8, 64))
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(vocab), rel=0.01)


def test_residual_projections_start_smaller_with_depth():
    layer = tiny(num_hidden_layers=8).model.layers[0]
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_training_never_holds_all_logits_in_fp32():
    model = tiny().train()
    ids = torch.randint(0, 384, (8, 65))
    rows = 8 * 64  # a quarter of which is more than the weight's 64 columns

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (384,) and tensor.dtype == torch.float32:
                    self.largest = max(self.largest, tensor.numel() // 384)
            return out

    with Watch() as watch:
        model(ids, labels=ids).loss.backward()
    assert 0 < watch.largest <= rows // 4


def test_bf16_autocast_loss_and_gradients_are_close():
    model = tiny().train()
    ids = torch.randint(0, 384, (3, 40))
    exact = model(ids, labels=ids).loss
    exact.backward()
    reference = model.lm_head.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(ids, labels=ids).loss
    rough.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=1e-3, atol=0)
    error = (model.lm_head.weight.grad - reference).norm() / reference.norm()
    assert error < 0.02


def test_num_items_divides_the_summed_loss():
    model = tiny()
    ids = torch.randint(0, 384, (2, 30))
    mean = model(ids, labels=ids).loss
    torch.testing.assert_close(model(ids, labels=ids, num_items_in_batch=7).loss, mean * 58 / 7)


def test_packed_documents_attend_only_to_themselves():
    model = tiny().train()
    first, second = torch.randint(0, 384, (1, 17)), torch.randint(0, 384, (1, 23))
    packed = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(17), torch.arange(23)])[None]
    together = model.model(packed, position_ids=positions).last_hidden_state
    alone = model.model(second).last_hidden_state
    torch.testing.assert_close(together[:, 17:], alone, rtol=1e-5, atol=1e-5)
    without = model.model(packed).last_hidden_state
    assert (without[:, 17:] - alone).abs().max() > 1e-3


def test_no_cache_in_training_and_a_cache_in_generation():
    model = tiny()
    ids = torch.randint(0, 384, (1, 8))
    assert model.train().model(ids, use_cache=True).past_key_values is None
    assert model.eval()(ids, use_cache=True).past_key_values is not None
    assert model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 12)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hiden_size": 64}, "did you mean `hidden_size`"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "multiple of the number of attention"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ("no/such/folder", "no/such/folder"),
    ],
)
def test_a_bad_model_key_is_named(values, words):
    with pytest.raises(UserError, match=words):
        model_config(values)
