"""The arithmetic of a run: autocast for the forward pass, gradient scaling where float16 needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pefttool.setup.devices import Choice


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


def compute_in_float32(module: nn.Module) -> None:
    """Let `module`, whose weights are float32, compute in float32 whatever the run computes in around it.

    bfloat16 keeps 8 bits: scores of classes that are close to each other would be one number.
    """
    vars(module)["forward"] = MethodType(_in_float32, module)  # a method: copies of the module call their own


def _in_float32(self: nn.Module, *placed: Any, **named: Any) -> Any:
    import torch

    device = next((p.device.type for p in self.parameters()), "cpu")
    with torch.autocast(device, enabled=False):
        return type(self).forward(self, *map(_float32, placed), **{k: _float32(v) for k, v in named.items()})


def _float32(value: Any) -> Any:
    import torch

    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
