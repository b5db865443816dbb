"""The self-test of triton's kernels, tile by tile: every tile that ships, launched without asking which one fits.

Imports triton: only for those who have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from pefttool_kernels import dispatch, low_rank
from pefttool_kernels.dispatch import Machine
from pefttool_kernels.layout import EightBitWeight
from pefttool_kernels.selftest.cases import SCALING, Case, Check, check, error
from pefttool_kernels.triton._launch import DTYPES
from pefttool_kernels.triton._tl import INTERPRETED
from pefttool_kernels.triton.backward_4bit import linear_4bit_dx
from pefttool_kernels.triton.configs import BACKWARD, FORWARD, Config
from pefttool_kernels.triton.dequantize import dequantize_4bit
from pefttool_kernels.triton.eight_bit import linear_8bit, linear_8bit_dx
from pefttool_kernels.triton.forward_4bit import linear_4bit


def interpreted() -> bool:
    """Whether this process is in the mode of Triton's interpreter, where kernels run on the CPU, slowly."""
    return bool(INTERPRETED.value)


def run(cases: Sequence[Case], here: Machine) -> Iterator[Check]:
    """y and dX of `cases` by every tile; in the interpreter the dequantised weight, too, which `selftest` skips then.

    Nothing where triton's kernels cannot compute the cases.
    """
    if interpreted():
        if cases[0].x.dtype not in DTYPES:
            return
        if cases[0].operator == "linear_4bit":
            yield check(Check("triton", "dequantize_4bit"), cases, _share_that_differs, allowed=0.0)
    elif dispatch.refusal("triton", cases[0].site("forward"), here):
        return
    for config in FORWARD:
        yield check(
            _name("forward", config), cases, lambda case, tile=config: error(forward(case, tile), case.truth["y"])
        )
    for config in BACKWARD:
        yield check(
            _name("backward", config), cases, lambda case, tile=config: error(backward(case, tile), case.truth["dx"])
        )


def _name(direction: str, config: Config) -> Check:
    return Check("triton", direction=direction, what=f"tile {config.tile}x{config.block_k}")


def forward(case: Case, config: Config) -> Tensor:
    """y of a case by one tile."""
    dtype = case.x.dtype
    u, b = low_rank.project(case.x, case.a.t(), SCALING).to(dtype), case.b.to(dtype)
    product = linear_8bit if isinstance(case.weight, EightBitWeight) else linear_4bit
    return product(case.x, case.weight, case.bias, u, b, config)


def backward(case: Case, config: Config) -> Tensor:
    """dX of a case by one tile."""
    dtype = case.g.dtype
    v, a = low_rank.project(case.g, case.b, SCALING).to(dtype), case.a.to(dtype)
    product = linear_8bit_dx if isinstance(case.weight, EightBitWeight) else linear_4bit_dx
    return product(case.g, case.weight, v, a, config)


def _share_that_differs(case: Case) -> float:
    return case.share_that_differs(dequantize_4bit(case.weight, case.x.dtype))
