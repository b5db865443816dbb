"""Softmax and loss of a chunk of logits [M, V], in place: the GPU's part of linear_cross_entropy.

One program a row, which it reads twice: for its maximum and the sum of its exponentials, then for the probabilities,
which take the logits' place. Any V: the last block is masked. Offsets have 64 bits, M times V may have more than 31.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pefttool_kernels.triton._launch import OPTIONS, UnsupportedOperand
from pefttool_kernels.triton._tl import cast

NUM_WARPS = 8
NUM_STAGES = 1
BLOCK = 4096  # values that a program holds at a time
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit(do_not_specialize=["scale"])
def cross_entropy_kernel(logits, labels, losses, slopes, vocabulary, scale, BLOCK: tl.constexpr):
    """logits [M, V]; labels [M] int64; losses, slopes [M] float32; `scale` multiplies the probabilities.

    A label outside [0, V) gives NaN, in the loss and in the slope: nothing outside the row is read.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    label = tl.load(labels + row)
    known = (label >= 0) & (label < vocabulary)
    target = tl.load(logits + label, mask=known, other=float("nan")).to(tl.float32)
    columns = tl.arange(0, BLOCK)

    peak = float("-inf")
    total = 0.0
    for first in tl.range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        values = tl.load(logits + first + columns, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(values, 0))
        # Before the first finite value there is nothing to scale down: -inf less -inf would be NaN.
        shrink = tl.where(peak == higher, 1.0, tl.exp(peak - higher))
        shifted = tl.where(values == float("-inf"), float("-inf"), values - higher)
        total = total * shrink + tl.sum(tl.exp(shifted), 0)
        peak = higher
    tl.store(losses + row, peak - target + tl.log(total))
    tl.store(slopes + row, tl.exp(target - peak) / total - 1.0)

    for first in tl.range(0, vocabulary, BLOCK):
        column = first + columns
        inside = column < vocabulary
        values = tl.load(logits + column, mask=inside, other=float("-inf")).to(tl.float32)
        probabilities = tl.exp(values - peak) * (scale / total)
        probabilities = tl.where(column == label, 0.0, probabilities)
        tl.store(logits + column, cast(probabilities, logits.dtype.element_ty), mask=inside)


def constants() -> dict[str, Any]:
    """What is compiled into the kernel."""
    return {"BLOCK": BLOCK}


def softmax_in_place(logits: Tensor, labels: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(losses [M], slopes [M] = p_y - 1), float32, of logits [M, V] and labels [M] (int64, none of them ignored).

    The logits (contiguous; bfloat16, float16 or float32) become `scale` times the probabilities, and 0 at the label.
    """
    if logits.dtype not in DTYPES or logits.ndim != 2 or not logits.is_contiguous():
        raise UnsupportedOperand(f"logits {logits.dtype} {tuple(logits.shape)}: contiguous rows were expected")
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1] or not labels.is_contiguous():
        raise UnsupportedOperand(f"labels {labels.dtype} {tuple(labels.shape)}: one int64 for each row was expected")
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    slopes = torch.empty_like(losses)
    if logits.numel():
        with torch.cuda.device_of(logits):
            cross_entropy_kernel[(logits.shape[0],)](
                logits=logits,
                labels=labels,
                losses=losses,
                slopes=slopes,
                vocabulary=logits.shape[1],
                scale=scale,
                **constants(),
                num_warps=NUM_WARPS,
                num_stages=NUM_STAGES,
                **OPTIONS,
            )
    return losses, slopes
