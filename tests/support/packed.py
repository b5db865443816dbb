"""Weights quantised by bitsandbytes, the values they stand for, and the error that tests of kernels are judged by."""

from __future__ import annotations

import bitsandbytes.functional as library
import torch
from torch import Tensor

from pefttool_kernels.layout import EightBitWeight, FourBitWeight

#: Largest relative Frobenius error against float64 of a result that is rounded once.
WORST = {torch.bfloat16: 2.2e-3, torch.float16: 3.5e-4, torch.float32: 1e-5}


def error(result: Tensor, truth: Tensor) -> float:
    """Relative Frobenius error."""
    truth = truth.double()
    scale = float(truth.norm())
    difference = float((result.double() - truth).norm())
    return difference / scale if scale else difference


def four_bit(
    n: int, k: int, dtype: torch.dtype = torch.bfloat16, quant_type: str = "nf4", nested: bool = True, seed: int = 0
) -> tuple[FourBitWeight, Tensor]:
    """A packed weight [n, k], and bitsandbytes' own dequantised one in `dtype`."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).mul_(0.05).to(dtype)
    packed, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=quant_type)
    # bitsandbytes takes a single packed byte for a transposed weight.
    return FourBitWeight.of(packed, state), library.dequantize_4bit(packed, state).reshape(n, k)


def eight_bit(n: int, k: int, seed: int = 0) -> tuple[EightBitWeight, Tensor]:
    """A row-wise int8 weight [n, k], and the values it stands for in float64."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).mul_(0.05).half()
    values, scales, _ = library.int8_vectorwise_quant(weight)
    return EightBitWeight(values, scales), values.double() * scales.double()[:, None] / 127
