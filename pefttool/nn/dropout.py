"""Dropout on a CPU. PyTorch draws one number at a time for it there: a quarter of a small encoder's training step.

Here one draw of 64 bits decides four elements, so that the rate is rounded to a multiple of 2^-16.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


def keep(like: Tensor, rate: float) -> Tensor:
    """A factor for every element, of `like`'s shape and dtype: 0 with probability `rate`, else 1 / (1 - rate).

    Draws from PyTorch's own random state.
    """
    count = math.prod(like.shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count] >= round(rate * LEVELS) - LEVELS // 2
    return kept.to(like.dtype).mul_(1 / (1 - rate)).view(like.shape)


class FastDropout(nn.Dropout):
    """`nn.Dropout` for tensors on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.p == 1 or input.device.type != "cpu":
            return super().forward(input)
        result: Tensor = input * keep(input, self.p)
        return result


def install(model: nn.Module) -> None:
    """Turn the model's plain dropout modules into faster ones, in place; names, modes and state stay."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            changed: Any = module
            changed.__class__ = FastDropout
