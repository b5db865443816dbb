"""Products with a quantised weight, one dequantised tile of it at a time.

On the CPU a whole dequantised weight is a fresh allocation that costs more in page faults than the arithmetic that
fills it; a tile of a few MiB stays in the cache and is used up before the next one is made. Tiles are cut so that
every output is one product: rows of W for x W^T, columns of W for g W, never partial sums, which would be rounded
once more each. On a GPU the same code runs with a single tile, the weight.

The values are bitsandbytes' own, bit by bit: our compiled code or, where that is missing, its operators dequantise
the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pefttool_kernels.cpu import native
from pefttool_kernels.layout import BLOCK, NESTED_BLOCK, EightBitWeight, FourBitWeight

#: What one tile may take. Measured: 2 to 4 MiB are fastest at widths from 1024 to 14336; smaller tiles pay for their
#: number, larger ones leave the cache.
TILE_BYTES = 4 << 20
#: Tiles are a multiple of this wide, where they are that wide at all: what a product's own kernels come in. A product
#: 146 wide took 1.4 times as long per value as one that is 128 wide.
WIDTH = 64
#: Bytes of one value of a product's start, which is float32.
START_BYTES = 4
#: Columns that a product grows by when one is needed: an odd width is slow.
PADDING = 32

#: (first, last) -> the dequantised rows [last - first, K], or columns [N, last - first], of a weight.
Tile = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Tiles:
    """How one weight is cut and dequantised. Rows are cut at multiples of `row_step`, columns of `column_step`."""

    out_features: int
    in_features: int
    rows: Tile
    columns: Tile
    row_step: int
    column_step: int
    tile_bytes: int | None = TILE_BYTES  # None: a single tile


def extent(length: int, line_bytes: int, step: int, tile_bytes: int | None) -> int:
    """How many rows (columns), each taking `line_bytes`, one tile takes: a multiple of `step`, or all of them."""
    if tile_bytes is None:
        return length
    fitting = max(step, tile_bytes // line_bytes // step * step)
    multiple = math.lcm(step, WIDTH)
    return min(length, fitting // multiple * multiple or fitting)


def line_bytes(operand: Tensor, low_rank: Tensor | None) -> int:
    """What one row (column) of the weight takes in a tile, or in the product's start if that is longer."""
    rows, width = operand.shape
    return max(width * operand.itemsize, 0 if low_rank is None else rows * START_BYTES)


def forward(x: Tensor, tiles: Tiles, bias: Tensor | None, u: Tensor | None, lora_b: Tensor | None) -> Tensor:
    """x [M, K] W^T + bias [N] + u [M, r] B^T -> [M, N] in x's dtype; u and B [N, r] are float32.

    One small term is the start value that the product is added to. Two of them would round their sum first: the bias
    then takes part in the product, as one more column of W. Either way the result is rounded once.
    """
    output = x.new_empty(x.shape[0], tiles.out_features)
    step = extent(tiles.out_features, line_bytes(x, u), tiles.row_step, tiles.tile_bytes)
    if bias is not None and u is not None:
        x = torch.cat((x, x.new_ones(x.shape[0], 1), x.new_zeros(x.shape[0], PADDING - 1)), dim=1)
    for first in range(0, tiles.out_features, step):
        last = min(first + step, tiles.out_features)
        own_bias = None if bias is None else bias[first:last]
        start = own_bias
        if u is not None and lora_b is not None:
            start = u @ lora_b[first:last].t()
        _product(x, _rows(tiles, first, last, None if u is None else own_bias).t(), start, output[:, first:last])
    return output


def _rows(tiles: Tiles, first: int, last: int, bias: Tensor | None) -> Tensor:
    tile = tiles.rows(first, last)
    if bias is None:
        return tile
    columns = tile.new_zeros(last - first, PADDING)
    columns[:, 0] = bias
    return torch.cat((tile, columns), dim=1)


def backward(g: Tensor, tiles: Tiles, v: Tensor | None, lora_a: Tensor | None) -> Tensor:
    """g [M, N] W + v [M, r] A -> [M, K] in g's dtype; v and A [r, K] are float32."""
    output = g.new_empty(g.shape[0], tiles.in_features)
    step = extent(tiles.in_features, line_bytes(g, v), tiles.column_step, tiles.tile_bytes)
    for first in range(0, tiles.in_features, step):
        last = min(first + step, tiles.in_features)
        start = None
        if v is not None and lora_a is not None:
            start = v @ lora_a[:, first:last]
        _product(g, tiles.columns(first, last), start, output[:, first:last])
    return output


