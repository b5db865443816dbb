"""The operators, as PyTorch knows them: schemas, implementations, fakes for tracing and simulation.

    linear_4bit(x, weight, bias, lora, ...)   x [..., K] W^T + bias + scaling (x A^T) B^T  ->  [..., N]
    linear_8bit(x, weight, bias, lora, ...)   the same, of a weight with 8 bits and a scale a row
    linear_fetched(x, fetch, bias, lora, ...) either of them, by a weight that is fetched whenever it is needed
    dequantize_4bit(weight, dtype)            W [N, K]

The functions here take a view of the stored weight (`layout`). Below them stand `torch.ops.pefttool.*`, which take its
tensors: opaque to torch.compile, known to FakeTensorMode, differentiable (`autograd`). W itself is frozen.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pefttool_kernels import autograd, backends, dispatch, low_rank, machine
from pefttool_kernels.layout import EightBitWeight, FourBitWeight

logger = logging.getLogger(__name__)

#: How many arguments of an operator a 4-bit weight takes.
FIELDS = len(FourBitWeight._fields)

library = torch.library.Library("pefttool", "FRAGMENT")

WEIGHT_4BIT = (
    "Tensor packed, Tensor absmax, Tensor code, Tensor? nested_absmax, Tensor? nested_code, Tensor? offset,"
    " SymInt out_features, SymInt in_features, str quant_type"
)
WEIGHT_8BIT = "Tensor values, Tensor scales"
EPILOGUE = "Tensor? bias, Tensor? lora_a, Tensor? lora_b, float scaling, str backend"
BACKWARD = "Tensor? left, Tensor? lora_a, str backend"

library.define(f"linear_4bit(Tensor x, {WEIGHT_4BIT}, {EPILOGUE}) -> Tensor")
library.define(f"linear_4bit_dx(Tensor g, {WEIGHT_4BIT}, {BACKWARD}) -> Tensor")
library.define(f"linear_8bit(Tensor x, {WEIGHT_8BIT}, {EPILOGUE}) -> Tensor")
library.define(f"linear_8bit_dx(Tensor g, {WEIGHT_8BIT}, {BACKWARD}) -> Tensor")
library.define(f"dequantize_4bit({WEIGHT_4BIT}, ScalarType dtype, str backend) -> Tensor")


@dataclass(frozen=True)
class LowRank:
    """A LoRA update that is added to a product: scaling (x A^T) B^T. A [r, K], B [N, r], of any floating dtype."""

    a: Tensor
    b: Tensor
    scaling: float = 1.0


def linear_4bit(
    x: Tensor, weight: FourBitWeight, bias: Tensor | None = None, lora: LowRank | None = None, backend: str = "auto"
) -> Tensor:
    """x [..., K] W^T + bias [N] + the low-rank update -> [..., N], in x's dtype (autocast's where it is on).

    Differentiable in x, bias, A and B. A `backend` other than "auto" works or raises `BackendError`.
    """
    x = _autocast(x)
    output: Tensor = torch.ops.pefttool.linear_4bit(x, *weight.arguments(), bias, *_parts(lora), backend)
    return output


def linear_8bit(
    x: Tensor, weight: EightBitWeight, bias: Tensor | None = None, lora: LowRank | None = None, backend: str = "auto"
) -> Tensor:
    """x [..., K] W^T + bias [N] + the low-rank update -> [..., N]: weight-only, x is not quantised."""
    x = _autocast(x)
    output: Tensor = torch.ops.pefttool.linear_8bit(x, *weight.arguments(), bias, *_parts(lora), backend)
    return output


def linear_fetched(
    x: Tensor,
    fetch: Callable[[], FourBitWeight | EightBitWeight],
    bias: Tensor | None = None,
    lora: LowRank | None = None,
    backend: str = "auto",
) -> Tensor:
    """`linear_4bit` or `linear_8bit`, bit by bit, by the weight that `fetch()` gives: now, and again in backward.

    Nothing of the weight is kept in between.
    """
    return autograd.fetched(_autocast(x), fetch, bias, *_parts(lora), backend)


def dequantize_4bit(weight: FourBitWeight, dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """W [N, K] in `dtype`, bit by bit what bitsandbytes gives. In one launch on a GPU, nested scales too."""
    output: Tensor = torch.ops.pefttool.dequantize_4bit(*weight.arguments(), dtype, backend)
    return output


def _autocast(x: Tensor) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point():
        return x.to(torch.get_autocast_dtype(device))
    return x


def _parts(lora: LowRank | None) -> tuple[Tensor | None, Tensor | None, float]:
    return (None, None, 1.0) if lora is None else (lora.a, lora.b, lora.scaling)


Weight = FourBitWeight | EightBitWeight


def _choose(direction: dispatch.Direction, operand: Tensor, weight: Weight, needs_grad: bool, requested: str) -> str:
    four = isinstance(weight, FourBitWeight)
    site = dispatch.Site(
        "linear_4bit" if four else "linear_8bit",
        direction,
        operand.shape[0],
        weight.out_features,
        weight.in_features,
        operand.dtype,
        needs_grad=needs_grad,
        unreadable=_unreadable(weight, operand.device, operand.dtype),
    )
    here = machine.of(operand.device)
    choice = dispatch.choose(site, here, requested)
    said = here.device_type == "cuda" and choice.reason == here.triton_missing  # by `machine`, for all operators
    if choice.fallback and not said:
        _say(site.operator, choice.reason)
    return choice.backend


@functools.cache
def _say(operator: str, reason: str) -> None:
    logger.warning("%s: left to bitsandbytes: %s", operator, reason)


def _unreadable(weight: Weight, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why triton's kernels cannot read this weight, or compute in `dtype`; asked only where they could run."""
    if device.type != "cuda" or machine.of(device).triton_missing:
        return None
    from pefttool_kernels.triton import _launch

    supports = _launch.supports_4bit if isinstance(weight, FourBitWeight) else _launch.supports_8bit
    return supports(weight, dtype)


