"""Our forward pass in bitsandbytes' layers: the same storage, the same numbers, in training and in evaluation."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from packed import WORST, error
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from pefttool_kernels import modules
from pefttool_kernels.layout import EightBitWeight, RepackedWeight, UnsupportedLayout
from pefttool_kernels.selftest import reference


def linear_4bit(k: int = 128, n: int = 33, quant_type: str = "nf4", bias: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        k, n, bias=bias, quant_type=quant_type, **{"compute_dtype": torch.bfloat16, **options}
    )
    return layer.to("cpu")


def linear_8bit(k: int = 128, n: int = 33, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return bitsandbytes.nn.Linear8bitLt(k, n, bias=bias, has_fp16_weights=False).to("cpu")


def storage(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


LAYERS = [linear_4bit, lambda: linear_4bit(quant_type="fp4"), linear_8bit]


@pytest.mark.parametrize("make", LAYERS)
def test_another_class_is_all_that_it_takes(make):
    layer = make()
    attributes, stored, kind = set(vars(layer)), storage(layer), type(layer)
    x = torch.randn(7, 128, dtype=torch.bfloat16)
    layer.__class__ = modules.FUSED[kind]
    first = layer(x)
    assert set(vars(layer)) == attributes
    assert same(storage(layer), stored)
    layer.__class__ = kind
    expected = layer.train()(x)
    assert error(first.detach(), expected.detach()) <= 2 * WORST[torch.bfloat16]


@pytest.mark.parametrize("make", LAYERS)
def test_evaluation_between_steps_changes_neither_bytes_nor_gradients(make):
    layer = make()
    modules.fuse(nn.Sequential(layer))
    x = torch.randn(5, 128, dtype=torch.bfloat16, requires_grad=True)
    layer.train()(x).sum().backward()
    before, stored = x.grad.clone(), storage(layer)
    x.grad = None
    layer.support_avx512bf16_for_cpu = True  # what bitsandbytes itself would repack by
    with torch.no_grad():
        evaluated = layer.eval()(x)
    trained = layer.train()(x)
    trained.sum().backward()
    assert torch.equal(x.grad, before)
    assert torch.equal(evaluated, trained)
    assert same(storage(layer), stored)
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        assert layer.support_avx512bf16_for_cpu is False


@pytest.mark.parametrize("make", LAYERS)
def test_the_bias_keeps_its_dtype_whatever_comes_in(make):
    layer = make()
    modules.fuse(nn.Sequential(layer))
    before = layer.bias.detach().clone()
    output = layer(torch.randn(3, 128, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16 and layer.bias.dtype == before.dtype == torch.float32
    assert torch.equal(layer.bias, before)
    assert layer(torch.randn(3, 128)).dtype == torch.float32


def test_the_compute_dtype_is_the_products():
    layer = linear_4bit(bias=False, compute_dtype=torch.float32)
    modules.fuse(nn.Sequential(layer))
    weight = reference.dequantize_4bit(modules.view(layer))
    x = torch.randn(9, 128)
    assert error(layer(x), x.double() @ weight.double().T) <= 1e-6
    wide = layer(x.bfloat16())
    assert wide.dtype == torch.bfloat16
    assert error(wide, x.bfloat16().double() @ weight.double().T) <= WORST[torch.bfloat16]


def test_layers_that_are_not_exactly_bitsandbytes_own_are_left_alone():
    class Mine(bitsandbytes.nn.Linear4bit):
        pass

    mine = Mine(64, 8)
    model = nn.Sequential(linear_4bit(), nn.Linear(4, 4), mine, linear_8bit())
    assert len(modules.fuse(model, "tiles")) == 2
    assert type(mine) is Mine
    assert [getattr(layer, "backend", None) for layer in model] == ["tiles", None, None, "tiles"]


def test_a_weight_that_is_not_quantised_yet_goes_through_bitsandbytes(caplog):
    layer = bitsandbytes.nn.Linear8bitLt(64, 8, has_fp16_weights=True)
    modules.fuse(nn.Sequential(layer))
    with caplog.at_level(logging.WARNING, "pefttool_kernels.modules"):
        output = layer(torch.randn(2, 64))
    assert output.shape == (2, 8)
    assert "left to bitsandbytes: a weight of torch.float32" in caplog.text
    layer.backend = "tiles"
    with pytest.raises(UnsupportedLayout, match="not been quantised yet"):
        layer(torch.randn(2, 64))


def test_another_block_size_is_left_to_bitsandbytes_and_said_once(caplog):
    weight = bitsandbytes.nn.Params4bit(torch.randn(8, 128), requires_grad=False, quant_type="nf4", blocksize=128)
    layer = linear_4bit(128, 8, bias=False)
    layer.weight = weight.to("cpu")
    expected = layer.train()(torch.ones(2, 128, dtype=torch.bfloat16))
    modules.fuse(nn.Sequential(layer))
    modules._say.cache_clear()
    with caplog.at_level(logging.WARNING, "pefttool_kernels.modules"):
        for _ in range(2):
            assert torch.equal(layer.eval()(torch.ones(2, 128, dtype=torch.bfloat16)), expected)
    assert caplog.text.count("block size 128") == 1
    layer.backend = "tiles"
    with pytest.raises(UnsupportedLayout, match="block size 128"):
        layer(torch.ones(2, 128, dtype=torch.bfloat16))


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="bitsandbytes repacks on AVX512-BF16 only")
def test_a_weight_that_was_repacked_is_refused_loudly():
    layer = linear_4bit(128, 64, bias=False).eval()
    with torch.no_grad():
        layer(torch.ones(2, 128, dtype=torch.bfloat16))
    assert layer.weight.quant_state.packing_format_for_cpu
    modules.fuse(nn.Sequential(layer))
    with pytest.raises(RepackedWeight, match=r"was repacked by bitsandbytes.*load the model again"):
        layer(torch.ones(2, 128, dtype=torch.bfloat16))


def test_weights_swapped_between_forward_and_backward_give_the_gradient_of_the_forward():
    one, other = linear_4bit(), linear_4bit()
    other.weight = bitsandbytes.nn.Params4bit(torch.randn(33, 128), requires_grad=False, quant_type="nf4").to("cpu")
    modules.fuse(nn.Sequential(one, other))
    x = torch.randn(4, 128, dtype=torch.bfloat16, requires_grad=True)
    one(x).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    output = one(x)
    one.weight = other.weight
    output.sum().backward()
    assert torch.equal(x.grad, expected)
    x.grad = None
    one(x).sum().backward()
    assert not torch.equal(x.grad, expected)


def test_copies_and_reloaded_states_compute_the_same():
    layer = linear_4bit()
    modules.fuse(nn.Sequential(layer))
    x = torch.randn(4, 128, dtype=torch.bfloat16)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("make", LAYERS)
def test_layers_compile_without_a_break(make):
    layer = make()
    modules.fuse(nn.Sequential(layer))
    x = torch.randn(5, 128, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    expected, x.grad = x.grad, None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_transformers_reads_the_saved_checkpoint(tmp_path: Path, kind: str):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
    )
    layers = modules.fuse(model)
    assert len(layers) == 7
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
    model.save_pretrained(tmp_path / "quantised")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", device_map="cpu")
    assert {type(m) for m in again.modules()}.isdisjoint(modules.FUSED.values())
    stored = {name: modules.view(m) for name, m in model.named_modules() if type(m) in modules.FUSED.values()}
    for name, module in again.named_modules():
        if name in stored:
            for one, two in zip(modules.view(module).arguments(), stored[name].arguments(), strict=True):
                assert torch.equal(one, two) if isinstance(one, Tensor) else one == two
    modules.fuse(again)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)


def test_the_view_of_an_8_bit_layer_survives_bitsandbytes_first_use():
    layer = linear_8bit()
    before = modules.view(layer)
    layer.train()(torch.randn(2, 128, dtype=torch.bfloat16))  # bitsandbytes moves the scales from weight to state
    after = modules.view(layer)
    assert isinstance(after, EightBitWeight)
    assert torch.equal(before.values, after.values) and torch.equal(before.scales, after.scales)


@pytest.mark.parametrize("make", LAYERS)
def test_what_comes_out_can_be_changed_in_place(make):
    layer = make()
    layer.__class__ = modules.FUSED[type(layer)]
    x = torch.randn(2, 3, 128, dtype=torch.bfloat16, requires_grad=True)
    (doubled,) = torch.autograd.grad(layer(x).mul_(2).sum(), x)
    (expected,) = torch.autograd.grad((layer(x) * 2).sum(), x)
    assert torch.equal(doubled, expected) and doubled.any()
