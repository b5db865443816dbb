"""Batch normalisation that stays as it was pretrained."""

from __future__ import annotations

from torch import Tensor, nn


class StillBatchNorm(nn.BatchNorm1d):
    """A batch norm that is in evaluation mode whatever the model is: weight and bias may train, statistics do not."""

    def train(self, mode: bool = True) -> StillBatchNorm:
        super().train(False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """`[B, D, T]` in float32, and back: where weight and bias train they are float32 beside frozen statistics in
        another dtype, which PyTorch's own kernel on CPUs refuses."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()
        shift = self.bias.float() - self.running_mean.float() * scale
        return (input.float() * scale[:, None] + shift[:, None]).to(input.dtype)
