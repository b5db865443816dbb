"""Embeddings and output layer in host memory: rows are looked up there, and the output layer comes in slices.

The two tables of a vocabulary are used little: of the first a row for every token, of the second a slice at a time.
Instances change their class; what a model has tied stays one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pefttool.api.errors import ModelError
from pefttool.nn import placement

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SlicedLinear", "device_of"]

#: Rows of the output layer that are on the device at a time.
SLICE = 8192


class LookedUp(nn.Embedding):
    """Mixed into the class of an embedding: it computes in host memory, and its rows come to where the ids were."""

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(placement.read_on_host(ids))
        return placement.on_device(placement.made_on_host(rows), ids.device)


class ComputesElsewhere:
    """Mixed into the class of a model whose first parameters are in host memory: `device` is where it computes.

    transformers takes a model's `device` to be that of its first parameter, and moves what it generates from there.
    """

    @property
    def device(self) -> torch.device:
        assert isinstance(self, nn.Module)
        return device_of(self)


class SlicedLinear(nn.Linear):
    """A frozen output layer in host memory. A caller that needs the loss alone had better take the slices."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> [..., V] on x's device: slice by slice, and nothing of the weight is saved for backward."""
        output: Tensor = _Sliced.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        ctx.input_dtype = x.dtype
        x = x.to(dtype)
        output = x.new_empty((*x.shape[:-1], weight.shape[0]))
        for at, part in _slices(weight, x):
            output[..., at] = x @ part.t()
            if bias is not None:
                output[..., at] += placement.on_device(bias[at], x.device).to(dtype)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        dx = g.new_zeros((*g.shape[:-1], ctx.weight.shape[1]), dtype=torch.float32)
        for at, part in _slices(ctx.weight, g):
            dx += g[..., at] @ part
        return dx.to(ctx.input_dtype), None, None


def _slices(weight: Tensor, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, those rows of the weight where x is, in its dtype): none if x is empty."""
    for first in range(0, weight.shape[0] if x.numel() else 0, SLICE):
        at = slice(first, min(first + SLICE, weight.shape[0]))
        yield at, placement.on_device(weight[at], x.device).to(x.dtype)


def tables(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose tensors belong in host memory: the input embedding, and the output layer if there is one."""
    for name in ("get_input_embeddings", "get_output_embeddings"):
        get = getattr(model, name, None)
        table = get() if get is not None else None
        if table is not None:
            yield table


def install(model: nn.Module) -> None:
    """Keep the tables of `model`, not yet adapted, in host memory, and let them work from there.

    ModelError for tables of another kind.
    """
    for table in tables(model):
        kind = type(table)
        if isinstance(table, nn.Embedding):
            table.__class__ = type(kind.__name__, (LookedUp, kind), {})
        elif kind is nn.Linear:
            table.__class__ = SlicedLinear
        else:
            raise ModelError(
                f"memory.offload: the {kind.__name__} of {type(model).__name__} cannot be kept in host memory; drop"
                " embeddings from it"
            )
        for parameter in (*table.parameters(), *table.buffers()):
            if not parameter.is_meta:  # in a simulation there is nothing to move
                parameter.data = parameter.data.to("cpu")
    for module in model.modules():
        kind = type(module)
        if isinstance(getattr(kind, "device", None), property):
            module.__class__ = type(kind.__name__, (ComputesElsewhere, kind), {"__module__": kind.__module__})


def parameters(model: nn.Module) -> Iterator[Tensor]:
    """What `install` put in host memory."""
    for module in model.modules():
        if isinstance(module, LookedUp | SlicedLinear):
            yield from (*module.parameters(), *module.buffers())


def device_of(model: nn.Module) -> torch.device:
    """The device that `model` computes on: that of its first parameter which is not in host memory for keeps."""
    kept = {id(parameter) for parameter in parameters(model)}
    return next((p.device for p in model.parameters() if id(p) not in kept), torch.device("cpu"))
