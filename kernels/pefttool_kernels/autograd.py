"""The gradients: dX, and those of the bias and the low-rank update. The stored weight is frozen and gets none.

What the backward pass needs goes through `save_for_backward`, so that tensors which are moved, swapped or offloaded in
between, and checkpointing's hooks, see every one of them; attributes of the context hold numbers and names only.

With y = x W^T + bias + s (x A^T) B^T and g = dL/dy:

    u = s x A^T    v = s g B    dx = g W + v A    dA = v^T x    dB = g^T u    dbias = sum of g over the rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pefttool_kernels import low_rank

#: Behind the weight's own arguments: bias, lora_a, lora_b, scaling, backend.
EPILOGUE = 5


def register(library: torch.library.Library) -> None:
    """Make the two products differentiable."""
    for name, product in (("linear_4bit", _dx_4bit), ("linear_8bit", _dx_8bit)):
        torch.library.register_autograd(
            f"pefttool::{name}", _backward_through(product), setup_context=_save, lib=library
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *weight, bias, lora_a, lora_b, scaling, backend = inputs
    tensors = [value if isinstance(value, Tensor) else None for value in weight]
    ctx.save_for_backward(x if lora_a is not None else None, lora_a, lora_b, *tensors)
    ctx.plain = [None if isinstance(value, Tensor) else value for value in weight]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.scaling, ctx.backend = scaling, backend


def _backward_through(product: Any) -> Any:
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, lora_a, lora_b, *tensors = ctx.saved_tensors
        weight = [value if tensor is None else tensor for tensor, value in zip(tensors, ctx.plain, strict=True)]
        needs_x = ctx.needs_input_grad[0]
        needs_bias, needs_a, needs_b = ctx.needs_input_grad[-EPILOGUE : -EPILOGUE + 3]
        g = g.contiguous()
        rows = g.reshape(-1, g.shape[-1])
        dx = dbias = da = db = v = None
        if lora_a is not None and (needs_x or needs_a):
            v = low_rank.project(rows, lora_b, ctx.scaling)
        if needs_x:
            dx = product(g, *weight, v, lora_a, ctx.backend)
        if needs_bias:
            dbias = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        if needs_a:
            da = low_rank.gather(v, x.reshape(-1, x.shape[-1])).to(lora_a.dtype)
        if needs_b:
            u = low_rank.project(x.reshape(-1, x.shape[-1]), lora_a.t(), ctx.scaling)
            db = low_rank.gather(u, rows).t().to(lora_b.dtype)
        return dx, *(None for _ in weight), dbias, da, db, None, None

    return backward


def _dx_4bit(*arguments: Any) -> Tensor:
    output: Tensor = torch.ops.pefttool.linear_4bit_dx(*arguments)
    return output


def _dx_8bit(*arguments: Any) -> Tensor:
    output: Tensor = torch.ops.pefttool.linear_8bit_dx(*arguments)
    return output
