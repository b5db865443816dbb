"""Whatever values a weight had, we read from bitsandbytes' storage what it reads: the kinds of cases of its own tests.

Zeros, one value that stands out, infinities, NaN, subnormal and huge ones; flat and nested scales; states of any dtype;
every block size. Written anew: bitsandbytes publishes no source archive with its tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes import functional as theirs
from torch import Tensor, nn

from pefttool_kernels import backends, modules, ops, tiles
from pefttool_kernels.cpu import native
from pefttool_kernels.layout import BLOCK, DamagedWeight, EightBitWeight, FourBitWeight
from pefttool_kernels.selftest import reference

N, K = 48, 512  # 384 blocks of 64, one and a half blocks of nested scales
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CPU_BACKENDS = ("tiles", "native", "bitsandbytes")


def normal() -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(0))


def standing_out() -> Tensor:
    weight = 1e-3 * normal()
    weight[::5, 70] = 40.0
    return weight


def with_value(value: float) -> Callable[[], Tensor]:
    def make() -> Tensor:
        weight = normal()
        weight[3, 70] = weight[40, 500] = value
        return weight

    return make


VALUES: dict[str, Callable[[], Tensor]] = {
    "normal": normal,
    "zeros": lambda: torch.zeros(N, K),
    "negative zeros": lambda: torch.full((N, K), -0.0),
    "one value": lambda: torch.full((N, K), -0.3),
    "standing out": standing_out,
    "some blocks of zeros": lambda: normal() * (torch.arange(N) % 3 > 0)[:, None],
    "subnormal": lambda: normal() * 1e-39,
    "tiny": lambda: normal() * 1e-7,
    "huge": lambda: normal() * 1e4,
    "infinity": with_value(float("inf")),
    "negative infinity": with_value(float("-inf")),
    "NaN": with_value(float("nan")),
}


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equal to the sign of a zero; a NaN is a NaN."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    same = (found == expected) & (found.signbit() == expected.signbit())
    return bool((same | (found.isnan() & expected.isnan())).all())


def stored(
    values: str, dtype: torch.dtype, quant_type: str = "nf4", nested: bool = True
) -> tuple[FourBitWeight, Tensor, Any]:
    """(our view, bitsandbytes' values, the packed weight and its state)."""
    packed, state = theirs.quantize_4bit(
        VALUES[values]().to(dtype), blocksize=BLOCK, compress_statistics=nested, quant_type=quant_type
    )
    return FourBitWeight.of(packed, state), theirs.dequantize_4bit(packed, state), (packed, state)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_four_bits_are_read_to_the_bit(values, dtype, quant_type, nested):
    weight, expected, _ = stored(values, dtype, quant_type, nested)
    assert same_bits(ops.dequantize_4bit(weight, dtype), expected)
    compiled, composed = tiles.four_bit(weight, dtype), tiles._composed(weight, dtype)
    assert same_bits(whole(composed), expected)
    if values == "subnormal" and dtype == torch.bfloat16 and native.dequantizes():
        expected = reference.dequantize_4bit(weight, dtype)  # where bitsandbytes' instruction gives zero, ours does not
    assert same_bits(whole(compiled), expected)


def whole(cut: tiles.Tiles) -> Tensor:
    """The weight out of tiles of rows, which tiles of columns have to give, too."""
    half = N // 2 // cut.row_step * cut.row_step or N
    rows = torch.cat([cut.rows(first, last) for first, last in ((0, half), (half, N)) if first < last])
    columns = torch.cat([cut.columns(0, 192), cut.columns(192, K)], dim=1)
    assert same_bits(columns, rows)
    return rows


def agree(found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """What is finite is near, relative to its column; what is not finite is not."""
    found = found.double()
    assert torch.equal(found.isfinite(), truth.to(dtype).isfinite())
    left = truth.isfinite() & found.isfinite()
    limit = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-5}[dtype]
    scale = truth.abs().nan_to_num(0, 0, 0).amax(0, keepdim=True).expand_as(truth)
    tiny = torch.finfo(dtype).smallest_normal  # below it, an instruction may give zero
    assert bool(((found - truth).abs()[left] <= limit * scale[left] + tiny).all())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("values", VALUES)
def test_products_by_any_values(values, nested, backend):
    dtype = torch.bfloat16
    weight, expected, _ = stored(values, dtype, nested=nested)
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(1)).to(dtype)
    g = torch.randn(5, N, generator=torch.Generator().manual_seed(2)).to(dtype)
    if backend == "native" and native.missing():
        pytest.skip(str(native.missing()))
    agree(backends.forward(backend, x, weight, None, None, None), x.double() @ expected.double().t(), dtype)
    if backend != "native":
        agree(backends.backward(backend, g, weight, None, None), g.double() @ expected.double(), dtype)


@pytest.mark.parametrize("values", [name for name in VALUES if name not in ("infinity", "negative infinity", "NaN")])
def test_eight_bits_stand_for_what_they_say(values):
    """Of rows without a scale that is a number bitsandbytes makes none, either."""
    weight = VALUES[values]().clamp(-6e4, 6e4).half()
    int8, scales, _ = theirs.int8_vectorwise_quant(weight)
    view = EightBitWeight(int8, scales)
    expected = theirs.int8_vectorwise_dequant(int8, scales)
    found = tiles.eight_bit(view, torch.float32).rows(0, N)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.double(), reference.dequantize_8bit(view), rtol=1e-6, atol=0)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scales_that_were_cast_are_widened_as_bitsandbytes_does(narrow):
    """`layer.half()` and the like reach the state, too."""
    for nested, part in ((True, "offset"), (False, "absmax")):
        _, _, (packed, state) = stored("normal", torch.bfloat16, nested=nested)
        setattr(state, part, getattr(state, part).to(narrow))
        expected = theirs.dequantize_4bit(packed, state)
        assert same_bits(ops.dequantize_4bit(FourBitWeight.of(packed, state), torch.bfloat16), expected)


def test_scales_that_are_no_numbers_stay_refused():
    _, _, (packed, state) = stored("normal", torch.bfloat16)
    state.offset = state.offset.to(torch.int32)
    with pytest.raises(DamagedWeight, match=r"offset.*found 1 values of torch.int32, expected 1 of torch.float32"):
        FourBitWeight.of(packed, state)
    state.offset = None
    with pytest.raises(DamagedWeight, match=r"offset.*found nothing"):
        FourBitWeight.of(packed, state)


@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 4096])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_a_layer_of_any_block_size_multiplies_as_bitsandbytes_says(blocksize, nested):
    layer = bitsandbytes.nn.Linear4bit(K, N, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    layer.weight = bitsandbytes.nn.Params4bit(
        normal(), requires_grad=False, quant_type="nf4", blocksize=blocksize, compress_statistics=nested
    )
    layer = layer.to("cpu")
    dense = theirs.dequantize_4bit(layer.weight.data, layer.weight.quant_state).bfloat16()
    modules.fuse(nn.Sequential(layer))
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    y = layer.train()(x)
    agree(y.detach(), x.detach().double() @ dense.double().t(), torch.bfloat16)
    (dx,) = torch.autograd.grad(y.sum(), x)
    agree(dx, torch.ones(3, N, dtype=torch.float64) @ dense.double(), torch.bfloat16)
