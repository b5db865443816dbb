"""The arithmetic of a run: autocast for the forward pass, gradient scaling where float16 needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pefttool.devices import Choice


def torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def autocast(choice: Choice) -> AbstractContextManager[Any]:
    """The context every forward pass runs in, training and evaluation alike.

    Not through accelerate's `prepare`: that wraps `forward` and turns every output, logits included, into float32.
    """
    import torch

    if choice.autocast is None:
        return nullcontext()
    return torch.autocast(torch.device(choice.device).type, dtype=torch_dtype(choice.autocast))


def grad_scaler(choice: Choice) -> torch.amp.GradScaler:
    """Loss scaling for float16 autocast; does nothing elsewhere."""
    import torch

    return torch.amp.GradScaler(torch.device(choice.device).type, enabled=choice.grad_scaler)
