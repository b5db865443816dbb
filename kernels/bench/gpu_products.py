"""Products with quantised weights on a GPU: who takes part, what it must compute, how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional as quantization
from gpu_record import statistics
from torch import Tensor
from torch.nn import functional

from pefttool_kernels import backends
from pefttool_kernels.layout import BLOCK, EightBitWeight, FourBitWeight
from pefttool_kernels.machine import not_installed, triton_missing
from pefttool_kernels.modules import view_8bit
from pefttool_kernels.selftest import reference
from pefttool_kernels.selftest.cases import ALLOWED, ALLOWED_8BIT
from pefttool_kernels.timing import measure

DIRECTIONS = ("forward", "backward")
#: The vendor's product with a ready dense weight: what nothing that dequantises can beat by much.
CUBLAS, LIBRARY, DEQUANTIZE, FUSED = "cublas", "bitsandbytes", "dequantize", "fused "
#: Results are compared with float64 at the first and the last rows: float64 is slow on these cards.
ERROR_ROWS = 32
LABEL, WIDTH = 8, 15  # of the table's columns
MAX_TEXT = 300


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
    def weight(self) -> str:
        scales = "" if self.kind == "int8" else " nested" if self.nested else " flat"
        return f"{self.kind}{scales} {self.n}x{self.k}, {str(self.dtype).removeprefix('torch.')}"

    def record(self) -> dict[str, Any]:
        return {**vars(self), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Stored:
    """One weight for everybody: our view of it, bitsandbytes' own product with it, and its values."""

    view: FourBitWeight | EightBitWeight
    library: Callable[[Tensor], Tensor]  # differentiable
    dense: Tensor  # [n, k], as bitsandbytes dequantises it


def store(kind: str, nested: bool, dtype: torch.dtype, n: int, k: int, device: torch.device) -> Stored:
    """A weight of normal values, quantised by bitsandbytes, on `device`."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype).to(device)
    if kind == "int8":
        layer = measure.quantised(kind, weight)
        view = view_8bit(layer)
        return Stored(view, layer, reference.dequantize_8bit(view, torch.float32).to(dtype))
    packed, state = quantization.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=nested, quant_type=kind)
    return Stored(
        FourBitWeight.of(packed, state),
        lambda x: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state),
        quantization.dequantize_4bit(packed, state),
    )


def launchers_run(device: torch.device) -> bool:
    """Whether triton's kernels can be launched: on a CUDA device, or on the CPU by Triton's interpreter."""
    if not_installed():
        return False
    from pefttool_kernels.selftest.tiles import interpreted

    return interpreted() if device.type != "cuda" else triton_missing(device) is None


def contestants(direction: str, stored: Stored, x: Tensor, g: Tensor) -> measure.Contestants:
    """Who computes x W^T, or g W, by name; "fused TILE" are our kernels with each tile that ships."""
    view, dense = stored.view, stored.dense
    if direction == "forward":
        runs: measure.Contestants = {CUBLAS: lambda: functional.linear(x, dense), LIBRARY: lambda: stored.library(x)}
        if launchers_run(x.device):
            runs[DEQUANTIZE] = lambda: backends.forward("dequantize", x, view, None, None, None)
            runs.update(_fused_forward(view, x))
        return runs
    leaf = x.detach().requires_grad_()
    output = stored.library(leaf)
    runs = {
        CUBLAS: lambda: g @ dense,
        LIBRARY: lambda: torch.autograd.grad(output, leaf, g, retain_graph=True)[0],
    }
    if launchers_run(x.device):
        runs[DEQUANTIZE] = lambda: backends.backward("dequantize", g, view, None, None)
        runs.update(_fused_backward(view, g))
    return runs


def _fused_forward(view: FourBitWeight | EightBitWeight, x: Tensor) -> measure.Contestants:
    from pefttool_kernels.triton.configs import FORWARD, Config
    from pefttool_kernels.triton.eight_bit import linear_8bit
    from pefttool_kernels.triton.forward_4bit import linear_4bit

    product: Any = linear_8bit if isinstance(view, EightBitWeight) else linear_4bit

    def by(config: Config) -> Callable[[], Tensor]:
        return lambda: product(x, view, config=config)

    return {FUSED + config.tile: by(config) for config in FORWARD}


def _fused_backward(view: FourBitWeight | EightBitWeight, g: Tensor) -> measure.Contestants:
    from pefttool_kernels.triton.backward_4bit import linear_4bit_dx
    from pefttool_kernels.triton.configs import BACKWARD, Config
    from pefttool_kernels.triton.eight_bit import linear_8bit_dx

    product: Any = linear_8bit_dx if isinstance(view, EightBitWeight) else linear_4bit_dx

    def by(config: Config) -> Callable[[], Tensor]:
        return lambda: product(g, view, config=config)

    return {FUSED + config.tile: by(config) for config in BACKWARD}


@dataclass(frozen=True)
class Result:
    """One contestant in one case and direction. Times in milliseconds; `problem` is what was raised instead."""

    case: Case
    direction: str
    contestant: str
    times: dict[str, float] | None = None
    error: float | None = None  # relative, against float64 on the dequantised weight
    problem: str | None = None

    @property
    def wrong(self) -> bool:
        """A fused kernel that computes other numbers than it should. The vendor's may sum in 16 bits: not judged."""
        if not self.contestant.startswith(FUSED) or self.error is None:
            return False
        allowed = (ALLOWED_8BIT if self.case.kind == "int8" else ALLOWED)[self.case.dtype]
        return not self.error <= allowed

    def record(self) -> dict[str, Any]:
        named = {"direction": self.direction, "contestant": self.contestant}
        return {
            **self.case.record(),
            **named,
            "times": self.times,
            "error": self.error if self.error is not None and isfinite(self.error) else None,
            "wrong": self.wrong,
            "problem": self.problem,
        }


