"""dx = g W + v A, the gradient of a 4-bit product's input: W is read as it lies, dequantised in registers."""

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
from pefttool_kernels.triton.configs import BACKWARD, Config


@triton.jit(do_not_specialize=["m"])
def backward_4bit_kernel(
    g,
    words,
    absmax,
    code,
    nested_absmax,
    nested_code,
    offset,
    v,
    lora_a,
    dx,
    m,
    n,
    k,
    rank,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of dx [m, k]; the sum runs over n. words: int32 [n, k / 8]; absent tensors are None.

    EVEN: the tile's columns divide k and its steps divide n, so that nothing is masked and the copies stay whole.
    """
    dtype = g.dtype.element_ty
    tile_m, tile_k = tile_position(m, k, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_k * BLOCK_N + tl.arange(0, BLOCK_N)
    word_columns = tile_k * (BLOCK_N // CODES_PER_WORD) + tl.arange(0, BLOCK_N // CODES_PER_WORD)
    block_columns = tile_k * (BLOCK_N // BLOCK) + tl.arange(0, BLOCK_N // BLOCK)
    steps = tl.arange(0, BLOCK_K)
    safe_rows = tl.where(rows < m, rows, 0)
    g_tile = g + safe_rows[:, None].to(tl.int64) * n + steps[None, :]
    word_tile = words + steps[:, None].to(tl.int64) * (k // CODES_PER_WORD) + word_columns[None, :]

    table = lane_table(code)
    shift = nested_offset(offset)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, n, BLOCK_K):
        blocks = (start + steps)[:, None] * (k // BLOCK) + block_columns[None, :]
        if EVEN:
            left = tl.load(g_tile)
            packed = tl.load(word_tile)
            scales = block_scales(absmax, nested_absmax, nested_code, shift, blocks, None)
        else:
            inside = start + steps < n
            left = tl.load(g_tile, mask=inside[None, :], other=0.0)
            word_mask = inside[:, None] & (word_columns * CODES_PER_WORD < k)[None, :]
            packed = tl.load(word_tile, mask=word_mask, other=0)
            block_mask = inside[:, None] & (block_columns * BLOCK < k)[None, :]
            scales = block_scales(absmax, nested_absmax, nested_code, shift, blocks, block_mask)
        scales = spread_scales(scales, BLOCK_N // CODES_PER_WORD)
        weights = unpack_4bit(packed, scales, table, code, dtype)
        total = dot(left, weights, total)
        g_tile += BLOCK_K
        word_tile += BLOCK_K * (k // CODES_PER_WORD)

    if v is not None:
        safe_columns = tl.where(columns < k, columns, 0)
        total = add_low_rank(total, v, lora_a, safe_rows, safe_columns, rank, 1, k, RANK_BLOCK)
    tl.store(
        dx + rows[:, None].to(tl.int64) * k + columns[None, :],
        cast(total, dtype),
        mask=(rows < m)[:, None] & (columns < k)[None, :],
    )


def constants(config: Config, n: int, k: int) -> dict[str, Any]:
    """What is compiled into the kernel for this tile and a weight [n, k]."""
    return {"EVEN": n % config.block_k == 0 and k % config.block_n == 0, **tile_constants(config)}


def linear_4bit_dx(
    g: Tensor,
    weight: FourBitWeight,
    v: Tensor | None = None,
    lora_a: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """g [M, N] -> g W + v A, [M, K] in g's dtype (bfloat16 or float16), summed in float32.

    v [M, r], the gradient times B and the adapter's scale; lora_a [r, K]; any r >= 1. All contiguous, in g's dtype.
    UnsupportedOperand for anything else. `config`: the tile, chosen by the card if it is left out.
    """
    m, n, k = g.shape[0], weight.out_features, weight.in_features
    rank = common_rank(v, lora_a)
    require(supports_4bit(weight, g.dtype))
    check_operands(g, weight.packed, {"g": (g, (m, n)), "v": (v, (m, rank)), "lora_a": (lora_a, (rank, k))})
    dx = torch.empty((m, k), dtype=g.dtype, device=g.device)
    if m == 0:
        return dx
    config = config or config_for(g, k, BACKWARD)
    with torch.cuda.device_of(g):
        backward_4bit_kernel[(config.programs(m, k),)](
            g=g,
            **four_bit_arguments(weight),
            v=v,
            lora_a=lora_a,
            dx=dx,
            m=m,
            n=n,
            k=k,
            rank=rank,
            **constants(config, n, k),
            **launch_options(config),
        )
    return dx
