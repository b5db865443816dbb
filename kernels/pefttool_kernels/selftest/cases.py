"""What the self-test computes: small products with odd shapes, their truth in float64, and how far a result is off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from pefttool_kernels import dispatch, ops
from pefttool_kernels.layout import BLOCK, EightBitWeight, FourBitWeight
from pefttool_kernels.selftest import reference

#: Limits on the relative Frobenius error. Rounding a float64 result once costs about three quarters of them.
ALLOWED = {torch.bfloat16: 2.2e-3, torch.float16: 3.5e-4, torch.float32: 1e-5}
#: Most backends round an 8-bit weight before they multiply by it: two roundings.
ALLOWED_8BIT = {**ALLOWED, torch.bfloat16: 2.6e-3}

#: The weights' kinds: bitsandbytes' name of the code, and whether the scales are nested; int8 has neither.
KINDS = {
    "nf4 nested": ("nf4", True),
    "nf4 flat": ("nf4", False),
    "fp4 nested": ("fp4", True),
    "fp4 flat": ("fp4", False),
    "int8": None,
}
DTYPES = tuple(ALLOWED)
#: (M, N, K): one row, edges that no tile divides, and a neat product with many steps along every axis.
SHAPES = ((1, 131, 192), (37, 131, 192), (130, 256, 512))
RANK = 5
SCALING = 0.5
MAX_TEXT = 300

Weight = FourBitWeight | EightBitWeight


@dataclass(frozen=True)
class Check:
    """One comparison, the worst of all shapes.

    direction    forward, backward (dX and dbias), adapter (dA and dB), or nothing where there is only one
    what         the weight's kind, and the tile if one was asked for
    error        relative Frobenius error; of a dequantised weight the share of values that differ; None: no result
    problem      what was raised instead of a result
    skipped      why this backend cannot run here
    """

    backend: str
    operator: str = ""
    direction: str = ""
    what: str = ""
    dtype: str = ""
    error: float | None = None
    allowed: float = 0.0
    problem: str | None = None
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        """Correct, or skipped. An error that is not a number is neither."""
        return self.skipped is not None or (self.error is not None and self.error <= self.allowed)

    @property
    def label(self) -> str:
        return " ".join(part for part in (self.operator, self.direction, self.what, self.dtype) if part)

    def record(self) -> dict[str, object]:
        """For JSON, which has no NaN."""
        finite = self.error if self.error is not None and isfinite(self.error) else None
        return {**asdict(self), "error": finite, "ok": self.ok}


@dataclass(frozen=True)
class Case:
    """One product with everything around it: y = x W^T + bias + SCALING (x A^T) B^T, and a gradient g of y.

    `weight` and the operands lie on one device; `dequantised` [N, K] is bitsandbytes' own, on the CPU, in `dtype`
    (4 bits) or float64 (8 bits); `truth` holds y, dx, dbias, da and db on the CPU, in float64.
    """

    kind: str
    weight: Weight
    x: Tensor  # [M, K]
    g: Tensor  # [M, N]
    bias: Tensor  # [N]
    a: Tensor  # [RANK, K], float32
    b: Tensor  # [N, RANK], float32
    dequantised: Tensor
    truth: dict[str, Tensor]

    @property
    def operator(self) -> dispatch.Operator:
        return "linear_8bit" if isinstance(self.weight, EightBitWeight) else "linear_4bit"

    @property
    def allowed(self) -> float:
        return (ALLOWED_8BIT if self.operator == "linear_8bit" else ALLOWED)[self.x.dtype]

    def site(self, direction: dispatch.Direction) -> dispatch.Site:
        m, k = self.x.shape
        return dispatch.Site(self.operator, direction, m, self.g.shape[1], k, self.x.dtype)

    def share_that_differs(self, weight: Tensor) -> float:
        """How many of the dequantised values are not bitsandbytes' own, to the bit, as a share of all."""
        return float((weight.cpu() != self.dequantised).double().mean())

    def to(self, device: torch.device) -> Case:
        """The same on another device; what it is compared with stays."""
        stored = [part.to(device) if isinstance(part, Tensor) else part for part in self.weight.arguments()]
        moved = {name: getattr(self, name).to(device) for name in ("x", "g", "bias", "a", "b")}
        return replace(self, weight=type(self.weight)(*stored), **moved)


