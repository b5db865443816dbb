"""The stand-ins of quantised layers: as many bytes, the same outputs' shape, no real storage needed."""

import pytest
import torch
from bnb_models import QUANTIZERS, llama, load, quantised, tensors
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)


@pytest.mark.parametrize("options", [{}, {"double_quant": False}], ids=["nested", "plain"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_skeleton_holds_as_many_bytes_as_the_layer(llama, name, options):
    options = {} if name == "int8" else options
    quantizer = QUANTIZERS[name]
    shapes = {n: m for n, m in LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).named_modules()}
    for module_name, module in quantised(load(llama, name, **options)).items():
        skeleton = quantizer.skeleton(shapes[module_name], quantizer.Options(**options))
        real = sum(t.untyped_storage().nbytes() for t in tensors(module).values())
        assert sum(p.untyped_storage().nbytes() for p in skeleton.parameters()) == real
        assert not any(p.requires_grad for p in skeleton.parameters())
        assert (skeleton.in_features, skeleton.out_features) == (module.in_features, module.out_features)
        assert skeleton.weight.shape == module.weight.shape and skeleton.weight.dtype == module.weight.dtype
        x = torch.randn(2, 3, module.in_features, dtype=torch.bfloat16, requires_grad=True)
        ours, theirs = skeleton(x), module.train()(x)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        ours.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_skeleton_answers_in_the_dtype_of_the_layer(llama, name, bias):
    """A float32 input to a bfloat16 layer: 4-bit layers answer in float32, int8 in its bias's dtype."""
    layer = load(llama, name).model.layers[0]
    module = layer.self_attn.q_proj if bias else layer.mlp.up_proj
    linear = nn.Linear(module.in_features, module.out_features, bias=bias, dtype=torch.bfloat16)
    skeleton = QUANTIZERS[name].skeleton(linear, QUANTIZERS[name].Options())
    x = torch.randn(3, module.in_features)
    assert skeleton(x).dtype == module.train()(x).dtype


@pytest.mark.parametrize("name", QUANTIZERS)
def test_skeletons_run_on_fake_tensors_under_an_adapter(llama, name):
    """As simulation does it: built on meta, given fake storage, adapted by peft, one training step."""
    quantizer, options = QUANTIZERS[name], QUANTIZERS[name].Options()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(llama)).to(torch.bfloat16)
        for module_name, module in list(model.model.named_modules()):
            if isinstance(module, nn.Linear):
                model.model.set_submodule(module_name, quantizer.skeleton(module, options))
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {
            n: torch.empty_like(t, device="cpu").requires_grad_(t.requires_grad)
            for n, t in (*adapted.named_parameters(), *adapted.named_buffers())
        }
        ids = torch.zeros(2, 9, dtype=torch.long)
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        with autocast:
            output = torch.func.functional_call(adapted, fakes, kwargs={"input_ids": ids, "labels": ids})
        output.loss.backward()
    assert output.logits.shape == (2, 9, 300)
    trained = {n for n, t in fakes.items() if t.grad is not None}
    assert trained == {n for n in fakes if "lora_" in n}


# -- the plugin
