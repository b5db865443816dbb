"""The self-test of linear_cross_entropy: no further from float64 than PyTorch's own, with and without a bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from pefttool_kernels.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from pefttool_kernels.selftest import reference
from pefttool_kernels.selftest.cases import DTYPES, MAX_TEXT, Check, error

BACKEND = "cross_entropy"
#: Tokens, words, width; some tokens do not count.
TOKENS, VOCABULARY, HIDDEN = 67, 1031, 192
IGNORED = 5  # every such token
#: How many times PyTorch's own error is allowed.
MARGIN = 1.1
#: What always is: the logits' roundings, averaged over the tokens, are luck in the loss, and in float32 everywhere.
FLOORS = {
    "forward": {torch.bfloat16: 2.5e-4, torch.float16: 3e-5, torch.float32: 1e-6},
    "backward": {torch.bfloat16: 0.0, torch.float16: 0.0, torch.float32: 1e-6},
}

#: hidden, weight, labels, bias -> the summed loss
Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def run(device: torch.device) -> Iterator[Check]:
    """The loss and its gradient dX, in every dtype, with and without a bias."""
    for dtype in DTYPES:
        for with_bias in (False, True):
            what = "bias" if with_bias else "no bias"
            names = {"operator": "linear_cross_entropy", "what": what, "dtype": str(dtype).removeprefix("torch.")}
            inputs = _inputs(dtype, with_bias)
            truth = _loss_and_gradient(_float64, *inputs)
            moved = [None if tensor is None else tensor.to(device) for tensor in inputs]
            try:
                ours, torch_s = _loss_and_gradient(linear_cross_entropy, *moved), _loss_and_gradient(_naive, *moved)
            except Exception as raised:  # a compiler's, a driver's, anybody's
                text = " ".join(f"{type(raised).__name__}: {raised}".split())
                yield Check(BACKEND, **names, problem=text[:MAX_TEXT])
                continue
            for part, expected in truth.items():
                allowed = max(FLOORS[part][dtype], MARGIN * error(torch_s[part], expected))
                yield Check(BACKEND, direction=part, **names, error=error(ours[part], expected), allowed=allowed)


def _inputs(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(0.2).to(dtype)
    bias = torch.randn(VOCABULARY, generator=generator).to(dtype) if with_bias else None
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels[::IGNORED] = IGNORE_INDEX
    return hidden, weight, labels, bias


def _loss_and_gradient(
    loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None
) -> dict[str, Tensor]:
    hidden = hidden.detach().requires_grad_()
    value = loss(hidden, weight, labels, bias)
    (dx,) = torch.autograd.grad(value, hidden)
    return {"forward": value.detach(), "backward": dx}


def _float64(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    return reference.cross_entropy(hidden, weight, labels, bias, IGNORE_INDEX)[0]


def _naive(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    logits = functional.linear(hidden, weight, bias).float()
    return functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
