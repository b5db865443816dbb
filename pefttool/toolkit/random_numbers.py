"""PyTorch's random numbers: what draws within leaves the run's own draws as they were."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["forked"]


def forked(device: str | torch.device) -> AbstractContextManager[None]:
    """Whatever draws within, on the CPU or this device, PyTorch's random state is as before afterwards."""
    import torch

    where = torch.device(device)
    if where.type not in ("cuda", "mps"):
        return torch.random.fork_rng([])
    # `cuda` without a number is the process's current device, which is not the first one in every rank.
    index = torch.cuda.current_device() if where.type == "cuda" and where.index is None else where.index or 0
    return torch.random.fork_rng([index], device_type=where.type)