def _product(left: Tensor, right: Tensor, start: Tensor | None, output: Tensor) -> None:
    if start is None:
        torch.mm(left, right, out=output)
    else:
        output.copy_(start.expand_as(output))
        output.addmm_(left, right)


def four_bit(weight: FourBitWeight, dtype: torch.dtype) -> Tiles:
    """Tiles of a 4-bit weight. Its in_features are a multiple of 64: a block never straddles two rows."""
    if weight.packed.device.type == "cpu" and native.dequantizes():
        return _compiled(weight, dtype)
    return _composed(weight, dtype)


def _compiled(weight: FourBitWeight, dtype: torch.dtype) -> Tiles:
    """By our own code, which reads rows and columns in place and decodes nested scales on the way."""
    n, k = weight.out_features, weight.in_features

    def rows(first: int, last: int) -> Tensor:
        return native.dequantize(weight, dtype, first, last, 0, k)

    def columns(first: int, last: int) -> Tensor:
        return native.dequantize(weight, dtype, 0, n, first, last)

    return Tiles(n, k, rows, columns, 1, BLOCK)


def _composed(weight: FourBitWeight, dtype: torch.dtype) -> Tiles:
    """By bitsandbytes' operators, which read whole rows: columns are copied first."""
    n, k = weight.out_features, weight.in_features
    blocks = k // BLOCK
    packed = weight.packed.reshape(n, k // 2)
    kind = weight.quant_type

    def rows(first: int, last: int) -> Tensor:
        own = scales(weight, first * blocks, last * blocks)
        return dequantize_4bit(packed[first:last], own, kind, last - first, k, dtype)

    decoded: list[Tensor] = []  # filled by the first tile of columns: every one of them needs scales of every row

    def columns(first: int, last: int) -> Tensor:
        if not decoded:
            decoded.append(scales(weight).view(n, blocks))
        own = decoded[0][:, first // BLOCK : last // BLOCK].contiguous()
        return dequantize_4bit(packed[:, first // 2 : last // 2].contiguous(), own, kind, n, last - first, dtype)

    return Tiles(n, k, rows, columns, row_step(k, weight.nested), BLOCK, TILE_BYTES * 3 // 4)


def row_step(in_features: int, nested: bool) -> int:
    """Rows are cut where a block of nested scales starts, so that a tile decodes only its own."""
    return NESTED_BLOCK // math.gcd(NESTED_BLOCK, in_features // BLOCK) if nested else 1


def dequantize_4bit(
    packed: Tensor, absmax: Tensor, quant_type: str, rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """[rows, columns] in `dtype`, by bitsandbytes' operator; absmax is float32."""
    shape = (rows, columns)
    tile: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, BLOCK, quant_type, shape, dtype)
    return tile


def scales(weight: FourBitWeight, first: int = 0, last: int | None = None) -> Tensor:
    """The scales of blocks `first` to `last`, float32. With nested scales `first` starts a block of them."""
    absmax = weight.absmax.reshape(-1)[first:last]
    if weight.nested_absmax is None:
        return absmax
    outer = weight.nested_absmax[first // NESTED_BLOCK :][: -(-absmax.numel() // NESTED_BLOCK)]
    decode = torch.ops.bitsandbytes.dequantize_blockwise.default
    decoded: Tensor = decode(absmax, outer, weight.nested_code, NESTED_BLOCK, torch.float32)
    return decoded.add_(weight.offset)


def eight_bit(weight: EightBitWeight, dtype: torch.dtype) -> Tiles:
    """Tiles of an 8-bit weight: value times scale / 127 in float32, rounded once, as bitsandbytes trains."""
    scales = weight.scales.float().mul(1 / 127).unsqueeze(1)

    def rows(first: int, last: int) -> Tensor:
        return weight.values[first:last].float().mul_(scales[first:last]).to(dtype)

    def columns(first: int, last: int) -> Tensor:
        return weight.values[:, first:last].float().mul_(scales).to(dtype)

    # A tile is float32 before it is rounded: half the width, for the same peak.
    return Tiles(weight.out_features, weight.in_features, rows, columns, 1, 1, TILE_BYTES // 2)
