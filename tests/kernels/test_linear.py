"""A plain linear layer with its update inside: output and every gradient against float64, and against peft's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from packed import error
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pefttool_kernels import linear, lora
from pefttool_kernels.ops import LowRank

#: tokens, in_features, out_features, rank
SHAPES = [((1,), 3, 5, 1), ((7, 11), 33, 65, 3), ((2, 1, 9), 64, 17, 16), ((130,), 129, 257, 20)]


def tensors(shape: tuple[int, ...], k: int, n: int, r: int, bias: bool) -> list[Tensor]:
    """x, W, bias, A, B, upstream in float64, rounded to bfloat16 so that every dtype starts from the same."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(*shape, k), (n, k), (n,), (r, k), (n, r), (*shape, n)]
    made = [torch.randn(size, generator=generator).bfloat16().double() for size in sizes]
    if not bias:
        made[2] = torch.zeros(n, dtype=torch.float64)
    return made


def composed(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias) + 2.0 * nn.functional.linear(nn.functional.linear(x, a), b)


def truth(made: list[Tensor]) -> list[Tensor]:
    x, weight, bias, a, b, upstream = made
    wanted = [t.clone().requires_grad_() for t in (x, a, b)]
    output = composed(wanted[0], weight, bias, wanted[1], wanted[2])
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream)]


def ours(made: list[Tensor], dtype: torch.dtype, bias: bool) -> list[Tensor]:
    """x and W in `dtype`, A and B in float32, under autocast where `dtype` is narrow."""
    x, weight, own_bias, a, b, upstream = made
    x, a, b = x.to(dtype).requires_grad_(), a.float().requires_grad_(), b.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = linear.product(x, weight.to(dtype), own_bias.to(dtype) if bias else None, LowRank(a, b, 2.0))
    assert output.dtype == dtype
    return [output.detach(), *torch.autograd.grad(output, (x, a, b), upstream.to(dtype))]


def pefts(made: list[Tensor], bias: bool) -> list[Tensor]:
    """peft's composition under autocast."""
    x, weight, own_bias, a, b, upstream = made
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=torch.bfloat16)
    base.weight.data = weight.bfloat16()
    if bias:
        base.bias.data = own_bias.bfloat16()
    config = LoraConfig(r=a.shape[0], lora_alpha=2 * a.shape[0], target_modules=["0"])
    layer: Any = get_peft_model(nn.Sequential(base), config).base_model.model[0]  # type: ignore[arg-type]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a.float(), b.float()
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    wanted = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream.bfloat16())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "k", "n", "r"), SHAPES)
def test_output_and_gradients_in_float32(shape, k, n, r, bias):
    made = tensors(shape, k, n, r, bias)
    for found, expected in zip(ours(made, torch.float32, bias), truth(made), strict=True):
        assert found.shape == expected.shape and error(found, expected) <= 1e-6


def test_in_bfloat16_it_is_no_further_from_the_truth_than_pefts_composition():
    """Geometric mean over shapes, of output and gradients alike."""
    logs: dict[int, list[float]] = {}
    for *shape, bias in [(*s, b) for s in SHAPES[1:] for b in (False, True)]:
        made = tensors(*shape, bias)
        mine, theirs = ours(made, torch.bfloat16, bias), pefts(made, bias)
        for i, (own, its, expected) in enumerate(zip(mine, theirs, truth(made), strict=True)):
            logs.setdefault(i, []).append(math.log(error(own, expected) / error(its, expected)))
    ratios = [math.exp(sum(values) / len(values)) for values in logs.values()]
    assert all(ratio <= 1 + 1e-6 for ratio in ratios), ratios


def tiny(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.1,  # with the usual 0.02 attention is uniform, and gradients of its scores cancel out
    )
    torch.manual_seed(1)
    known: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    return get_peft_model(LlamaForCausalLM(config).to(dtype), LoraConfig(**{**known, **options}))


def gradients(model: Any) -> dict[str, Tensor]:
    ids = torch.arange(60).view(3, 20)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_gradient_of_a_model_is_pefts():
    expected = gradients(tiny())
    model = tiny()
    assert len(lora.fuse(model)) == 14
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) == 28
    assert all(error(found[name], expected[name]) <= 1e-5 for name in expected)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many products had an update inside."""
    calls: list[int] = []
    real = linear.product

    def spy(*arguments: Any) -> Tensor:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(linear, "product", spy)
    return calls


def test_what_cannot_be_inside_is_composed_by_peft(products):
    ids = torch.arange(9)[None]
    plain = tiny()
    model = tiny()
    lora.fuse(model)
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(model(ids).logits, plain(ids).logits) and products == []
    dropping = tiny(lora_dropout=0.5)
    lora.fuse(dropping)
    dropping.train()(ids)
    assert products == []
    training = tiny()
    lora.fuse(training)
    training.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.requires_grad_(True)
    training(ids)
    assert len(products) == 13


def test_outside_autocast_a_narrow_base_is_composed_by_peft(products):
    """There peft computes the update in float32: so it stays."""
    model, ids = tiny(torch.bfloat16), torch.arange(9)[None]
    expected = model(ids).logits
    lora.fuse(model)
    assert torch.equal(model(ids).logits, expected) and products == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids)
    assert len(products) == 14


def test_a_merged_and_unloaded_model_is_plain(products):
    model = tiny()
    lora.fuse(model)
    ids = torch.arange(9)[None]
    expected = model(ids).logits
    merged = model.merge_and_unload()
    assert type(merged.model.layers[0].mlp.up_proj) is nn.Linear
    assert error(merged(ids).logits, expected) <= 1e-5


def test_of_the_input_only_itself_and_its_projection_are_kept():
    x, a, b = torch.randn(50, 64, requires_grad=True), torch.randn(4, 64), torch.randn(32, 4)
    weight = torch.randn(32, 64)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in (x, weight, a)}:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        linear.product(x, weight, None, LowRank(a.requires_grad_(), b.requires_grad_(), 2.0))
    assert sorted(kept.values()) == [b.numel(), 50 * 4]
