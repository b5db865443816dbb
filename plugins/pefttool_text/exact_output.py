"""An output layer that is read in float32, whatever precision the run computes in.

bfloat16 keeps 8 bits: of numbers close to each other it makes one, where probabilities keep their order well enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ExactLinear(nn.Linear):
    """`[B, D]` in any precision to `[B, C]` in float32."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight.float(), bias)


def install(model: nn.Module, heads: Sequence[str], outputs: int) -> None:
    """Let the last layer of each of these heads (the plain layers with as many `outputs`) be read in float32."""
    for name in heads:
        for module in model.get_submodule(name).modules():
            if type(module) is nn.Linear and module.out_features == outputs:
                module.__class__ = ExactLinear
