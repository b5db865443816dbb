"""y = x W^T + u B^T + bias, with W in 4 bits: dequantised in registers, tile by tile, and never written to memory."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.triton._launch import (
    check_operands,
    common_rank,
    config_for,
    four_bit_arguments,
    launch_options,
    require,
    supports_4bit,
    tile_constants,
)
from pefttool_kernels.triton._tl import (
    BLOCK,
    CODES_PER_WORD,
    add_low_rank,
    block_scales,
    cast,
    dot,
    lane_table,
    nested_offset,
    spread_scales,
    tile_position,
    unpack_4bit,
)
from pefttool_kernels.triton.configs import FORWARD, Config


@triton.jit(do_not_specialize=["m"])
def forward_4bit_kernel(
    x,
    words,
    absmax,
    code,
    nested_absmax,
    nested_code,
    offset,
    u,
    lora_b,
    bias,
    y,
    m,
    n,
    k,
    rank,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of y. words: int32 [n, k / 8]; absent tensors are None.

    Rows and columns beyond the edge are clamped to the first: they are computed and not stored, which keeps the copies
    in the loop whole. Only the last step along k may need a mask, and only if BLOCK_K is more than a block of scales.
    """
    dtype = x.dtype.element_ty
    tile_m, tile_n = tile_position(m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_rows = tl.where(rows < m, rows, 0)
    safe_columns = tl.where(columns < n, columns, 0)
    steps = tl.arange(0, BLOCK_K)
    word_steps = tl.arange(0, BLOCK_K // CODES_PER_WORD)
    block_steps = tl.arange(0, BLOCK_K // BLOCK)
    x_tile = x + safe_rows[:, None].to(tl.int64) * k + steps[None, :]
    word_tile = words + safe_columns[:, None].to(tl.int64) * (k // CODES_PER_WORD) + word_steps[None, :]

    table = lane_table(code)
    shift = nested_offset(offset)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        blocks = safe_columns[:, None] * (k // BLOCK) + (block_steps + start // BLOCK)[None, :]
        if EVEN_K:
            left = tl.load(x_tile)
            packed = tl.load(word_tile)
            scales = block_scales(absmax, nested_absmax, nested_code, shift, blocks, None)
        else:
            left = tl.load(x_tile, mask=(start + steps < k)[None, :], other=0.0)
            packed = tl.load(word_tile, mask=(start + word_steps * CODES_PER_WORD < k)[None, :], other=0)
            inside = (block_steps * BLOCK + start < k)[None, :]
            scales = block_scales(absmax, nested_absmax, nested_code, shift, blocks, inside)
        scales = spread_scales(scales, BLOCK_K // CODES_PER_WORD)
        weights = unpack_4bit(packed, scales, table, code, dtype)
        total = dot(left, tl.trans(weights), total)
        x_tile += BLOCK_K
        word_tile += BLOCK_K // CODES_PER_WORD

    if u is not None:
        total = add_low_rank(total, u, lora_b, safe_rows, safe_columns, rank, rank, 1, RANK_BLOCK)
    if bias is not None:
        total += tl.load(bias + safe_columns).to(tl.float32)[None, :]
    tl.store(
        y + rows[:, None].to(tl.int64) * n + columns[None, :],
        cast(total, dtype),
        mask=(rows < m)[:, None] & (columns < n)[None, :],
    )


def constants(config: Config, k: int) -> dict[str, Any]:
    """What is compiled into the kernel for this tile and this k."""
    return {"EVEN_K": k % config.block_k == 0, **tile_constants(config)}


def linear_4bit(
    x: Tensor,
    weight: FourBitWeight,
    bias: Tensor | None = None,
    u: Tensor | None = None,
    lora_b: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [M, K] -> x W^T + u B^T + bias, [M, N] in x's dtype (bfloat16 or float16), summed in float32.

    bias [N]; u [M, r], the input times A and the adapter's scale; lora_b [N, r]; any r >= 1. All contiguous, in x's
    dtype. UnsupportedOperand for anything else. `config`: the tile, chosen by the card if it is left out.
    """
    m, n, k = x.shape[0], weight.out_features, weight.in_features
    rank = common_rank(u, lora_b)
    require(supports_4bit(weight, x.dtype))
    operands = {"x": (x, (m, k)), "bias": (bias, (n,)), "u": (u, (m, rank)), "lora_b": (lora_b, (n, rank))}
    check_operands(x, weight.packed, operands)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return y
    config = config or config_for(x, n, FORWARD)
    with torch.cuda.device_of(x):
        forward_4bit_kernel[(config.programs(m, n),)](
            x=x,
            **four_bit_arguments(weight),
            u=u,
            lora_b=lora_b,
            bias=bias,
            y=y,
            m=m,
            n=n,
            k=k,
            rank=rank,
            **constants(config, k),
            **launch_options(config),
        )
    return y
