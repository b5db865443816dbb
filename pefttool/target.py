"""The kind of device that code computes for: a simulation pretends, on a CPU, to have a card that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_pretended: ContextVar[str | None] = ContextVar("pretended", default=None)


def kind(tensor: Tensor) -> str:
    """`cpu`, `cuda` or `mps`: where this tensor lies, or would lie if this were not a simulation."""
    return _pretended.get() or tensor.device.type


@contextmanager
def pretending(device: str) -> Iterator[None]:
    """Within, all tensors count as lying on `device` (a `torch.device` string)."""
    token = _pretended.set(device.partition(":")[0])
    try:
        yield
    finally:
        _pretended.reset(token)
