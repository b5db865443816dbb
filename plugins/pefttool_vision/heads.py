"""A classifier whose input can be watched."""

from __future__ import annotations

from torch import Tensor, nn


class SeenLinear(nn.Linear):
    """The given layer, with its own parameters; its input passes through `features`, which has none."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.features = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """`[B, D]` to `[B, C]`."""
        seen: Tensor = self.features(input)
        return super().forward(seen)
