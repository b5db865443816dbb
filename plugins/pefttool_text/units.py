"""The units of a pretrained output layer that answers with a number, and those of the training rows.

A run learns numbers in units of the rows' deviation, from their mean: an answer is `output * std + mean`. A layer that
was trained before answers in units of its own, and has to say the same from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: What a folder of ours says of its model, the units of its numbers among it.
FACTS = "pefttool.json"
NO_BIAS = (
    "the model's output layer was trained to answer with a number and has no bias: it starts in units of the training"
    " rows, and its first answers are not the model's own"
)


def of(folder: Path) -> tuple[float, float]:
    """(mean, std) by which outputs of the model in this folder become its answers: (0, 1) of anybody's but ours."""
    path = folder / FACTS
    fitted = json.loads(path.read_text(encoding="utf-8")).get("fitted", {}) if path.is_file() else {}
    return float(fitted.get("mean", 0.0)), float(fitted.get("std", 1.0))


def keep(
    model: nn.Module, heads: Iterable[str], missing: Iterable[str], own: tuple[float, float], fitted: Mapping[str, Any]
) -> str | None:
    """Let the pretrained output layers of these heads, whose answers are in units `own`, answer the same in those of
    the rows (`fitted`). Layers that are `missing` are new, and stay. What the user should know, or None."""
    mean, std = float(fitted.get("mean", 0.0)), float(fitted.get("std", 1.0))
    layers = [
        (f"{head}.{name}" if name else head, layer)
        for head in heads
        for name, layer in model.get_submodule(head).named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1
    ]
    trained = [layer.float() for name, layer in layers if f"{name}.weight" not in missing]
    if own == (mean, std) or not trained:
        return None
    if any(layer.bias is None for layer in trained):
        return NO_BIAS
    with torch.no_grad():
        for layer in trained:
            layer.weight.mul_(own[1] / std)
            layer.bias.mul_(own[1]).add_(own[0] - mean).div_(std)
    return None
