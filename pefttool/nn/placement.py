"""Where code computes and keeps: a simulation pretends, on a CPU, to have a card that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class _Pretence:
    kind: str
    lies_on_host: Callable[[Tensor], object]


_pretence: ContextVar[_Pretence | None] = ContextVar("pretence", default=None)


def kind(tensor: Tensor) -> str:
    """`cpu`, `cuda` or `mps`: where this tensor lies, or would lie if this were not a simulation."""
    pretence = _pretence.get()
    return tensor.device.type if pretence is None else pretence.kind


def on_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory: itself, if it lies there. From a CUDA device, not waited for: into pinned memory.

    Copies out and back are in the order of the device's current stream: for what comes back by `on_device`, and is not
    read in between. Untested on hardware.
    """
    import torch

    pretence = _pretence.get()
    if pretence is None or pretence.kind == "cpu":
        if tensor.device.type != "cuda":
            return tensor.to("cpu")
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
    copy = tensor.clone()
    pretence.lies_on_host(copy)
    return copy


def read_on_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory, for the CPU to read at once: waited for, as `on_host` is not."""
    pretence = _pretence.get()
    return tensor.to("cpu") if pretence is None or pretence.kind == "cpu" else on_host(tensor)


def made_on_host(tensor: Tensor) -> Tensor:
    """What was computed from tensors in host memory: the tensor itself."""
    pretence = _pretence.get()
    if pretence is not None and pretence.kind != "cpu":
        pretence.lies_on_host(tensor)
    return tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """What `on_host` gave, or was loaded there, on the device that computes: a copy unless that is the CPU."""
    pretence = _pretence.get()
    return tensor.to(device, non_blocking=True) if pretence is None or pretence.kind == "cpu" else tensor.clone()


@contextmanager
def pretending(device: str, lies_on_host: Callable[[Tensor], object]) -> Iterator[None]:
    """Within, all tensors count as lying on `device` (a `torch.device` string), but those told to `lies_on_host`."""
    token = _pretence.set(_Pretence(device.partition(":")[0], lies_on_host))
    try:
        yield
    finally:
        _pretence.reset(token)