def _forward(
    x: Tensor, weight: Weight, bias: Tensor | None, a: Tensor | None, b: Tensor | None, scaling: float, requested: str
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    chosen = _choose("forward", rows, weight, needs_grad, requested)
    with low_rank.without_autocast(x.device):
        u = None if a is None else low_rank.project(rows, a.t(), scaling)
        output = backends.forward(chosen, rows, weight, bias, u, None if b is None else b.float())
    # As torch's own linear does: of a view that a Function made, autograd refuses what a model does in place.
    shaped: Tensor = torch.ops.aten._unsafe_view(output, [*x.shape[:-1], weight.out_features])
    return shaped


def _backward(g: Tensor, weight: Weight, left: Tensor | None, a: Tensor | None, requested: str) -> Tensor:
    rows = g.reshape(-1, g.shape[-1]).contiguous()
    chosen = _choose("backward", rows, weight, True, requested)
    with low_rank.without_autocast(g.device):
        output = backends.backward(chosen, rows, weight, left, None if a is None else a.float())
    return output.view(*g.shape[:-1], weight.in_features)


def _linear_4bit(x: Tensor, *arguments: Any) -> Tensor:
    return _forward(x, FourBitWeight(*arguments[:FIELDS]), *arguments[FIELDS:])


def _linear_4bit_dx(g: Tensor, *arguments: Any) -> Tensor:
    return _backward(g, FourBitWeight(*arguments[:FIELDS]), *arguments[FIELDS:])


def _linear_8bit(x: Tensor, values: Tensor, scales: Tensor, *epilogue: Any) -> Tensor:
    return _forward(x, EightBitWeight(values, scales), *epilogue)


def _linear_8bit_dx(g: Tensor, values: Tensor, scales: Tensor, *epilogue: Any) -> Tensor:
    return _backward(g, EightBitWeight(values, scales), *epilogue)


def _dequantize_4bit(*arguments: Any) -> Tensor:
    *stored, dtype, backend = arguments
    weight = FourBitWeight(*stored)
    n, k = weight.out_features, weight.in_features
    device = weight.packed.device
    site = dispatch.Site("linear_4bit", "forward", n, n, k, dtype, unreadable=_unreadable(weight, device, dtype))
    chosen = dispatch.choose_dequantize(site, machine.of(device), backend)
    return backends.dequantize(chosen.backend, weight, dtype)


def _fake_linear_4bit(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], FourBitWeight(*arguments[:FIELDS]).out_features))


def _fake_linear_4bit_dx(g: Tensor, *arguments: Any) -> Tensor:
    return g.new_empty((*g.shape[:-1], FourBitWeight(*arguments[:FIELDS]).in_features))


def _fake_linear_8bit(x: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], values.shape[0]))


def _fake_linear_8bit_dx(g: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return g.new_empty((*g.shape[:-1], values.shape[1]))


def _fake_dequantize_4bit(*arguments: Any) -> Tensor:
    *stored, dtype, _ = arguments
    weight = FourBitWeight(*stored)
    return weight.packed.new_empty((weight.out_features, weight.in_features), dtype=dtype)


IMPLEMENTATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "linear_4bit": (_linear_4bit, _fake_linear_4bit),
    "linear_4bit_dx": (_linear_4bit_dx, _fake_linear_4bit_dx),
    "linear_8bit": (_linear_8bit, _fake_linear_8bit),
    "linear_8bit_dx": (_linear_8bit_dx, _fake_linear_8bit_dx),
    "dequantize_4bit": (_dequantize_4bit, _fake_dequantize_4bit),
}
for _name, (_implementation, _fake) in IMPLEMENTATIONS.items():
    library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pefttool::{_name}", _fake, lib=library)
autograd.register(library)
