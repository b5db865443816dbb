"""RMSNorm for training on a CPU: the same output and gradient as transformers' own, with less kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from pefttool.nn import rms_norm


def norm(kind: Any = LlamaRMSNorm, width: int = 33, dtype: torch.dtype = torch.float32) -> Any:
    layer = kind(width, 1e-5)
    layer.weight.data = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return layer.to(dtype).requires_grad_(False).train()


def quick(layer: Any) -> Any:
    changed = copy.deepcopy(layer)
    rms_norm.install(changed)
    return changed


def results(layer: Any, x: Tensor, upstream: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    return [output.detach(), *torch.autograd.grad(output, x, upstream.to(output.dtype))]


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(shape, generator=generator) for _ in range(2))
    return (3 * x).to(dtype), upstream.to(dtype)


@pytest.mark.parametrize("shape", [(1, 33), (2, 7, 33), (5, 1, 1, 33)])
def test_output_and_gradient_in_float32(shape):
    x, upstream = tensors(shape, torch.float32)
    layer = norm()
    truth = results(layer.double(), x.double(), upstream.double())
    for found, expected in zip(results(quick(norm()), x, upstream), truth, strict=True):
        assert float((found - expected).norm() / expected.norm()) <= 1e-6


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_in_bfloat16_it_is_no_further_from_the_truth_than_transformers_own(weights):
    x, upstream = tensors((4, 50, 576), torch.bfloat16)
    layer = norm(width=576, dtype=torch.bfloat16).to(weights)
    truth = results(copy.deepcopy(layer).double(), x.double(), upstream.double())
    errors = [
        torch.stack([(r.double() - t).norm() for r, t in zip(results(kind, x, upstream), truth, strict=True)])
        for kind in (quick(layer), layer)
    ]
    assert results(quick(layer), x, upstream)[0].dtype == layer(x).dtype
    assert float((errors[0] / errors[1]).log().mean().exp()) <= 1 + 1e-6


def test_copies_of_llamas_norm_are_known_and_others_are_left_alone():
    model = nn.ModuleList([norm(), norm(Qwen2RMSNorm), norm(GemmaRMSNorm), nn.RMSNorm(33), nn.LayerNorm(33)])
    rms_norm.install(model)
    quicker = [isinstance(module, rms_norm._Quick) for module in model]
    assert quicker == [True, True, False, False, False]
    assert [type(module).__name__ for module in model][:2] == ["LlamaRMSNorm", "Qwen2RMSNorm"]
    assert type(LlamaRMSNorm(3)) is LlamaRMSNorm  # the class is as it was
    assert list(model.state_dict()) == [f"{i}.weight" for i in range(5)] + ["4.bias"]


def test_evaluation_and_norms_that_train_are_transformers_own():
    x, upstream = tensors((3, 33), torch.bfloat16)
    layer = norm(dtype=torch.bfloat16)
    assert quick(layer).eval()(x).equal(layer(x))
    training = quick(layer)
    training.weight.requires_grad_(True)
    output = training(x)
    (gradient,) = torch.autograd.grad(output, training.weight, upstream)
    assert gradient.isfinite().all()


def test_only_the_input_and_a_number_a_row_are_kept():
    x, _ = tensors((9, 33), torch.bfloat16)
    layer, kept = quick(norm(dtype=torch.bfloat16)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, t.numel())) or t, lambda t: t):
        layer(x.requires_grad_())
    assert sorted(n for _, n in kept) == [9, 33, 9 * 33] and (torch.bfloat16, 9 * 33) in kept
