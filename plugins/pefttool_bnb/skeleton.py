"""Quantised linears of plain tensors, which go through the same operators, bit by bit the same as the real ones.

For simulation, as `Params4bit` and `Int8Params` cannot be made of fake tensors: they hold as many bytes as the real
layers. And for streaming: what they hold can be taken away, to be fetched whenever it is needed.
They are `nn.Linear`s, so that adapters attach to them as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pefttool_kernels import ops, stated
from pefttool_kernels.layout import BLOCK, NESTED_BLOCK, EightBitWeight, FourBitWeight

stated.install()  # a skeleton is what a simulation calls the operators with

Fetch = Callable[[], Mapping[str, Tensor]]


class Skeleton(nn.Linear):
    """A frozen linear of `linear`'s shape, device and dtype, without its weights."""

    fetch: Fetch | None = None

    def __init__(self, linear: nn.Linear, backend: str = "auto") -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self._device = linear.weight.device
        self.backend = backend
        if linear.bias is not None:
            self.bias = nn.Parameter(self._zeros(self.out_features, linear.bias.dtype), requires_grad=False)

    def _zeros(self, size: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self._device)

    def _store(self, name: str, size: int | tuple[int, ...], dtype: torch.dtype) -> None:
        setattr(self, name, nn.Parameter(self._zeros(size, dtype), requires_grad=False))

    def stored(self) -> dict[str, Tensor]:
        """What the weight is made of, by name."""
        return {name: tensor for name, tensor in self.named_parameters(recurse=False) if name != "bias"}

    def view(self, tensors: Mapping[str, Tensor]) -> FourBitWeight | EightBitWeight:
        """`stored`, as the operators take it."""
        raise NotImplementedError

    def stream(self, fetch: Fetch) -> None:
        """Hold nothing from now on: the product calls `fetch` for what `stored` gave, in backward once more."""
        for name in self.stored():
            setattr(self, name, None)
        # An empty weight: adapters ask it for its device and its dtype.
        self._store("weight", (0, self.in_features), torch.uint8)
        self.fetch = fetch

    def product(self, x: Tensor, lora: ops.LowRank | None = None) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype, with the low-rank update if there is one."""
        inputs = self._inputs(x)
        fetch = self.fetch
        if fetch is not None:
            return ops.linear_fetched(inputs, lambda: self.view(fetch()), self.bias, lora, self.backend).to(x.dtype)
        weight = self.view(self.stored())
        multiply = ops.linear_4bit if isinstance(weight, FourBitWeight) else ops.linear_8bit
        return multiply(inputs, weight, self.bias, lora, self.backend).to(x.dtype)  # type: ignore[operator]

    def _inputs(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class FourBitSkeleton(Skeleton):
    """`Linear4bit`: two weights a byte, one scale a block, tables of values; with double quantisation 8-bit scales."""

    def __init__(self, linear: nn.Linear, double_quant: bool, quant_type: str = "nf4", backend: str = "auto") -> None:
        super().__init__(linear, backend)
        count = self.in_features * self.out_features
        blocks = -(-count // BLOCK)
        self.quant_type = quant_type
        self.compute_dtype = linear.weight.dtype
        self._store("weight", (-(-count // 2), 1), torch.uint8)
        self._store("code", 16, torch.float32)
        self._store("absmax", blocks, torch.uint8 if double_quant else torch.float32)
        if double_quant:
            self._store("offset", (), torch.float32)
            self._store("nested_absmax", -(-blocks // NESTED_BLOCK), torch.float32)
            self._store("nested_code", 256, torch.float32)

    def _inputs(self, x: Tensor) -> Tensor:
        return x.to(self.compute_dtype)

    def view(self, tensors: Mapping[str, Tensor]) -> FourBitWeight:
        return FourBitWeight(
            tensors["weight"],
            tensors["absmax"],
            tensors["code"],
            tensors.get("nested_absmax"),
            tensors.get("nested_code"),
            tensors.get("offset"),
            self.out_features,
            self.in_features,
            self.quant_type,
        )


class EightBitSkeleton(Skeleton):
    """`Linear8bitLt`: a byte a weight, one float32 scale a row."""

    def __init__(self, linear: nn.Linear, backend: str = "auto") -> None:
        super().__init__(linear, backend)
        self._store("weight", (self.out_features, self.in_features), torch.int8)
        self._store("SCB", self.out_features, torch.float32)

    def view(self, tensors: Mapping[str, Tensor]) -> EightBitWeight:
        return EightBitWeight(tensors["weight"], tensors["SCB"])
