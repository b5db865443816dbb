"""Stand-ins for quantised linears, for simulation: `Params4bit` and `Int8Params` cannot be made of fake tensors.

They hold as many bytes as the real layers, allocate in forward and backward passes what the operators state that they
allocate inside, and compute nothing (outputs are the bias, or zero). They are `nn.Linear`s, so that adapters attach to
them as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pefttool_kernels.dispatch import Direction, Operator
from pefttool_kernels.workspace import Shapes, workspace_bytes

BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale, with double quantisation


class Skeleton(nn.Linear):
    """A frozen linear of `linear`'s shape, device and dtype, without its weights."""

    operator: Operator
    nested = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.compute_dtype: torch.dtype | None = None  # the input's
        self._device = linear.weight.device
        if linear.bias is not None:
            self.bias = nn.Parameter(self._zeros(self.out_features, linear.bias.dtype), requires_grad=False)

    def _zeros(self, size: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self._device)

    def _store(self, name: str, size: int | tuple[int, ...], dtype: torch.dtype) -> None:
        setattr(self, name, nn.Parameter(self._zeros(size, dtype), requires_grad=False))

    def workspace(self, operand: Tensor, direction: Direction) -> Tensor:
        """As many bytes as the operator takes inside for this operand, [..., in or out_features].

        On the operand's device: a simulation may have swapped the parameters for the forward pass only.
        """
        rows = operand.numel() // max(1, operand.shape[-1])
        shape = (rows, self.out_features, self.in_features)
        shapes = Shapes(self.operator, direction, *shape, operand.dtype, nested=self.nested)
        backend = "tiles" if operand.device.type == "cpu" else "dequantize"
        return operand.new_empty(workspace_bytes(shapes, backend), dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype."""
        inputs = x if self.compute_dtype is None else x.to(self.compute_dtype)
        output: Tensor = _FrozenProduct.apply(inputs, self)  # type: ignore[no-untyped-call]
        return output.to(x.dtype)


class FourBitSkeleton(Skeleton):
    """`Linear4bit`: two weights a byte, one scale a block, tables of values; with double quantisation 8-bit scales."""

    operator = "linear_4bit"

    def __init__(self, linear: nn.Linear, double_quant: bool) -> None:
        super().__init__(linear)
        count = self.in_features * self.out_features
        self.blocks = -(-count // BLOCK)
        self.nested = double_quant
        self.compute_dtype = linear.weight.dtype
        self._store("weight", (-(-count // 2), 1), torch.uint8)
        self._store("code", 16, torch.float32)
        self._store("absmax", self.blocks, torch.uint8 if double_quant else torch.float32)
        if double_quant:
            self._store("offset", (), torch.float32)
            self._store("nested_absmax", -(-self.blocks // NESTED_BLOCK), torch.float32)
            self._store("nested_code", 256, torch.float32)


class EightBitSkeleton(Skeleton):
    """`Linear8bitLt`: a byte a weight, one float32 scale a row."""

    operator = "linear_8bit"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._store("weight", (self.out_features, self.in_features), torch.int8)
        self._store("SCB", self.out_features, torch.float32)


class _FrozenProduct(torch.autograd.Function):
    """x @ W.T + b with a W that is never whole; dX only, as W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Skeleton) -> Tensor:
        ctx.layer = layer
        output = x.new_zeros((*x.shape[:-1], layer.out_features))
        layer.workspace(x, "forward")
        return output if layer.bias is None else output.add_(layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        output = gradient.new_zeros((*gradient.shape[:-1], ctx.layer.in_features))
        ctx.layer.workspace(gradient, "backward")
        return output, None
