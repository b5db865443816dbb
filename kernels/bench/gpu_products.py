"""Products with quantised weights on a GPU: who takes part, what it must compute, how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from gpu_record import statistics
from torch import Tensor
from torch.nn import functional

from pefttool_kernels import backends, measure, reference
from pefttool_kernels.layout import BLOCK, EightBitWeight, FourBitWeight
from pefttool_kernels.selftest_cases import ALLOWED, ALLOWED_8BIT

DIRECTIONS = ("forward", "backward")
#: The vendor's product with a ready dense weight: what nothing that dequantises can beat by much.
CUBLAS, LIBRARY, DEQUANTIZE, FUSED = "cublas", "bitsandbytes", "dequantize", "fused "
#: Results are compared with float64 at the first and the last rows: float64 is slow on these cards.
ERROR_ROWS = 32
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One weight [n, k] and m rows of input; `kind` is nf4 or int8."""

    kind: str
    nested: bool
    dtype: torch.dtype
    n: int
    k: int
    m: int

    @property
    def label(self) -> str:
        scales = "" if self.kind == "int8" else " nested" if self.nested else " flat"
        return f"{self.kind}{scales} {str(self.dtype).removeprefix('torch.')} {self.n}x{self.k} M={self.m}"

    def record(self) -> dict[str, Any]:
        return {**vars(self), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Stored:
    """The same weight for everybody: as bitsandbytes stores it, our view of it, and dense, as dequantised."""

    view: FourBitWeight | EightBitWeight
    dense: Tensor
    forward: Callable[[Tensor], Tensor]  # bitsandbytes' own, differentiable
...
