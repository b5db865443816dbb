"""What PyTorch is slow at on a CPU, replaced for training: attention's backward pass, and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def quicken(model: nn.Module) -> None:
    """Choose faster attention and dropout for `model`; where its attention cannot be chosen, it stays as it is."""
    from pefttool import attention, dropout

    attention.install(model)
    dropout.install(model)
