"""RMSNorm on a CPU as one node of the graph: transformers' own keeps float32 copies of its input for the backward pass.

    r = 1 / sqrt(mean(x^2) + eps)    h = r x    y = w h    dx = r (w g - h mean(w g h))

Kept are x as it came, and r [.., 1]; h is made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def install(model: nn.Module) -> None:
    """Give the model's RMSNorms, those that compute what Llama's does, a cheaper training pass; in place."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    truth = LlamaRMSNorm.forward.__code__
    made: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        code = getattr(kind.forward, "__code__", None)
        # Many models carry a copy of Llama's norm; others scale by 1 + w, or center. Only the same code is the same.
        if code is None or (code.co_code, code.co_consts[1:], code.co_names) != _same(truth):
            continue
        if kind not in made:
            made[kind] = type(kind.__name__, (_Quick, kind), {})
        changed: Any = module
        changed.__class__ = made[kind]


def _same(code: Any) -> tuple[Any, ...]:
    return code.co_code, code.co_consts[1:], code.co_names  # the first constant is the docstring


class _Quick(nn.Module):
    """Before a norm's class: its training pass on a CPU, where the weight is frozen."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., H]` to `[..., H]`."""
        if not self.training or self.weight.requires_grad or hidden_states.device.type != "cpu":
            own: Tensor = super().forward(hidden_states)
            return own
        result: Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        output: Tensor = weight * (wide * r).to(x.dtype)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        h = x * r
        g = (gradients[0] * weight).to(h.dtype)
        mean = torch.linalg.vecdot(g, h).div_(x.shape[-1]).unsqueeze(-1)
        return (g - h.mul_(mean)).mul_(r).to(x.dtype), None, None
