"""What the operators allocate inside, beyond their inputs and outputs: figures for a memory plan.

Allocations inside an operator are invisible to whoever traces it, so every operator states them. The figures are peaks
of one call, in bytes, on its device; what the vendor's product takes for itself (a fraction of a MiB) is not in
them. A test compares them with what PyTorch's allocator reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pefttool_kernels import low_rank, tiles
from pefttool_kernels.cpu import native
from pefttool_kernels.dispatch import Direction, Operator
from pefttool_kernels.layout import BLOCK

SCALE_BYTES = FLOAT_BYTES = 4


@dataclass(frozen=True)
class Shapes:
    """One product: x [m, k] with W [n, k], forward or backward, with a low-rank update of rank `rank` (0: none)."""

    operator: Operator
    direction: Direction
    m: int
    n: int
    k: int
    dtype: torch.dtype
    nested: bool = True
    rank: int = 0
    bias: bool = False


def workspace_bytes(shapes: Shapes, backend: str) -> int:
    """The most that one product allocates inside at a time.

    "dequantize" counts the workspace that all products of a device share: once for a model, not once for a layer.
    """
    narrow = shapes.m * shapes.rank * FLOAT_BYTES  # u or v, which stays until the product is done
    if backend not in ("triton", "native") and _bias_is_a_column(shapes):
        narrow += shapes.m * (shapes.k + tiles.PADDING) * shapes.dtype.itemsize  # a wider copy of x
    sliced = _sliced(shapes) if shapes.rank else 0  # what made it, which is gone by then
    wide = _WIDE[backend](shapes)
    return narrow + max(sliced, wide)


def _sliced(shapes: Shapes) -> int:
    width = shapes.k if shapes.direction == "forward" else shapes.n
    budget = low_rank.SLICE_BYTES["cpu"]
    return min(shapes.m, max(1, budget // (FLOAT_BYTES * width))) * width * FLOAT_BYTES


def _cut(shapes: Shapes) -> tuple[int, int, int]:
    """(lines of a tile, their length, bytes of the product's start)."""
    forward = shapes.direction == "forward"
    length, width = (shapes.n, shapes.k) if forward else (shapes.k, shapes.n)
    line = max(width * shapes.dtype.itemsize, shapes.m * tiles.START_BYTES if shapes.rank else 0)
    four = shapes.operator == "linear_4bit"
    step, budget = 1, tiles.TILE_BYTES // 2
    if four:
        step = BLOCK if not forward else 1 if native.dequantizes() else tiles.row_step(shapes.k, shapes.nested)
        budget = tiles.TILE_BYTES if native.dequantizes() else tiles.TILE_BYTES * 3 // 4
    lines = tiles.extent(length, line, step, budget)
    return lines, width, shapes.m * lines * FLOAT_BYTES if shapes.rank else 0


def _tiles(shapes: Shapes) -> int:
    lines, width, start = _cut(shapes)
    if shapes.operator == "linear_4bit" and native.dequantizes():
        return start + lines * width * shapes.dtype.itemsize + _widened(shapes, lines)
    return start + _tile(shapes, lines, width)


def _whole(shapes: Shapes) -> int:
    length, width = (shapes.n, shapes.k) if shapes.direction == "forward" else (shapes.k, shapes.n)
    start = shapes.m * length * FLOAT_BYTES if shapes.rank else 0
    return start + length * width * shapes.dtype.itemsize + _widened(shapes, length)


def _library(shapes: Shapes) -> int:
    length, width = (shapes.n, shapes.k) if shapes.direction == "forward" else (shapes.k, shapes.n)
    start = shapes.m * length * FLOAT_BYTES if shapes.rank else 0
    return start + _tile(shapes, length, width, packed_in_place=True)


def _tile(shapes: Shapes, lines: int, width: int, packed_in_place: bool = False) -> int:
    """A tile, and beside it what it is made of, or what it is widened to."""
    tile = lines * width * shapes.dtype.itemsize
    if shapes.operator == "linear_8bit":
        scales = shapes.n * SCALE_BYTES
        return scales + tile + max(lines * width * FLOAT_BYTES, _widened(shapes, lines))
    own = lines * width // BLOCK * SCALE_BYTES
    if shapes.direction == "forward" or packed_in_place:
        return tile + max(own if shapes.nested else 0, _widened(shapes, lines))
    decoded = shapes.n * shapes.k // BLOCK * SCALE_BYTES if shapes.nested else 0
    return tile + decoded + own + lines * width // 2  # the strided scales and codes, copied


def _widened(shapes: Shapes, lines: int) -> int:
    """The tile's wider copy."""
    return lines * (shapes.k + 2 * tiles.PADDING) * shapes.dtype.itemsize if _bias_is_a_column(shapes) else 0


def _bias_is_a_column(shapes: Shapes) -> bool:
    """A bias beside an adapter takes part in the product: x and the tiles are copied, to be one column wider."""
    return shapes.direction == "forward" and shapes.bias and shapes.rank > 0


def _fused(shapes: Shapes) -> int:
    """The adapter in the compute dtype, and g with int8's scales; the kernels themselves work in registers."""
    scaled = shapes.operator == "linear_8bit" and shapes.direction == "backward"
    adapter = (shapes.m + shapes.n + shapes.k) * shapes.rank * shapes.dtype.itemsize
    return adapter + (shapes.m * (2 * shapes.n + FLOAT_BYTES) if scaled else 0)


def _few_rows(shapes: Shapes) -> int:
    """The small terms in float32; and a rearranged x, which comes from malloc, not from PyTorch's allocator."""
    start = shapes.m * shapes.n * FLOAT_BYTES if shapes.rank else 0
    return start + (shapes.n * FLOAT_BYTES if shapes.bias else 0) + shapes.m * shapes.k * shapes.dtype.itemsize


_WIDE = {"tiles": _tiles, "dequantize": _whole, "bitsandbytes": _library, "triton": _fused, "native": _few_rows}
