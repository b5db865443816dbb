"""What an operator allocates inside: measured by the allocator's own events, stated by `workspace_bytes`, bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocations import peak_bytes
from packed import eight_bit, four_bit

from pefttool_kernels import backends
from pefttool_kernels.tiles import PADDING
from pefttool_kernels.workspace import Shapes, workspace_bytes

MIB = 1 << 20
#: Rows, and weights larger than a tile, in both directions.
CASES = [(64, 4096, 4096), (512, 1024, 4096), (2048, 4096, 1024), (3, 6144, 1536)]


def measured(shapes: Shapes, backend: str) -> tuple[int, int]:
    """Peak of one product, less its output and the adapter's narrow operand, which the caller made; and scratch."""
    four = shapes.operator == "linear_4bit"
    weight: Any = four_bit(shapes.n, shapes.k, nested=shapes.nested)[0] if four else eight_bit(shapes.n, shapes.k)[0]
    forward = shapes.direction == "forward"
    width, length = (shapes.k, shapes.n) if forward else (shapes.n, shapes.k)
    x = torch.randn(shapes.m, width).to(shapes.dtype)
    narrow = torch.randn(shapes.m, shapes.rank) if shapes.rank else None
    if forward:
        b = torch.randn(shapes.n, shapes.rank) if shapes.rank else None
        bias = torch.randn(shapes.n).to(shapes.dtype) if shapes.bias else None
        peak = peak_bytes(lambda: backends.forward(backend, x, weight, bias, narrow, b))
    else:
        a = torch.randn(shapes.rank, shapes.k) if shapes.rank else None
        peak = peak_bytes(lambda: backends.backward(backend, x, weight, narrow, a))
    padding = PADDING if forward and shapes.bias and shapes.rank else 0
    return peak - shapes.m * length * shapes.dtype.itemsize, scratch(x, length, forward, padding)


def scratch(x: torch.Tensor, length: int, forward: bool, padding: int) -> int:
    """What the library that multiplies takes for itself, at most, for products of x with up to `length` columns."""
    x = torch.nn.functional.pad(x, (0, padding))
    found = []
    for columns in {min(length, columns) for columns in (64, 128, 256, 384, 512, 682, 1024, 2048, length)}:
        out = torch.empty(x.shape[0], length, dtype=x.dtype)[:, :columns]
        weight = torch.randn(columns, x.shape[1]).to(x.dtype)
        right = weight.t() if forward else weight.t().contiguous()
        found.append(peak_bytes(lambda right=right, out=out: out.addmm_(x, right)))
        found.append(peak_bytes(lambda right=right, out=out: torch.mm(x, right, out=out)))
    return max(found)


@pytest.mark.parametrize("backend", ["tiles", "bitsandbytes"])
@pytest.mark.parametrize("extra", [{}, {"rank": 16}, {"rank": 8, "bias": True}, {"nested": False}], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operator", ["linear_4bit", "linear_8bit"])
@pytest.mark.parametrize(("m", "n", "k"), CASES)
def test_stated_is_measured(operator, direction, m, n, k, extra, backend):
    shapes = Shapes(operator, direction, m, n, k, torch.bfloat16, **extra)
    narrow = m * shapes.rank * 4
    stated = workspace_bytes(shapes, backend) - narrow
    found, library = measured(shapes, backend)
    assert found - library <= stated + 4096, f"{found} bytes allocated, {stated} stated"
    slack = 2 * MIB if shapes.rank else MIB // 2  # the slice of the narrow product is not made here
    assert stated <= 1.05 * found + slack


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operator", ["linear_4bit", "linear_8bit"])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (14336, 4096), (4096, 14336)])
@pytest.mark.parametrize("m", [64, 2048])
def test_one_call_takes_at_most_8_mib(operator, direction, m, n, k):
    shapes = Shapes(operator, direction, m, n, k, torch.bfloat16)
    assert workspace_bytes(shapes, "tiles") <= 8 * MIB
    assert workspace_bytes(shapes, "tiles") < n * k  # half a weight of 16 bits, at the very most
