"""What is slow or large on a CPU, replaced for training: attention's backward pass, dropout, RMSNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def quicken(model: nn.Module) -> None:
    """Give `model` faster attention, dropout and norms; modules of any other kind stay as they are."""
    from pefttool.nn import attention, dropout, rms_norm

    attention.install(model)
    dropout.install(model)
    rms_norm.install(model)
