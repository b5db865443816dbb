"""The slow truth: what the kernels must compute, in plain PyTorch, readable from top to bottom.

Every function dequantises in float32, as the formats define it, and then computes in `dtype` (float64 by default).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pefttool_kernels.layout import BLOCK, NESTED_BLOCK, EightBitWeight, FourBitWeight


def scales_4bit(weight: FourBitWeight) -> Tensor:
    """[blocks], float32: the scale of every block, nested or not."""
    if weight.nested_absmax is None:
        return weight.absmax
    assert weight.nested_code is not None and weight.offset is not None
    outer = weight.nested_absmax.repeat_interleave(NESTED_BLOCK)[: weight.absmax.numel()]
    return weight.nested_code[weight.absmax.long()] * outer + weight.offset


def dequantize_4bit(weight: FourBitWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, K] in `dtype`: one product in float32, rounded once."""
    packed = weight.packed.reshape(-1)
    nibbles = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[: weight.numel]
    scales = scales_4bit(weight).repeat_interleave(BLOCK)[: weight.numel]
    return (weight.code[nibbles.long()] * scales).to(dtype).view(weight.out_features, weight.in_features)


def dequantize_8bit(weight: EightBitWeight, dtype: torch.dtype = torch.float64) -> Tensor:
    """[N, K] in `dtype`; the product and the division happen in `dtype` too."""
    return weight.values.to(dtype) * weight.scales.to(dtype)[:, None] / 127


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scaling: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """x [..., K] W^T + bias + scaling (x A^T) B^T -> [..., N], all in `dtype`; W [N, K], A [r, K], B [N, r]."""
    x = x.to(dtype)
    output = x @ weight.to(dtype).T
    if bias is not None:
        output = output + bias.to(dtype)
    if lora_a is not None and lora_b is not None:
        output = output + scaling * (x @ lora_a.to(dtype).T) @ lora_b.to(dtype).T
    return output


def cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of hidden [T, H] times weight [V, H], in float64, and the number of labels trained."""
    logits = linear(hidden, weight, bias)
    trained = int((labels != ignore_index).sum())
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum"), trained
