"""Encoded windows as the tensors that PatchTST takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pefttool_series.processor import SeriesProcessor


def to_batch(examples: Sequence[Mapping[str, Any]], processor: SeriesProcessor) -> dict[str, Tensor]:
    """`past_values` and `past_observed_mask`, `[B, L, C]` float32."""
    return {
        "past_values": by_time([e["values"] for e in examples], processor.channels, processor.context_length),
        "past_observed_mask": by_time([e["observed"] for e in examples], processor.channels, processor.context_length),
    }


def by_time(rows: Sequence[Sequence[float]], channels: int, length: int) -> Tensor:
    """`[B, length, channels]` float32 of rows that hold channel after channel; a single value stands for all."""
    import torch

    tensor = torch.tensor(rows, dtype=torch.float32)
    if tensor.shape[1] == 1:
        tensor = tensor.expand(len(rows), channels * length)
    return tensor.view(len(rows), channels, length).transpose(1, 2).contiguous()
