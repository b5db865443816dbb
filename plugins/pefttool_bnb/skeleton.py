"""Stand-ins for quantised linears, for simulation: `Params4bit` and `Int8Params` cannot be made of fake tensors.

They hold as many bytes as the real layers, in parameters that nothing has to know, and go through the same operators.
They are `nn.Linear`s, so that adapters attach to them as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pefttool_kernels import ops, stated
from pefttool_kernels.layout import EightBitWeight, FourBitWeight

assert stated  # imported for what the operators then state

BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale, with double quantisation


class Skeleton(nn.Linear):
    """A frozen linear of `linear`'s shape, device and dtype, without its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self._device = linear.weight.device
        if linear.bias is not None:
            self.bias = nn.Parameter(self._zeros(self.out_features, linear.bias.dtype), requires_grad=False)

    def _zeros(self, size: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self._device)

    def _store(self, name: str, size: int | tuple[int, ...], dtype: torch.dtype) -> None:
        setattr(self, name, nn.Parameter(self._zeros(size, dtype), requires_grad=False))

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype, with the low-rank update if there is one."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class FourBitSkeleton(Skeleton):
    """`Linear4bit`: two weights a byte, one scale a block, tables of values; with double quantisation 8-bit scales."""

    def __init__(self, linear: nn.Linear, double_quant: bool) -> None:
        super().__init__(linear)
        count = self.in_features * self.out_features
        blocks = -(-count // BLOCK)
        self.nested = double_quant
        self.compute_dtype = linear.weight.dtype
        self._store("weight", (-(-count // 2), 1), torch.uint8)
        self._store("code", 16, torch.float32)
        self._store("absmax", blocks, torch.uint8 if double_quant else torch.float32)
        if double_quant:
            self._store("offset", (), torch.float32)
            self._store("nested_absmax", -(-blocks // NESTED_BLOCK), torch.float32)
            self._store("nested_code", 256, torch.float32)

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        nested = (self.nested_absmax, self.nested_code, self.offset) if self.nested else (None, None, None)
        stored = (self.weight, self.absmax, self.code, *nested)
        weight = FourBitWeight(*stored, self.out_features, self.in_features, "nf4")
        return ops.linear_4bit(x.to(self.compute_dtype), weight, self.bias, lora).to(x.dtype)


class EightBitSkeleton(Skeleton):
    """`Linear8bitLt`: a byte a weight, one float32 scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._store("weight", (self.out_features, self.in_features), torch.int8)
        self._store("SCB", self.out_features, torch.float32)

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        return ops.linear_8bit(x, EightBitWeight(self.weight, self.SCB), self.bias, lora).to(x.dtype)
