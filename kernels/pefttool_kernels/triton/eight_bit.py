"""y = x W^T + u B^T + bias and dx = g W + v A, with W in 8 bits, a scale a row: unpacked in registers.

Bytes are exact in both dtypes, so y needs no rounding but its last. dx sums over the rows, and so over the scales:
scaling g or W in bfloat16 would round every factor to 8 bits once more. Instead, g is scaled once, beforehand, into
float16, with a power of two for every row of it that puts the largest value just below the top of float16's range:
three more bits, the product costs no more than y's, and the powers are taken back at the end, where they are exact.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pefttool_kernels.layout import EightBitWeight
from pefttool_kernels.triton._launch import (
    OPTIONS,
    check_operands,
    common_rank,
    config_for,
    launch_options,
    require,
    supports_8bit,
    tile_constants,
)
from pefttool_kernels.triton._tl import BYTES_PER_WORD, add_low_rank, cast, dot, tile_position, unpack_8bit
from pefttool_kernels.triton.configs import BACKWARD, FORWARD, Config

LEVELS = tl.constexpr(127.0)  # a row's scale is its largest magnitude, which became 127
SCALING_BLOCK = 1024  # values of a row of g that a program scales at a time
SCALING_WARPS = 4
SCALING_STAGES = 1


@triton.jit(do_not_specialize=["m"])
def forward_8bit_kernel(
    x,
    words,
    scales,
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
    """One [BLOCK_M, BLOCK_N] tile of y. words: int32 [n, k / 4]; scales float32 [n]; absent tensors are None."""
    dtype = x.dtype.element_ty
    tile_m, tile_n = tile_position(m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_rows = tl.where(rows < m, rows, 0)
    safe_columns = tl.where(columns < n, columns, 0)
    steps = tl.arange(0, BLOCK_K)
    word_steps = tl.arange(0, BLOCK_K // BYTES_PER_WORD)
    x_tile = x + safe_rows[:, None].to(tl.int64) * k + steps[None, :]
    word_tile = words + safe_columns[:, None].to(tl.int64) * (k // BYTES_PER_WORD) + word_steps[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            left = tl.load(x_tile)
            packed = tl.load(word_tile)
        else:
            left = tl.load(x_tile, mask=(steps + start < k)[None, :], other=0.0)
            packed = tl.load(word_tile, mask=(word_steps * BYTES_PER_WORD + start < k)[None, :], other=0)
        total = dot(left, tl.trans(unpack_8bit(packed, dtype)), total)
        x_tile += BLOCK_K
        word_tile += BLOCK_K // BYTES_PER_WORD

    total *= (tl.load(scales + safe_columns) / LEVELS)[None, :]
    if u is not None:
        total = add_low_rank(total, u, lora_b, safe_rows, safe_columns, rank, rank, 1, RANK_BLOCK)
    if bias is not None:
        total += tl.load(bias + safe_columns).to(tl.float32)[None, :]
    tl.store(
        y + rows[:, None].to(tl.int64) * n + columns[None, :],
        cast(total, dtype),
        mask=(rows < m)[:, None] & (columns < n)[None, :],
    )


@triton.jit
def scale_gradient_kernel(g, scales, scaled, powers, n, BLOCK: tl.constexpr):
    """One row of g [m, n] times scales [n]: its values times a power of two -> scaled (float16), the power -> powers.

    The largest value comes to lie in [2^14, 2^15). Infinite and undefined values stay so.
    """
    row = tl.program_id(0).to(tl.int64)
    steps = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        inside = steps + start < n
        value = tl.load(g + row * n + start + steps, mask=inside, other=0.0).to(tl.float32)
        value *= tl.load(scales + start + steps, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
    exponent = (tl.max(largest, axis=0).to(tl.int32, bitcast=True) >> 23) - 127
    shift = tl.minimum(tl.maximum(14 - exponent, -126), 126)  # 2^shift and 2^-shift are both normal numbers
    power = ((shift + 127) << 23).to(tl.float32, bitcast=True)
    for start in range(0, n, BLOCK):
        inside = steps + start < n
        value = tl.load(g + row * n + start + steps, mask=inside, other=0.0).to(tl.float32)
        value *= tl.load(scales + start + steps, mask=inside, other=0.0)
        tl.store(scaled + row * n + start + steps, (value * power).to(tl.float16), mask=inside)
    tl.store(powers + row, ((127 - shift) << 23).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["m"])
def backward_8bit_kernel(
    scaled,
    powers,
    words,
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
    """One [BLOCK_M, BLOCK_N] tile of dx [m, k]; the sum runs over n. scaled, powers: see `scale_gradient_kernel`.

    words: int32 [n, k / 4]; absent tensors are None. EVEN: the tile's columns divide k and its steps divide n.
    """
    tile_m, tile_k = tile_position(m, k, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_k * BLOCK_N + tl.arange(0, BLOCK_N)
    word_columns = tile_k * (BLOCK_N // BYTES_PER_WORD) + tl.arange(0, BLOCK_N // BYTES_PER_WORD)
    steps = tl.arange(0, BLOCK_K)
    safe_rows = tl.where(rows < m, rows, 0)
    g_tile = scaled + safe_rows[:, None].to(tl.int64) * n + steps[None, :]
    word_tile = words + steps[:, None].to(tl.int64) * (k // BYTES_PER_WORD) + word_columns[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, n, BLOCK_K):
        if EVEN:
            left = tl.load(g_tile)
            packed = tl.load(word_tile)
        else:
            inside = steps + start < n
            left = tl.load(g_tile, mask=inside[None, :], other=0.0)
            word_mask = inside[:, None] & (word_columns * BYTES_PER_WORD < k)[None, :]
            packed = tl.load(word_tile, mask=word_mask, other=0)
        total = dot(left, unpack_8bit(packed, tl.float16), total)
        g_tile += BLOCK_K
        word_tile += BLOCK_K * (k // BYTES_PER_WORD)

    total *= (tl.load(powers + safe_rows) / LEVELS)[:, None]
    if v is not None:
        safe_columns = tl.where(columns < k, columns, 0)
        total = add_low_rank(total, v, lora_a, safe_rows, safe_columns, rank, 1, k, RANK_BLOCK)
    tl.store(
        dx + rows[:, None].to(tl.int64) * k + columns[None, :],
        cast(total, dx.dtype.element_ty),
        mask=(rows < m)[:, None] & (columns < k)[None, :],
    )


def forward_constants(config: Config, k: int) -> dict[str, Any]:
    """What is compiled into the kernel of y for this tile and this k."""
    return {"EVEN_K": k % config.block_k == 0, **tile_constants(config)}


def backward_constants(config: Config, n: int, k: int) -> dict[str, Any]:
    """What is compiled into the kernel of dx for this tile and a weight [n, k]."""
    return {"EVEN": n % config.block_k == 0 and k % config.block_n == 0, **tile_constants(config)}


def scaling_constants() -> dict[str, Any]:
    """What is compiled into the kernel that scales a gradient."""
    return {"BLOCK": SCALING_BLOCK}


def _words(weight: EightBitWeight) -> Tensor:
    return weight.values.view(-1).view(torch.int32)


def linear_8bit(
    x: Tensor,
    weight: EightBitWeight,
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
    require(supports_8bit(weight, x.dtype))
    operands = {"x": (x, (m, k)), "bias": (bias, (n,)), "u": (u, (m, rank)), "lora_b": (lora_b, (n, rank))}
    check_operands(x, weight.values, operands)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return y
    config = config or config_for(x, n, FORWARD)
    with torch.cuda.device_of(x):
        forward_8bit_kernel[(config.programs(m, n),)](
            x=x,
            words=_words(weight),
            scales=weight.scales,
            u=u,
            lora_b=lora_b,
            bias=bias,
            y=y,
            m=m,
            n=n,
            k=k,
            rank=rank,
            **forward_constants(config, k),
            **launch_options(config),
        )
    return y


def linear_8bit_dx(
    g: Tensor,
    weight: EightBitWeight,
    v: Tensor | None = None,
    lora_a: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """g [M, N] -> g W + v A, [M, K] in g's dtype (bfloat16 or float16), summed in float32.

    v [M, r], the gradient times B and the adapter's scale; lora_a [r, K]; any r >= 1. All contiguous, in g's dtype.
    UnsupportedOperand for anything else. Takes 2 M N + 4 M bytes beside the result, until the product is computed.
    `config`: the tile, chosen by the card if it is left out.
    """
    m, n, k = g.shape[0], weight.out_features, weight.in_features
    rank = common_rank(v, lora_a)
    require(supports_8bit(weight, g.dtype))
    check_operands(g, weight.values, {"g": (g, (m, n)), "v": (v, (m, rank)), "lora_a": (lora_a, (rank, k))})
    dx = torch.empty((m, k), dtype=g.dtype, device=g.device)
    if m == 0:
        return dx
    config = config or config_for(g, k, BACKWARD)
    scaled = torch.empty((m, n), dtype=torch.float16, device=g.device)
    powers = torch.empty((m,), dtype=torch.float32, device=g.device)
    with torch.cuda.device_of(g):
        scale_gradient_kernel[(m,)](
            g=g,
            scales=weight.scales,
            scaled=scaled,
            powers=powers,
            n=n,
            **scaling_constants(),
            num_warps=SCALING_WARPS,
            num_stages=SCALING_STAGES,
            **OPTIONS,
        )
        backward_8bit_kernel[(config.programs(m, k),)](
            scaled=scaled,
            powers=powers,
            words=_words(weight),
            v=v,
            lora_a=lora_a,
            dx=dx,
            m=m,
            n=n,
            k=k,
            rank=rank,
            **backward_constants(config, n, k),
            **launch_options(config),
        )
    return dx
