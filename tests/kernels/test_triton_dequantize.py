"""Dequantising in one launch, in Triton's interpreter: equal to bitsandbytes bit by bit, whole or some rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit as by_bitsandbytes
from bitsandbytes.functional import quantize_4bit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.triton import probe
from pefttool_kernels.triton._launch import UnsupportedOperand
from pefttool_kernels.triton.dequantize import dequantize_4bit

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.bfloat16, torch.float16)

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@example(n=200, k=320, quant_type="nf4", nested=True, dtype=torch.bfloat16, scale=0.02)  # several nested blocks
@example(n=1, k=64, quant_type="fp4", nested=True, dtype=torch.float16, scale=0.02)
@given(
    n=st.integers(1, 150),
    k=st.sampled_from((64, 192, 320)),
    quant_type=st.sampled_from(("nf4", "fp4")),
    nested=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from((0.02, 1e-6, 300.0)),
)
def test_equal_to_bitsandbytes(n: int, k: int, quant_type: str, nested: bool, dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(n * k)
    weight = (scale * torch.randn(n, k)).to(dtype)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=quant_type)
    ours = dequantize_4bit(FourBitWeight.of(packed, state), dtype)
    assert torch.equal(ours, by_bitsandbytes(packed, state))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rows", [(0, 0), (0, 1), (3, 4), (5, 70), (69, 70)])
def test_rows_into_a_shared_workspace(
    four_bit_weight: Callable[..., FourBitWeight], nested: bool, rows: tuple[int, int]
) -> None:
    """Only the asked rows are written, to the front of the workspace."""
    weight = four_bit_weight(70, 192, nested=nested)
    workspace = torch.empty(70 * 192 + 5, dtype=torch.bfloat16)
    part = dequantize_4bit(weight, torch.bfloat16, out=workspace, rows=rows)
    assert part.untyped_storage().data_ptr() == workspace.untyped_storage().data_ptr()
    assert torch.equal(part, dequantize_4bit(weight, torch.bfloat16)[slice(*rows)])
    assert bool(workspace[part.numel() :].isnan().all())


def test_what_is_refused(four_bit_weight: Callable[..., FourBitWeight]) -> None:
    weight = four_bit_weight(4, 64)
    with pytest.raises(UnsupportedOperand, match="rows 2 to 5 of a weight that has 4"):
        dequantize_4bit(weight, torch.bfloat16, rows=(2, 5))
    with pytest.raises(UnsupportedOperand, match="not in float32"):
        dequantize_4bit(weight, torch.float32)
    with pytest.raises(UnsupportedOperand, match="hold 256 values"):
        dequantize_4bit(weight, torch.bfloat16, out=torch.empty(255, dtype=torch.bfloat16))


def test_the_kernel_that_asks_whether_any_can_be_launched() -> None:
    probe.launch(torch.device("cpu"))


def test_a_launch_that_stores_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "probe_kernel", {(1,): lambda out, value: None})
    with pytest.raises(RuntimeError, match="a kernel that stores 7 stored 0"):
        probe.launch(torch.device("cpu"))
