"""W [N, K] from 4 bits into a workspace, in one launch, nested scales too; equal to bitsandbytes bit by bit."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pefttool_kernels.layout import BLOCK, FourBitWeight
from pefttool_kernels.triton._launch import OPTIONS, UnsupportedOperand, four_bit_arguments, require, supports_4bit
from pefttool_kernels.triton._tl import CODES_PER_WORD, block_scales, lane_table, nested_offset, unpack_4bit

NUM_WARPS = 4
NUM_STAGES = 1  # there is no loop
WORDS_PER_PROGRAM = 512
WORDS_PER_BLOCK = tl.constexpr(BLOCK // CODES_PER_WORD.value)


@triton.jit(do_not_specialize=["first_block", "blocks"])
def dequantize_4bit_kernel(
    words,
    absmax,
    code,
    nested_absmax,
    nested_code,
    offset,
    out,
    first_block,
    blocks,
    WORDS: tl.constexpr,
):
    """WORDS int32 words of 8 codes each: weights of `blocks` blocks of scales, from `first_block` on, to the front of
    `out`. Counts are in blocks, so that the compiler knows that words come in eights and loads stay whole."""
    dtype = out.dtype.element_ty
    first = tl.program_id(0) * WORDS
    local = tl.arange(0, WORDS)
    left = blocks * WORDS_PER_BLOCK - first  # words that are still to be done
    word = first_block * WORDS_PER_BLOCK + first + local
    packed = tl.load(words + word, mask=local < left, other=0)
    table = lane_table(code)
    shift = nested_offset(offset)
    scales = block_scales(absmax, nested_absmax, nested_code, shift, word // WORDS_PER_BLOCK, local < left)
    weights = unpack_4bit(packed[:, None], scales[:, None], table, code, dtype)
    weights = tl.reshape(weights, (WORDS * CODES_PER_WORD,))
    element = tl.arange(0, WORDS * CODES_PER_WORD)
    tl.store(out + first.to(tl.int64) * CODES_PER_WORD + element, weights, mask=element < left * CODES_PER_WORD)


def constants() -> dict[str, Any]:
    """What is compiled into the kernel."""
    return {"WORDS": WORDS_PER_PROGRAM}


def dequantize_4bit(
    weight: FourBitWeight, dtype: torch.dtype, out: Tensor | None = None, rows: tuple[int, int] | None = None
) -> Tensor:
    """W [N, K], or its rows from rows[0] up to rows[1], in `dtype` (bfloat16 or float16).

    out: a contiguous workspace in `dtype` of at least as many elements, of which a view is returned; a new tensor is
    made if it is left out. UnsupportedOperand for a weight that the kernels cannot read or an `out` that is too small.
    """
    first, last = rows or (0, weight.out_features)
    if not 0 <= first <= last <= weight.out_features:
        raise UnsupportedOperand(f"rows {first} to {last} of a weight that has {weight.out_features}")
    require(supports_4bit(weight, dtype))
    shape = (last - first, weight.in_features)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=weight.packed.device)
    if out.dtype != dtype or not out.is_contiguous() or out.numel() < shape[0] * shape[1]:
        raise UnsupportedOperand(f"out must be contiguous, {dtype}, and hold {shape[0] * shape[1]} values")
    out = out.view(-1)[: shape[0] * shape[1]].view(shape)
    blocks_per_row = weight.in_features // BLOCK
    blocks = shape[0] * blocks_per_row
    if blocks == 0:
        return out
    with torch.cuda.device_of(out):
        dequantize_4bit_kernel[(triton.cdiv(blocks * WORDS_PER_BLOCK.value, WORDS_PER_PROGRAM),)](
            **four_bit_arguments(weight),
            out=out,
            first_block=first * blocks_per_row,
            blocks=blocks,
            **constants(),
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
            **OPTIONS,
        )
    return out
