"""What the tests of the losses share: small calls, PyTorch's own path, and the truth in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

IGNORE = -100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIB = 1 << 20

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """h [T, H], which wants a gradient, W [V, H] and labels [T], the third of which is ignored."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(tokens, hidden, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden, generator=generator).mul_(0.2).to(dtype)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[2::3] = IGNORE
    return h, weight, labels


def naive(h: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, reduction: str = "sum") -> Tensor:
    """PyTorch's own path."""
    logits = nn.functional.linear(h, weight, bias).float()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction=reduction)


def both(loss: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient for h)."""
    value = loss(h)
    return value.detach(), torch.autograd.grad(value, h)[0]


def truth(h: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both in float64."""
    exact = h.detach().double().requires_grad_()
    logits = nn.functional.linear(exact, weight.double(), None if bias is None else bias.double())
    return both(lambda _: nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"), exact)


def error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())
