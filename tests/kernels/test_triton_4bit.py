"""The fused products with 4-bit weights against float64, in Triton's interpreter: odd shapes, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.selftest import reference
from pefttool_kernels.triton._launch import UnsupportedOperand
from pefttool_kernels.triton.backward_4bit import linear_4bit_dx
from pefttool_kernels.triton.configs import Config
from pefttool_kernels.triton.forward_4bit import linear_4bit

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Make = Callable[..., FourBitWeight]
Check = Callable[..., None]

#: Small tiles, so that small shapes have several of them in both directions; the last one spans two blocks of scales.
FORWARD_TILES = (Config(16, 32, 64, 4, 3), Config(32, 16, 64, 4, 3, group_m=2), Config(16, 32, 128, 4, 3))
BACKWARD_TILES = (Config(16, 64, 32, 4, 3), Config(32, 64, 16, 4, 3, group_m=2), Config(16, 128, 32, 4, 3))
DTYPES = (torch.bfloat16, torch.float16)

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
shapes = st.tuples(st.integers(1, 48), st.integers(1, 100), st.sampled_from((64, 128, 192, 320)))  # M, N, K
ranks = st.integers(0, 24)  # 0: no low-rank update
weights = st.tuples(st.sampled_from(("nf4", "fp4")), st.booleans())  # quant_type, nested


@few
@example(shape=(33, 70, 192), weight=("nf4", True), dtype=torch.bfloat16, rank=16, bias=True, tile=FORWARD_TILES[0])
@example(shape=(47, 61, 320), weight=("fp4", True), dtype=torch.float16, rank=24, bias=True, tile=FORWARD_TILES[2])
@given(
    shape=shapes,
    weight=weights,
    dtype=st.sampled_from(DTYPES),
    rank=ranks,
    bias=st.booleans(),
    tile=st.sampled_from(FORWARD_TILES),
)
def test_forward(
    four_bit_weight: Make,
    assert_accurate: Check,
    shape: tuple[int, int, int],
    weight: tuple[str, bool],
    dtype: torch.dtype,
    rank: int,
    bias: bool,
    tile: Config,
) -> None:
    m, n, k = shape
    torch.manual_seed(m * n * k)
    packed = four_bit_weight(n, k, *weight)
    x = torch.randn(m, k).to(dtype)
    offset = torch.randn(n).to(dtype) if bias else None
    u = torch.randn(m, rank).to(dtype) if rank else None
    lora_b = torch.randn(n, rank).to(dtype) if rank else None

    y = linear_4bit(x, packed, offset, u, lora_b, config=tile)

    truth = reference.linear(x, reference.dequantize_4bit(packed, dtype), offset)
    if u is not None and lora_b is not None:
        truth += u.double() @ lora_b.double().T
    assert_accurate(y, truth)


@few
@example(shape=(33, 70, 192), weight=("nf4", True), dtype=torch.bfloat16, rank=16, tile=BACKWARD_TILES[0])
@example(shape=(47, 64, 320), weight=("fp4", True), dtype=torch.float16, rank=24, tile=BACKWARD_TILES[2])
@example(shape=(17, 64, 128), weight=("nf4", False), dtype=torch.bfloat16, rank=1, tile=BACKWARD_TILES[1])
@given(
    shape=shapes,
    weight=weights,
    dtype=st.sampled_from(DTYPES),
    rank=ranks,
    tile=st.sampled_from(BACKWARD_TILES),
)
def test_gradient_of_the_input(
    four_bit_weight: Make,
    assert_accurate: Check,
    shape: tuple[int, int, int],
    weight: tuple[str, bool],
    dtype: torch.dtype,
    rank: int,
    tile: Config,
) -> None:
    m, n, k = shape
    torch.manual_seed(m * n * k)
    packed = four_bit_weight(n, k, *weight)
    g = torch.randn(m, n).to(dtype)
    v = torch.randn(m, rank).to(dtype) if rank else None
    lora_a = torch.randn(rank, k).to(dtype) if rank else None

    dx = linear_4bit_dx(g, packed, v, lora_a, config=tile)

    truth = g.double() @ reference.dequantize_4bit(packed, dtype).double()
    if v is not None and lora_a is not None:
        truth += v.double() @ lora_a.double()
    assert_accurate(dx, truth)


def test_poisoned_memory_is_poisoned() -> None:
    assert bool(torch.empty(3, dtype=torch.bfloat16).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(four_bit_weight: Make, dtype: torch.dtype) -> None:
    weight = four_bit_weight(3, 64)
    assert linear_4bit(torch.zeros(0, 64, dtype=dtype), weight).shape == (0, 3)
    assert linear_4bit_dx(torch.zeros(0, 3, dtype=dtype), weight).shape == (0, 64)


def test_what_is_not_a_number_stays_in_its_row(four_bit_weight: Make) -> None:
    """Rows and columns beyond the edge are computed from the first ones: nothing of that may reach a result."""
    x = torch.randn(17, 64).bfloat16()
    x[0] = float("nan")
    y = linear_4bit(x, four_bit_weight(33, 64), config=FORWARD_TILES[0])
    assert bool(y[0].isnan().all()) and not bool(y[1:].isnan().any())
    dx = linear_4bit_dx(torch.ones_like(y) * y[:, :1], four_bit_weight(33, 64), config=BACKWARD_TILES[0])
    assert bool(dx[0].isnan().all()) and not bool(dx[1:].isnan().any())


def refused() -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Arguments that replace good ones, and a part of the complaint."""
    half = torch.zeros(4, 2, dtype=torch.float16)
    return [
        ("x of shape", {"x": torch.zeros(4, 128).bfloat16()}),
        ("not contiguous", {"x": torch.zeros(64, 4).bfloat16().T}),
        ("not in float32", {"x": torch.zeros(4, 64)}),
        ("bias of shape", {"bias": torch.zeros(7).bfloat16()}),
        ("bias is torch.float32", {"bias": torch.zeros(3)}),
        ("both of its factors", {"u": half.bfloat16()}),
        ("lora_b of shape", {"u": half.bfloat16(), "lora_b": torch.zeros(3, 3).bfloat16()}),
        ("u is torch.float16", {"u": half, "lora_b": torch.zeros(3, 2).bfloat16()}),
    ]


@pytest.mark.parametrize(("complaint", "arguments"), refused())
def test_operands_that_are_refused(four_bit_weight: Make, complaint: str, arguments: dict[str, torch.Tensor]) -> None:
    good = {"x": torch.zeros(4, 64).bfloat16()}
    with pytest.raises(UnsupportedOperand, match=complaint):
        linear_4bit(**{**good, **arguments}, weight=four_bit_weight(3, 64), config=FORWARD_TILES[0])


def test_weights_that_are_refused(four_bit_weight: Make) -> None:
    weight = four_bit_weight(4, 64)
    x = torch.zeros(2, 32).bfloat16()
    with pytest.raises(UnsupportedOperand, match="in_features 32 is not a multiple of 64"):
        linear_4bit(x, weight._replace(in_features=32, out_features=8), config=FORWARD_TILES[0])
    shifted = torch.zeros(weight.packed.numel() + 2, dtype=torch.uint8)[2:]
    with pytest.raises(UnsupportedOperand, match="multiple of 4 bytes"):
        linear_4bit(torch.zeros(2, 64).bfloat16(), weight._replace(packed=shifted), config=FORWARD_TILES[0])
