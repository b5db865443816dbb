"""Tensors that say they lie on a card: real ones on the CPU, for what is decided, or refused, by where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

LATE = 10**9


class OnCuda(Tensor):
    """Says that it lies on `cuda:0`. What is computed from it does, too."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """A copy to the CPU is a plain tensor."""
        moved = self.as_subclass(Tensor).to(*args, **kwargs)
        return moved if torch.device("cpu") in args or "cpu" in args else moved.as_subclass(OnCuda)


class Pinned(Tensor):
    """Host memory that a copy from a card has not reached yet: until `arrive`, it holds what nobody wants to read."""

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        self.coming = source.as_subclass(Tensor)
        return self.fill_(LATE)

    def arrive(self) -> None:
        super().copy_(self.coming)


class OnMps(Tensor):
    """As on Apple's GPU: what is computed from it may not be float64. On the CPU (`cpu()`) it is a plain tensor."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is Tensor.cpu:
            return result.as_subclass(Tensor)
        if any(isinstance(part, Tensor) and part.dtype == torch.float64 for part in tree_iter(result)):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result
