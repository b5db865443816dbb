"""What the operators state about themselves to a simulation: the bytes that one call allocates inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pefttool_kernels import dispatch, machine, ops
from pefttool_kernels.dispatch import Direction, Operator
from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.ops import FIELDS
from pefttool_kernels.workspace import Shapes, workspace_bytes


def _linear_4bit(kind: str, x: Tensor, *arguments: Any) -> int:
    weight, rest = FourBitWeight(*arguments[:FIELDS]), arguments[FIELDS:]
    bias, lora_a, _, _, backend = rest
    shape = (weight.out_features, weight.in_features)
    return _bytes(kind, "linear_4bit", "forward", x, shape, weight.nested, lora_a, bias is not None, backend)


def _linear_4bit_dx(kind: str, g: Tensor, *arguments: Any) -> int:
    weight, (_, lora_a, backend) = FourBitWeight(*arguments[:FIELDS]), arguments[FIELDS:]
    shape = (weight.out_features, weight.in_features)
    return _bytes(kind, "linear_4bit", "backward", g, shape, weight.nested, lora_a, False, backend)


def _linear_8bit(kind: str, x: Tensor, values: Tensor, scales: Tensor, *rest: Any) -> int:
    bias, lora_a, _, _, backend = rest
    return _bytes(kind, "linear_8bit", "forward", x, values.shape, False, lora_a, bias is not None, backend)


def _linear_8bit_dx(kind: str, g: Tensor, values: Tensor, scales: Tensor, *rest: Any) -> int:
    _, lora_a, backend = rest
    return _bytes(kind, "linear_8bit", "backward", g, values.shape, False, lora_a, False, backend)


def _bytes(
    kind: str,
    operator: Operator,
    direction: Direction,
    operand: Tensor,
    shape: Any,
    nested: bool,
    lora_a: Tensor | None,
    bias: bool,
    backend: str,
) -> int:
    n, k = shape
    rows = operand.numel() // max(1, operand.shape[-1])
    rank = 0 if lora_a is None else lora_a.shape[0]
    if kind != "cpu":
        backend = "dequantize"  # takes the most: which one runs is decided by the card
    else:
        site = dispatch.Site(operator, direction, rows, n, k, operand.dtype, needs_grad=True)
        backend = dispatch.choose(site, machine.of(torch.device("cpu")), backend).backend
    return workspace_bytes(Shapes(operator, direction, rows, n, k, operand.dtype, nested, rank, bias), backend)


#: Operator -> bytes, of (device kind, *arguments of the call).
STATED: dict[str, Callable[..., int]] = {
    "linear_4bit": _linear_4bit,
    "linear_4bit_dx": _linear_4bit_dx,
    "linear_8bit": _linear_8bit,
    "linear_8bit_dx": _linear_8bit_dx,
}


def install() -> None:
    """Hang each of `STATED` on its operator as `workspace_bytes`, where a simulation looks for it."""
    for name, stated in STATED.items():
        assert name in ops.IMPLEMENTATIONS
        setattr(getattr(torch.ops.pefttool, name), "workspace_bytes", stated)  # noqa: B010