def run(case: Case, direction: str, stored: Stored, rounds: int) -> list[Result]:
    """Everybody's result. Who raises is reported, and takes no further part; the others take turns."""
    device = stored.dense.device
    generator = torch.Generator().manual_seed(case.m)
    x = torch.randn(case.m, case.k, generator=generator).to(case.dtype).to(device)
    g = torch.randn(case.m, case.n, generator=generator).to(case.dtype).to(device)
    runs = contestants(direction, stored, x, g)
    truth = _truth(direction, stored, x, g)
    results = {name: _first(case, direction, name, compute, truth) for name, compute in runs.items()}
    able = {name: compute for name, compute in runs.items() if results[name].problem is None}
    for name, values in measure.take_turns(able, device, rounds=rounds).items():
        results[name] = replace(results[name], times=statistics(values))
    return list(results.values())


def _first(case: Case, direction: str, name: str, compute: Callable[[], object], truth: Tensor) -> Result:
    """Computed once, for its error; kernels are compiled here."""
    try:
        result = compute()
        assert isinstance(result, Tensor)
        error = float((_edges(result.detach()).double() - truth).norm() / truth.norm())
        return Result(case, direction, name, error=error)
    except Exception as raised:  # a compiler's, a driver's, memory that is not there
        text = " ".join(f"{type(raised).__name__}: {raised}".split())
        return Result(case, direction, name, problem=text[:MAX_TEXT])


def _edges(rows: Tensor) -> Tensor:
    return rows if len(rows) <= 2 * ERROR_ROWS else torch.cat((rows[:ERROR_ROWS], rows[-ERROR_ROWS:]))


def _truth(direction: str, stored: Stored, x: Tensor, g: Tensor) -> Tensor:
    int8 = isinstance(stored.view, EightBitWeight)
    weight = reference.dequantize_8bit(stored.view) if int8 else stored.dense.double()
    return _edges(x).double() @ weight.T if direction == "forward" else _edges(g).double() @ weight


def header(results: list[Result]) -> str:
    """The names of the columns of `line`."""
    names = [result.contestant for result in results]
    return f"{'':{LABEL}}{''.join(f'{name:>{WIDTH}}' for name in names)}{'best fused is':>{WIDTH}}"


def line(results: list[Result]) -> str:
    """One case and direction: medians in milliseconds, and how many times faster than bitsandbytes the best tile is.

    "-" for who raised, "!" behind a result that is wrong.
    """
    cells = "".join(f"{_cell(result):>{WIDTH}}" for result in results)
    times = {result.contestant: result.times["median"] for result in results if result.times and not result.wrong}
    fused = [value for name, value in times.items() if name.startswith(FUSED)]
    best = f"{times[LIBRARY] / min(fused):.2f} x bnb" if fused and LIBRARY in times else "-"
    return f"{f'M={results[0].case.m}':<{LABEL}}{cells}{best:>{WIDTH}}"


def _cell(result: Result) -> str:
    if result.times is None:
        return "-"
    return f"{result.times['median']:.3f}{'!' if result.wrong else ''}"
