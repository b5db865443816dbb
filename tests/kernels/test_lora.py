"""peft's LoRA on our layers: inside the product where it is one plain update, composed by peft where it is not."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from packed import error
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pefttool_kernels import lora, modules, ops
from pefttool_kernels.selftest import reference

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny(kind: str, dtype: torch.dtype = torch.bfloat16, biases: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_bias=biases,
        initializer_range=0.1,  # with the usual 0.02 attention is uniform, and gradients of its scores cancel out
    )
    model = LlamaForCausalLM(config).to(dtype)
    for name, module in list(model.model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        new: Any
        has_bias = module.bias is not None
        if kind == "int8":
            new = bitsandbytes.nn.Linear8bitLt(module.in_features, module.out_features, has_bias, False)
            new.weight = bitsandbytes.nn.Int8Params(module.weight.data.float(), False, has_fp16_weights=False)
        else:
            new = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, has_bias, compute_dtype=dtype, quant_type=kind
            )
            new.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, quant_type=kind)
            new.support_avx512bf16_for_cpu = False
        if has_bias:
            new.bias = nn.Parameter(torch.randn_like(module.bias), requires_grad=False)
        model.model.set_submodule(name, new.to("cpu"))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind != "int8", kind == "int8"
    return model


def adapted(model: nn.Module, **options: Any) -> Any:
    torch.manual_seed(1)
    known: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(**{**known, **options}))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    ids = torch.arange(60).view(3, 20)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def fused(kind: str, **options: Any) -> tuple[Any, list[nn.Module]]:
    model = tiny(kind)
    modules.fuse(model)
    model = adapted(model, **options)
    return model, lora.fuse(model)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every product with a stored weight: whether an update was added inside it."""
    seen: list[bool] = []
    for name in ("linear_4bit", "linear_8bit"):
        original = getattr(ops, name)

        def spy(*arguments: Any, original: Any = original) -> Tensor:
            seen.append(arguments[3] is not None)
            return original(*arguments)

        monkeypatch.setattr(ops, name, spy)
    return seen


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_every_update_of_a_plain_adapter_is_added_inside_the_product(kind, products):
    model, layers = fused(kind)
    assert len(layers) == 14
    gradients(model.train())
    assert products == [True] * 14


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_in_float32_every_gradient_is_the_dense_models(kind):
    quantised = tiny(kind, torch.float32)
    modules.fuse(quantised)
    dense = tiny("nf4", torch.float32)
    for name, module in list(dense.model.named_modules()):
        if not isinstance(module, bitsandbytes.nn.Linear4bit):
            continue
        stored = quantised.model.get_submodule(name)
        view = modules.view(stored)
        weight = reference.dequantize_8bit(view) if kind == "int8" else reference.dequantize_4bit(view)
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        plain.weight.data = weight.float()
        plain.bias = stored.bias
        dense.model.set_submodule(name, plain)
    dense.is_loaded_in_4bit = False
    expected = gradients(adapted(dense))
    model = adapted(quantised)
    assert lora.fuse(model)
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) == 28
    for name in expected:
        assert error(found[name], expected[name]) <= 1e-5, name


CONDITIONS: dict[str, Any] = {
    "dropout": lambda: fused("nf4", lora_dropout=0.2)[0].train(),
    "DoRA": lambda: fused("nf4", use_dora=True)[0],
    "LoRA with a bias": lambda: fused("nf4", lora_bias=True)[0],
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_otherwise_peft_composes_it(name, products):
    gradients(CONDITIONS[name]())
    assert products and not any(products)


def test_dropout_counts_in_training_only(products):
    model, _ = fused("nf4", lora_dropout=0.2)
    with torch.no_grad():
        model.eval()(torch.arange(9)[None])
    assert products == [True] * 14


def test_two_active_adapters_are_composed_and_one_is_not(products):
    model, _ = fused("nf4")
    model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    assert lora.fuse(model) == []  # the layers are ours already
    model.base_model.set_adapter(["default", "second"])
    both = model(torch.arange(9)[None]).logits
    assert products == [False] * 14
    products.clear()
    model.base_model.set_adapter("second")
    assert not torch.equal(model(torch.arange(9)[None]).logits, both)
    assert products == [True] * 14


def test_a_disabled_adapter_leaves_the_bases_own_answers(products):
    model, _ = fused("nf4")
    plain = tiny("nf4")
    modules.fuse(plain)
    expected = plain(torch.arange(9)[None]).logits
    products.clear()
    with model.disable_adapter():
        assert torch.equal(model(torch.arange(9)[None]).logits, expected)
    assert products == [False] * 14


def test_hooks_on_the_base_layer_are_called(products):
    model, layers = fused("nf4")
    calls: list[int] = []
    handle = layers[0].base_layer.register_forward_hook(lambda *_: calls.append(1))
    model(torch.arange(9)[None])
    assert calls == [1] and products.count(False) == 1
    handle.remove()
    products.clear()
    model(torch.arange(9)[None])
    assert products == [True] * 14


def test_a_merged_adapter_is_not_added_again(products):
    model, layers = fused("nf4")
    with pytest.warns(UserWarning, match="rounding errors"):
        layers[0].merge()
    model(torch.arange(9)[None])
    assert products.count(False) == 1


def test_linear_layers_that_are_not_ours_are_left_to_peft():
    model = adapted(tiny("nf4"))
    assert lora.fuse(model) == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_fewer_bytes_are_kept_for_the_backward_pass_than_by_peft(kind):
    """peft keeps the input in float32 beside the one in 16 bits."""

    def kept(model: nn.Module) -> int:
        parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(torch.arange(80).view(2, 40), use_cache=False).logits
        assert output.requires_grad
        return sum(sizes.values())

    ours, _ = fused(kind)
    assert kept(ours) < 0.8 * kept(adapted(tiny(kind)))
