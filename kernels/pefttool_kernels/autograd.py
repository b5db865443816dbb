"""The gradients: dX, and those of the bias and the low-rank update. The stored weight is frozen and gets none.

What the backward pass needs goes through `save_for_backward`, so that tensors which are moved, swapped or offloaded in
between, and checkpointing's hooks, see every one of them; attributes of the context hold numbers and names only, or
the way to a weight that is fetched again.

With y = x W^T + bias + s (x A^T) B^T and g = dL/dy:

    u = s x A^T    v = s g B    dx = g W + v A    dA = v^T x    dB = g^T u    dbias = sum of g over the rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pefttool_kernels import low_rank
from pefttool_kernels.layout import EightBitWeight, FourBitWeight

#: Behind the weight's own arguments: bias, lora_a, lora_b, scaling, backend.
EPILOGUE = 5


def register(library: torch.library.Library) -> None:
    """Make the two products differentiable.

    Not by `torch.library.register_autograd`: it fills in default arguments in a time that is quadratic in their
    number, 50 microseconds for these, as much as a small product takes.
    """
    operators = torch.ops.pefttool
    for name, backward in (("linear_4bit", operators.linear_4bit_dx), ("linear_8bit", operators.linear_8bit_dx)):
        product = _differentiable(getattr(operators, name).default, backward.default)
        library.impl(name, product, "Autograd")


def _differentiable(operator: Any, backward_operator: Any) -> Any:
    """The kernel of the autograd key: `operator`, recorded in the graph if a gradient can be asked for."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            _save(ctx, inputs)
            with torch._C._AutoDispatchBelowAutograd():
                output: Tensor = operator(*inputs)
                return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
            x, lora_a, lora_b, *tensors = ctx.saved_tensors
            weight = [value if tensor is None else tensor for tensor, value in zip(tensors, ctx.plain, strict=True)]
            dx, *epilogue = _gradients(ctx, *gradients, (x, lora_a, lora_b), weight, backward_operator)
            return dx, *(None for _ in weight), *epilogue

    def kernel(*inputs: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return Product.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = operator(*inputs)
            return output

    return kernel


class Fetched(torch.autograd.Function):
    """A product by a weight that is not there: it is fetched for the forward pass, and again for the backward pass.

    Nothing of the weight is saved, so that it can be dropped in between; what is fetched must be the same every time.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, fetch, bias, lora_a, lora_b, scaling, backend = inputs
        ctx.fetch = fetch
        ctx.save_for_backward(x if lora_a is not None else None, lora_a, lora_b)
        _note(ctx, bias, scaling, backend)
        weight = fetch()
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = _operators(weight)[0](x, *weight.arguments(), bias, lora_a, lora_b, scaling, backend)
            return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        weight = ctx.fetch()
        operator = _operators(weight)[1]
        dx, *epilogue = _gradients(ctx, *gradients, ctx.saved_tensors, weight.arguments(), operator)
        return dx, None, *epilogue


def fetched(x: Tensor, fetch: Callable[[], FourBitWeight | EightBitWeight], *epilogue: Any) -> Tensor:
    """The product of `x` and what `fetch` gives, with the operators' own epilogue (bias, A, B, scaling, backend)."""
    output: Tensor = Fetched.apply(x, fetch, *epilogue)  # type: ignore[no-untyped-call]
    return output


def _operators(weight: FourBitWeight | EightBitWeight) -> tuple[Any, Any]:
    operators = torch.ops.pefttool
    if isinstance(weight, FourBitWeight):
        return operators.linear_4bit.default, operators.linear_4bit_dx.default
    return operators.linear_8bit.default, operators.linear_8bit_dx.default


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    x, *weight, bias, lora_a, lora_b, scaling, backend = inputs
    tensors = [value if isinstance(value, Tensor) else None for value in weight]
    ctx.save_for_backward(x if lora_a is not None else None, lora_a, lora_b, *tensors)
    ctx.plain = [None if isinstance(value, Tensor) else value for value in weight]
    _note(ctx, bias, scaling, backend)


def _note(ctx: Any, bias: Tensor | None, scaling: float, backend: str) -> None:
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.scaling, ctx.backend = scaling, backend


def _gradients(
    ctx: Any, g: Tensor, saved: Sequence[Any], weight: Sequence[Any], backward_operator: Any
) -> tuple[Any, ...]:
    """The gradients of x, and of the epilogue: bias, lora_a, lora_b, and two that have none."""
    x, lora_a, lora_b = saved
    needs_x = ctx.needs_input_grad[0]
    needs_bias, needs_a, needs_b = ctx.needs_input_grad[-EPILOGUE : -EPILOGUE + 3]
    g = g.contiguous()
    rows = g.reshape(-1, g.shape[-1])
    dx = dbias = da = db = v = None
    with low_rank.without_autocast(g.device):
        if lora_a is not None and (needs_x or needs_a):
            v = low_rank.project(rows, lora_b, ctx.scaling)
        if needs_x:
            dx = backward_operator(g, *weight, v, lora_a, ctx.backend)
        if needs_bias:
            dbias = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        if needs_a:
            assert v is not None
            da = low_rank.gather(v, x.reshape(-1, x.shape[-1])).to(lora_a.dtype)
        if needs_b:
            u = low_rank.project(x.reshape(-1, x.shape[-1]), lora_a.t(), ctx.scaling)
            db = low_rank.gather(u, rows).t().to(lora_b.dtype)
    return dx, dbias, da, db, None, None