def make(kind: str, dtype: torch.dtype, m: int, n: int, k: int) -> Case:
    """A case on the CPU, the same every time. Sizes are such that the low-rank update is a tenth of the product."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weight, dequantised = _quantise(kind, normal(n, k, scale=0.05), dtype)
    x, g, bias = normal(m, k).to(dtype), normal(m, n).to(dtype), normal(n).to(dtype)
    a, b = normal(RANK, k, scale=0.05), normal(n, RANK, scale=0.1)
    inputs = [tensor.double().requires_grad_() for tensor in (x, bias, a, b)]
    xs, biases, as_, bs = inputs
    y = reference.linear(xs, dequantised, biases, as_, bs, SCALING)
    dx, dbias, da, db = torch.autograd.grad(y, inputs, g.double())
    truth = {"y": y.detach(), "dx": dx, "dbias": dbias, "da": da, "db": db}
    return Case(kind, weight, x, g, bias, a, b, dequantised, truth)


def _quantise(kind: str, weight: Tensor, dtype: torch.dtype) -> tuple[Weight, Tensor]:
    """(what bitsandbytes stores, the values that it stands for)."""
    from bitsandbytes import functional

    four_bit = KINDS[kind]
    if four_bit is None:
        values, scales, _ = functional.int8_vectorwise_quant(weight.half())
        stored = EightBitWeight(values, scales)
        return stored, reference.dequantize_8bit(stored)
    quant_type, nested = four_bit
    packed, state = functional.quantize_4bit(
        weight.to(dtype), blocksize=BLOCK, compress_statistics=nested, quant_type=quant_type
    )
    return FourBitWeight.of(packed, state), functional.dequantize_4bit(packed, state)


def compute(case: Case, backend: str) -> dict[str, Tensor]:
    """y, dx, dbias, da and db by the operators, through a backend that was asked for by name."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (case.x, case.bias, case.a, case.b)]
    x, bias, a, b = inputs
    lora = ops.LowRank(a, b, SCALING)
    if isinstance(case.weight, EightBitWeight):
        y = ops.linear_8bit(x, case.weight, bias, lora, backend)
    else:
        y = ops.linear_4bit(x, case.weight, bias, lora, backend)
    dx, dbias, da, db = torch.autograd.grad(y, inputs, case.g)
    return {"y": y.detach(), "dx": dx, "dbias": dbias, "da": da, "db": db}


def error(result: Tensor, truth: Tensor) -> float:
    """Relative Frobenius error, wherever the result lies; NaN for a result that has one."""
    return float((result.cpu().double() - truth).norm() / truth.norm())


def worst(errors: Iterable[float]) -> float:
    """The largest; NaN if there is one, which Python's own `max` may drop."""
    return float(torch.tensor(list(errors), dtype=torch.float64).max())


def check(name: Check, cases: Sequence[Case], error_of: Callable[[Case], float], allowed: float | None = None) -> Check:
    """`name`, completed by the worst error over `cases`. What is raised on the way is a failure, not the test's end."""
    known = replace(
        name,
        operator=name.operator or cases[0].operator,
        what=" ".join(part for part in (cases[0].kind, name.what) if part),
        dtype=str(cases[0].x.dtype).removeprefix("torch."),
        allowed=cases[0].allowed if allowed is None else allowed,
    )
    try:
        return replace(known, error=worst(map(error_of, cases)))
    except Exception as raised:  # a compiler's, a driver's, anybody's
        text = " ".join(f"{type(raised).__name__}: {raised}".split())
        return replace(known, problem=text[:MAX_TEXT])
