"""Stand-ins for quantised linears, for simulation: `Params4bit` and `Int8Params` cannot be made of fake tensors.

They hold as many bytes as the real layers, allocate what the real ones allocate in forward and backward passes, and
compute nothing (outputs are the bias, or zero). They are `nn.Linear`s, so that adapters attach to them as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_product

BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale, with double quantisation


class Skeleton(nn.Linear):
    """A frozen linear of `linear`'s shape, device and dtype, without its weights."""

    #: The real layer keeps its input until the backward pass, although its weight needs no gradient.
    keeps_input = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.compute_dtype = linear.weight.dtype
        self._device = linear.weight.device
        if linear.bias is not None:
            self.bias = nn.Parameter(self._zeros(self.out_features, linear.bias.dtype), requires_grad=False)

    def _zeros(self, size: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self._device)

    def _store(self, name: str, size: int | tuple[int, ...], dtype: torch.dtype) -> None:
        setattr(self, name, nn.Parameter(self._zeros(size, dtype), requires_grad=False))

    def dequantized(self, like: Tensor) -> Tensor:
        """A zero `[out_features, in_features]`, and on the way whatever temporaries the real layer takes.

        On `like`'s device and in its dtype: a simulation may have swapped the parameters for the forward pass only.
        """
        return like.new_zeros((self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype."""
        output: Tensor = _FrozenProduct.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return output.to(x.dtype)


class FourBitSkeleton(Skeleton):
    """`Linear4bit`: two weights a byte, one scale a block, tables of values; with double quantisation 8-bit scales."""

    def __init__(self, linear: nn.Linear, double_quant: bool) -> None:
        super().__init__(linear)
        count = self.in_features * self.out_features
        self.blocks = -(-count // BLOCK)
        self.double_quant = double_quant
        self._store("weight", (-(-count // 2), 1), torch.uint8)
        self._store("code", 16, torch.float32)
        self._store("absmax", self.blocks, torch.uint8 if double_quant else torch.float32)
        if double_quant:
            self._store("offset", (), torch.float32)
            self._store("nested_absmax", -(-self.blocks // NESTED_BLOCK), torch.float32)
            self._store("nested_code", 256, torch.float32)

    def dequantized(self, like: Tensor) -> Tensor:
        scales = like.new_zeros(self.blocks, dtype=torch.float32) if self.double_quant else None
        dequantized = super().dequantized(like)
        del scales
        return dequantized


class EightBitSkeleton(Skeleton):
    """`Linear8bitLt`: a byte a weight, one float32 scale a row."""

    keeps_input = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._store("weight", (self.out_features, self.in_features), torch.int8)
        self._store("SCB", self.out_features, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the bias's dtype if there is one, else in x's."""
        x = x if self.bias is None else x.to(self.bias.dtype)
        output: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return output


class _FrozenProduct(torch.autograd.Function):
    """x @ W.T + b with a W that exists only inside each pass; dX only, as W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Skeleton) -> Tensor:
        ctx.layer = layer
        # An attribute, as in bitsandbytes: saved-tensor hooks (checkpointing, offloading) do not see it.
        ctx.kept = x if layer.keeps_input and ctx.needs_input_grad[0] else None
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return linear_product(x, layer.dequantized(x), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantized(gradient), None
