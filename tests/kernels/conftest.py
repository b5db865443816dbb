"""Support for the kernels' tests: quantised weights, poisoned memory, limits, and Triton's interpreter.

The interpreter is a mode of a whole process, fixed when triton is imported, and bitsandbytes imports triton. So the
files `test_triton_*.py` run in a process of their own, which `test_interpreter.py` starts; elsewhere they are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pefttool_kernels.layout import EightBitWeight, FourBitWeight

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETER_FILES = "test_triton_*.py"
#: Limits on the relative Frobenius error. Rounding a float64 result once costs about three quarters of them.
FROBENIUS = {torch.bfloat16: 2.2e-3, torch.float16: 3.5e-4}
#: Half a unit in the last place, relative: the most that one rounding of one value costs.
HALF_STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
#: What float32 sums of a few hundred terms may add to that, relative to the largest value of the result.
SUMMATION = 1e-5
#: From how many values on the Frobenius error is a mean, and not the luck of a few roundings.
ENOUGH = 1000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = "Triton's interpreter needs a process of its own: test_interpreter.py runs this file"
    for item in items:
        if item.path.parent == here and item.path.match(INTERPRETER_FILES) and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """PyTorch computes with two threads, though the suite runs with one: what is divided among them is tested, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN where it gives floating-point values: what a kernel leaves unwritten is seen."""
    empty = torch.empty

    def poisoned(*arguments: object, **options: object) -> Tensor:
        tensor = empty(*arguments, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


@pytest.fixture(scope="session")
def four_bit_weight() -> Callable[..., FourBitWeight]:
    """A weight [n, k] of normal values, about 0.02 large, quantised by bitsandbytes."""
    from bitsandbytes.functional import quantize_4bit

    def make(n: int, k: int, quant_type: str = "nf4", nested: bool = True) -> FourBitWeight:
        packed, state = quantize_4bit(
            0.02 * torch.randn(n, k), blocksize=64, compress_statistics=nested, quant_type=quant_type
        )
        return FourBitWeight.of(packed, state)

    return make


@pytest.fixture(scope="session")
def eight_bit_weight() -> Callable[..., EightBitWeight]:
    """A weight [n, k] of normal values, quantised by bitsandbytes; its rows differ in size by orders of magnitude."""
    from bitsandbytes.functional import int8_vectorwise_quant

    def make(n: int, k: int) -> EightBitWeight:
        sizes = torch.exp(torch.randn(n, 1))
        values, scales, _ = int8_vectorwise_quant((0.02 * sizes * torch.randn(n, k)).half())
        return EightBitWeight(values, scales)

    return make


@pytest.fixture(scope="session")
def assert_accurate() -> Callable[..., None]:
    """Compares a result with the truth in float64.

    Every value within one rounding, and the whole within the Frobenius limit, if it has enough values for a mean.
    `summation`: what the sums may add, relative to the largest value of the truth. `roundings`: how many values were
    rounded on the way to the result, if any were.
    """

    def check(result: Tensor, truth: Tensor, summation: float = SUMMATION, roundings: int | None = None) -> None:
        assert truth.dtype == torch.float64 and result.shape == truth.shape
        error = (result.double() - truth).abs()
        allowed = HALF_STEP[result.dtype] * truth.abs() + summation * truth.abs().max()
        assert bool((error <= allowed).all()), f"{int((~(error <= allowed)).sum())} of {error.numel()} values are off"
        if min(truth.numel(), roundings or ENOUGH) >= ENOUGH:
            assert (error.norm() / truth.norm()).item() <= FROBENIUS[result.dtype]

    return check
