"""The fused products with 8-bit weights against float64, in Triton's interpreter: odd shapes, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pefttool_kernels.layout import EightBitWeight
from pefttool_kernels.selftest import reference
from pefttool_kernels.triton._launch import UnsupportedOperand
from pefttool_kernels.triton.configs import Config
from pefttool_kernels.triton.eight_bit import linear_8bit, linear_8bit_dx

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Make = Callable[..., EightBitWeight]
Check = Callable[..., None]

#: Small tiles, so that small shapes have several of them in both directions; the last ones do not divide every k.
FORWARD_TILES = (Config(16, 32, 64, 4, 3), Config(32, 16, 64, 4, 3, group_m=2), Config(16, 32, 128, 4, 3))
BACKWARD_TILES = (Config(16, 64, 32, 4, 3), Config(32, 64, 16, 4, 3, group_m=2), Config(16, 128, 32, 4, 3))
DTYPES = (torch.bfloat16, torch.float16)
#: g is rounded to float16 beforehand, each value by at most 2^-11 of itself: this is what the sums make of that.
SUMMATION_DX = 1e-3

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
shapes = st.tuples(st.integers(1, 48), st.integers(1, 100), st.sampled_from((64, 128, 192, 320)))  # M, N, K
ranks = st.integers(0, 24)  # 0: no low-rank update


@few
@example(shape=(33, 70, 192), dtype=torch.bfloat16, rank=16, bias=True, tile=FORWARD_TILES[0])
@example(shape=(47, 61, 320), dtype=torch.float16, rank=24, bias=True, tile=FORWARD_TILES[2])
@given(shape=shapes, dtype=st.sampled_from(DTYPES), rank=ranks, bias=st.booleans(), tile=st.sampled_from(FORWARD_TILES))
def test_forward(
    eight_bit_weight: Make,
    assert_accurate: Check,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    rank: int,
    bias: bool,
    tile: Config,
) -> None:
    m, n, k = shape
    torch.manual_seed(m * n * k)
    weight = eight_bit_weight(n, k)
    x = torch.randn(m, k).to(dtype)
    offset = torch.randn(n).to(dtype) if bias else None
    u = torch.randn(m, rank).to(dtype) if rank else None
    lora_b = torch.randn(n, rank).to(dtype) if rank else None

    y = linear_8bit(x, weight, offset, u, lora_b, config=tile)

    truth = reference.linear(x, reference.dequantize_8bit(weight), offset)
    if u is not None and lora_b is not None:
        truth += u.double() @ lora_b.double().T
    assert_accurate(y, truth)


@few
@example(shape=(33, 70, 192), dtype=torch.bfloat16, rank=16, tile=BACKWARD_TILES[0])
@example(shape=(47, 64, 320), dtype=torch.float16, rank=24, tile=BACKWARD_TILES[2])
@example(shape=(40, 96, 128), dtype=torch.bfloat16, rank=0, tile=BACKWARD_TILES[1])
@given(shape=shapes, dtype=st.sampled_from(DTYPES), rank=ranks, tile=st.sampled_from(BACKWARD_TILES))
def test_gradient_of_the_input(
    eight_bit_weight: Make,
    assert_accurate: Check,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    rank: int,
    tile: Config,
) -> None:
    m, n, k = shape
    torch.manual_seed(m * n * k)
    weight = eight_bit_weight(n, k)
    g = torch.randn(m, n).to(dtype)
    v = torch.randn(m, rank).to(dtype) if rank else None
    lora_a = torch.randn(rank, k).to(dtype) if rank else None

    dx = linear_8bit_dx(g, weight, v, lora_a, config=tile)

    truth = g.double() @ reference.dequantize_8bit(weight)
    if v is not None and lora_a is not None:
        truth += v.double() @ lora_a.double()
    assert_accurate(dx, truth, SUMMATION_DX, roundings=g.numel())


def test_rows_of_the_gradient_of_any_size(eight_bit_weight: Make, assert_accurate: Check) -> None:
    """float16 holds few of these rows as they are; the first needs a greater power of two than float32 has."""
    torch.manual_seed(0)
    weight = eight_bit_weight(1030, 64)  # more than one step of the kernel that scales g
    sizes = torch.tensor([1e-35, 1e-30, 1e-9, 1.0, 1e5, 1e30])
    g = (sizes[:, None] * torch.randn(6, 1030)).bfloat16()
    dx = linear_8bit_dx(g, weight, config=BACKWARD_TILES[0])
    truth = g.double() @ reference.dequantize_8bit(weight)
    for row in range(len(sizes)):
        assert_accurate(dx[row], truth[row], SUMMATION_DX)


def test_rows_of_the_gradient_without_a_size(eight_bit_weight: Make) -> None:
    g = torch.randn(4, 33).bfloat16()
    g[0] = 0.0
    g[1, 7] = float("inf")
    g[2, 32] = float("nan")
    dx = linear_8bit_dx(g, eight_bit_weight(33, 64), config=BACKWARD_TILES[0])
    assert bool((dx[0] == 0).all())
    assert not bool(dx[1:3].isfinite().any())  # a loss scaler finds its overflows
    assert bool(dx[3].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(eight_bit_weight: Make, dtype: torch.dtype) -> None:
    weight = eight_bit_weight(3, 64)
    assert linear_8bit(torch.zeros(0, 64, dtype=dtype), weight).shape == (0, 3)
    assert linear_8bit_dx(torch.zeros(0, 3, dtype=dtype), weight).shape == (0, 64)


def test_weights_that_are_refused(eight_bit_weight: Make) -> None:
    x = torch.zeros(2, 96).bfloat16()
    with pytest.raises(UnsupportedOperand, match="in_features 96 is not a multiple of 64"):
        linear_8bit(x, eight_bit_weight(3, 96), config=FORWARD_TILES[0])
    columns = EightBitWeight(torch.zeros(64, 64, dtype=torch.int8).T, torch.ones(64))
    with pytest.raises(UnsupportedOperand, match="not contiguous"):
        linear_8bit(x[:, :64].contiguous(), columns, config=FORWARD_TILES[0])
