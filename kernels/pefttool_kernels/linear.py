"""A plain linear layer and its low-rank update as one node of the graph, in the dtype of the wide product.

    y = x W^T + bias + u (s B)^T    u = x A^T    v = g (s B)    dx = g W + v A    dA = v^T x    dB = s g^T u

peft composes it of six operations, under autocast with a copy of x in float32 and three wide sums. Here the update is
added by the product that makes it, and only x [M, K] and u [M, r] are kept. A and B stay float32; they are rounded for
the products, as autocast rounds them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pefttool_kernels import low_rank
from pefttool_kernels.ops import LowRank


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype of the product: autocast's, or the one that x and W share; None where peft would have to convert."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == weight.dtype else None


def refusal(x: Tensor, base: Any, lora: LowRank) -> str | None:
    """Why `product` cannot compute this, or None."""
    if type(base) is not nn.Linear:
        return f"the base is a {type(base).__name__}, not a plain linear layer"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base trains"
    dtype = compute_dtype(x, base.weight)
    if dtype is None or (dtype != lora.a.dtype and not torch.is_autocast_enabled(x.device.type)):
        return f"the input is {x.dtype}, the base {base.weight.dtype}, the update {lora.a.dtype}"
    return None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, lora: LowRank) -> Tensor:
    """x [..., K] W^T + bias [N] + the low-rank update -> [..., N], in `compute_dtype`; W and bias are frozen.

    Differentiable, once, in x, A and B.
    """
    dtype = compute_dtype(x, weight)
    assert dtype is not None
    bias = None if bias is None else bias.to(dtype)
    with low_rank.without_autocast(x.device):
        output: Tensor = _Product.apply(x.to(dtype), weight.to(dtype), bias, lora.a, lora.b, lora.scaling)  # type: ignore[no-untyped-call]
    return output


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)
        u = rows @ a.t()
        output = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        output.addmm_(u, b.t())
        ctx.save_for_backward(x, weight, a, b, u)
        ctx.scaling, ctx.dtypes = scaling, (lora_a.dtype, lora_b.dtype)
        # As torch's own linear does: of a view that a Function made, autograd refuses what a model does in place.
        shaped: Tensor = torch.ops.aten._unsafe_view(output, [*x.shape[:-1], weight.shape[0]])
        return shaped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, u = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        g = gradients[0].reshape(-1, weight.shape[0])
        dx = da = db = None
        v = g @ b
        if needs_x:
            dx = (g @ weight).addmm_(v, a).view(x.shape)
        if needs_a:
            da = (v.t() @ x.reshape(-1, x.shape[-1])).to(ctx.dtypes[0])
        if needs_b:
            db = (g.t() @ u).to(ctx.dtypes[1]).mul_(ctx.scaling)
        return dx, None, None, da, db, None
