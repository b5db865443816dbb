"""Batch normalisation that stays as it was pretrained."""

from __future__ import annotations

from torch import nn


class StillBatchNorm(nn.BatchNorm1d):
    """A batch norm that is in evaluation mode whatever the model is: weight and bias may train, statistics do not."""

    def train(self, mode: bool = True) -> StillBatchNorm:
        super().train(False)
        return self
